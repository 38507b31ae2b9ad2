"""What the columns of obs are: which one labels the perturbation, which label is the control, context, batch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.recipe import QualityConfig
from vcc_fm.sources.labels import CONTROL_LIKE

SEPARATORS = ("+", "|", ",", ";", "_")

_MOST_LEVELS = 200_000
_LEAST_SCORE = 0.5
_UNASSIGNED = re.compile(
    r"(un-?(assigned|known|labell?ed|determined|mapped)|n/?a|multiplets?|doublets?|ambiguous|negative"
    r"|no[-_ ]?(guide|call|grna|sgrna)s?)$",
    re.IGNORECASE,
)
_DROPPED = frozenset(label.casefold() for label in QualityConfig().unassigned)
_PERTURBATION = re.compile(
    r"(^|_)(perturb\w*|targets?|genes?|guides?|sg_?rnas?|grnas?|conditions?|treatments?|drugs?|compounds?|knockouts?"
    r"|crispr\w*)($|_)",
    re.IGNORECASE,
)
# In order of preference; names are compared in lower case without anything but letters and digits.
_CONTEXT = ("cellline", "celllines", "celltype", "celltypes", "context", "line")
_BATCH = (
    *("gemgroup", "gem", "gemgroups", "batch", "batches", "batchvar", "lane", "lanes", "channel", "library"),
    *(
        "libraryid",
        "replicate",
        "replicates",
        "biorep",
        "rep",
        "sample",
        "sampleid",
        "plate",
        "pool",
        "run",
        "origident",
    ),
)
_NUMBER_OF_GUIDES = re.compile(
    r"(n|num|number|nr|no)?_?(of_)?(perts?|perturbations?|guides?|sg_?rnas?|grnas?|features)(_?(count|number|num|n))?s?$",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"assign|pass|good|keep|singlet|single|valid|(^|_)qc", re.IGNORECASE)
_FURTHER = re.compile(r"treatment|stimul|stim$|time|dose|dosage|concentration|donor|disease|age$", re.IGNORECASE)
_GUIDE = re.compile(r"(.+?)[-_. ]?(?:sg|g|guide)?(?:rna)?[-_. ]?\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnFacts:
    """A column of obs."""

    name: str
    kind: str
    """labels, integers, numbers, true/false."""
    levels: int
    missing: int
    examples: list[str]


@dataclass(frozen=True)
class PerturbationFacts:
    """A column that may label the perturbation."""

    column: str
    labels: int
    genes: float
    """Share of the labels, controls and unassigned ones excepted, of which every part is a gene of the file."""
    guides: float
    """Share of them that would be, without a number at the end."""
    separator: str | None
    """What joins the parts of combinations; None where there are none."""
    combinations: int
    controls: dict[str, int]
    """Labels that look like a control -> cells, the most frequent first."""
    unassigned: dict[str, int]
    """Labels of cells without a guide, or with several -> cells; those that a recipe does not drop by itself."""
    score: float

    @property
    def why(self) -> str:
        """What speaks for the column."""
        said = [f"{self.labels:,} labels"]
        if self.genes:
            said.append(f"{self.genes:.0%} of them genes of the file")
        if self.guides > self.genes:
            said.append(f"{self.guides:.0%} of them genes with a number: guides")
        if self.separator:
            said.append(f"{self.combinations:,} combinations joined by {self.separator!r}")
        return ", ".join(said)


@dataclass(frozen=True)
class LabelFacts:
    """What the columns of obs are."""

    columns: list[ColumnFacts]
    duplicate_barcodes: int
    perturbations: list[PerturbationFacts]
    """Columns that may label the perturbation, the likeliest first."""
    contexts: list[str]
    batches: list[str]
    numbers_of_guides: list[str]
    choices: dict[str, int]
    """Columns of true and false that may choose the good cells -> cells that are true."""
    further: list[str]
    """Columns with several levels that may make one context several (dose, time, donor)."""


def read_obs(obs: pd.DataFrame, genes: set[str], asked: str | None) -> LabelFacts:
    """Tell what the columns of obs are.

    Args:
        obs: table of all cells of the file.
        genes: all names of genes in the file.
        asked: the column of perturbations, where the user says; it comes first.
    """
    counted = {str(name): obs[name].value_counts() for name in obs.columns}
    columns = [_column(name, obs[name], counted[name]) for name in counted]
    of = {column.name: column for column in columns}
    labels = [c.name for c in columns if c.kind == "labels"]
    perturbations = [_perturbation(name, counted[name], genes) for name in labels if _may_label(of[name], len(obs))]
    perturbations = [one for one in perturbations if one.score >= _LEAST_SCORE and one.column != asked]
    perturbations.sort(key=lambda one: -one.score)
    if asked in of:
        perturbations.insert(0, _perturbation(asked, counted[asked], genes))
    taken = {one.column for one in perturbations}
    complete = [c for c in columns if not c.missing and c.name not in taken]
    return LabelFacts(
        columns=columns,
        duplicate_barcodes=int(obs.index.duplicated().sum()),
        perturbations=perturbations,
        contexts=_ranked((c.name for c in complete if c.kind == "labels" and c.levels <= 200), _CONTEXT),
        batches=_ranked(
            (c.name for c in complete if c.kind in ("labels", "integers") and 2 <= c.levels <= 2000), _BATCH
        ),
        numbers_of_guides=[c.name for c in columns if c.kind == "integers" and _NUMBER_OF_GUIDES.match(c.name)],
        choices={
            c.name: int(obs[c.name].astype(float).sum())
            for c in columns
            if c.kind == "true/false" and c.levels == 2 and _CHOICE.search(c.name)
        },
        further=[c.name for c in columns if c.levels in range(2, 200) and _FURTHER.search(c.name)],
    )


def possible_depths(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns of obs that may hold each cell's depth: integers, not negative, none missing; [cells] int64."""
    found = {}
    for name in obs.columns:
        if not pd.api.types.is_numeric_dtype(obs[name]) or pd.api.types.is_bool_dtype(obs[name]):
            continue
        values = obs[name].to_numpy(np.float64, na_value=np.nan)
        if ((values >= 0) & (values == np.rint(values)) & (values < 2.0**53)).all() and len(np.unique(values)) > 2:
            found[str(name)] = values.astype(np.int64)
    return found


def _column(name: str, values: pd.Series, counted: pd.Series) -> ColumnFacts:
    levels = counted.index[counted.to_numpy() > 0]
    kind = "labels"
    if pd.api.types.is_bool_dtype(values):
        kind = "true/false"
    elif pd.api.types.is_numeric_dtype(levels.dtype):
        kind = "integers" if (levels.to_numpy(float) % 1 == 0).all() else "numbers"
    return ColumnFacts(name, kind, len(levels), int(values.isna().sum()), [str(level) for level in levels[:3]])


def _may_label(column: ColumnFacts, cells: int) -> bool:
    return 2 <= column.levels <= min(_MOST_LEVELS, max(cells // 2, 2))


def _perturbation(name: str, counted: pd.Series, genes: set[str]) -> PerturbationFacts:
    cells: dict[str, int] = {}
    for label, number in counted.items():
        text = str(label).strip()
        if number and text and (text.casefold() not in _DROPPED or text in genes):
            cells[text] = cells.get(text, 0) + int(number)
    unassigned = {label: n for label, n in cells.items() if _UNASSIGNED.match(label) and label not in genes}
    controls = {label: n for label, n in cells.items() if _is_control(label, genes) and label not in unassigned}
    rest = [label for label in cells if label not in controls and label not in unassigned]
    known = genes | set(controls)
    splits = {separator: _combinations(rest, separator, known | set(rest)) for separator in SEPARATORS}
    separator = max(SEPARATORS, key=lambda one: len(splits[one]))
    joined = splits[separator]
    parts = [label.split(separator) if label in joined else [label] for label in rest]
    named = float(np.mean([all(part.strip() in known for part in label) for label in parts])) if parts else 0.0
    guides = float(np.mean([_guided(label, genes) for label in rest])) if rest else 0.0
    score = max(named, 0.5 * guides) + 0.5 * bool(controls) + 0.25 * bool(_PERTURBATION.search(name))
    # A control alone, or a name alone, is no perturbation; nor is a number.
    if not rest or pd.to_numeric(pd.Series(rest, dtype=object), errors="coerce").notna().all():
        score = 0.0
    return PerturbationFacts(
        column=name,
        labels=len(cells),
        genes=named,
        guides=guides,
        separator=separator if joined else None,
        combinations=sum(separator in label for label in rest) if joined else 0,
        controls=controls,
        unassigned=unassigned,
        score=score,
    )


def _is_control(label: str, genes: set[str]) -> bool:
    """NEGR1 is a gene; non-targeting_12 is one of many controls."""
    return label not in genes and CONTROL_LIKE.match(re.sub(r"[-_ ]?(sg|g|guide)?\d+$", "", label)) is not None


def _combinations(labels: list[str], separator: str, known: set[str]) -> set[str]:
    """The labels of which every part is a gene, a control, or a label of its own."""
    parts = {label: [part.strip() for part in label.split(separator)] for label in labels if separator in label}
    return {label for label, split in parts.items() if label not in known - {label} and known.issuperset(split)}


def _guided(label: str, genes: set[str]) -> bool:
    found = _GUIDE.match(label)
    return label not in genes and found is not None and found.group(1) in genes


def _ranked(names: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """The names that are wanted, in that order, then those that begin with a wanted one."""
    bare = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    exact = sorted((name for name in bare if bare[name] in wanted), key=lambda name: wanted.index(bare[name]))
    long = tuple(one for one in wanted if len(one) >= 5)
    return exact + [name for name in bare if name not in exact and bare[name].startswith(long)]
