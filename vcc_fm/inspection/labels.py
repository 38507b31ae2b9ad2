"""What the columns of obs are: which one labels the perturbation, which label is the control, context, batch."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.inspection.genes import is_ensembl
from vcc_fm.inspection.perturbation import PERTURBATION, PerturbationFacts, read_perturbation
from vcc_fm.inspection.roles import is_donor, may_be_batches, may_be_contexts
from vcc_fm.sources.labels import missing_labels

_MOST_LEVELS = 200_000
_LEAST_SCORE = 0.5
_FIGURE = re.compile(r"(^|_)(n|num|number|nr|no|total|pct|percent|counts?|log1p)(_|$)", re.IGNORECASE)
_NUMBER_OF_GUIDES = re.compile(
    r"(n|num|number|nr|no)?_?(of_)?(perts?|perturbations?|guides?|sg_?rnas?|grnas?|features)(_?(count|number|num|n))?s?$",
    re.IGNORECASE,
)
_OF_GENES = re.compile(r"genes?|features?", re.IGNORECASE)
_OF_COUNTS = re.compile(r"umi|read|transcript|molecule", re.IGNORECASE)
_BAD = re.compile(r"doublet|multiplet|fail|dead|dying|bad|low_?quality|outlier", re.IGNORECASE)
_CHOICE = re.compile(r"assign|pass|good|keep|singlet|single|valid|(^|_)qc", re.IGNORECASE)
_FURTHER = re.compile(r"treatment|stimul|stim$|time|dose|dosage|concentration|donor|disease|age$", re.IGNORECASE)

_MITOCHONDRIAL = r"(MT|mt)-[A-Za-z]"
_LEAST_MITOCHONDRIAL = 3


@dataclass(frozen=True)
class ColumnFacts:
    """A column of obs."""

    name: str
    kind: str  # labels, integers, numbers, true/false
    levels: int
    missing: int
    examples: list[str]


@dataclass(frozen=True)
class LabelFacts:
    """What the columns of obs are."""

    columns: list[ColumnFacts]
    duplicate_barcodes: int
    perturbations: list[PerturbationFacts]  # columns that may label the perturbation, the likeliest first
    refused: dict[str, str]  # columns that are named as a perturbation, and cannot label it -> what they hold
    contexts: list[str]  # columns that are named as a context: cell lines, cell types, donors
    batches: list[str]  # columns that are named as a batch, donors last
    lacking: dict[str, int]  # columns named as context or batch that lack values, and so cannot be it -> cells
    numbers_of_guides: list[str]
    choices: dict[str, int]  # columns of true and false that may choose the good cells -> cells that are good
    bad: list[str]  # of these, the columns that are false for good cells
    further: list[str]  # columns named as what may make one context several: dose, time, donor

    @property
    def best(self) -> PerturbationFacts | None:
        """The likeliest column of perturbations."""
        return next(iter(self.perturbations), None)

    def good(self, column: str) -> str:
        """The value of good cells in a column of ``choices``, in YAML."""
        return "false" if column in self.bad else "true"


def read_obs(obs: pd.DataFrame, genes: Set[str], asked: str | None) -> LabelFacts:
    """Tell what the columns of obs are.

    Args:
        obs: table of all cells of the file.
        genes: names of the genes of the file.
        asked: the column of perturbations, where the user says; no other is looked for then.
    """
    counted = {str(name): _counted(obs[name]) for name in obs.columns}
    columns = [_column(name, obs[name], counted[name]) for name in counted]
    possible = [one for one in columns if not _is_receptor(counted[one.name])]
    named = [one for one in possible if PERTURBATION.search(one.name) and not _FIGURE.search(one.name)]
    if asked in counted:
        named = [one for one in columns if one.name == asked]
        perturbations = [read_perturbation(obs[asked], counted[asked], genes)]
    else:
        perturbations = _perturbations(obs, possible, counted, genes)
    free = [one for one in columns if not perturbations or one.name != perturbations[0].column]
    whole = {one.name: one.levels for one in free if one.kind in ("labels", "integers")}
    integers = {one.name for one in free if one.kind == "integers"}
    contexts = may_be_contexts({name: n for name, n in whole.items() if name not in integers or is_donor(name)})
    batches = may_be_batches(whole, len(obs))
    missing = {one.name: one.missing for one in columns}
    flags = [one.name for one in columns if one.kind == "true/false" and one.levels == 2]
    bad = [name for name in flags if _BAD.search(name)]
    return LabelFacts(
        columns=columns,
        duplicate_barcodes=int(obs.index.duplicated().sum()),
        perturbations=perturbations,
        refused={one.name: why for one in named if (why := _refusal(one, len(obs)))},
        contexts=[name for name in contexts if not missing[name]],
        batches=[name for name in batches if not missing[name]],
        lacking={name: missing[name] for name in [*contexts[:1], *batches[:1]] if missing[name]},
        numbers_of_guides=[c.name for c in columns if c.kind == "integers" and _NUMBER_OF_GUIDES.match(c.name)],
        choices={
            name: int((obs[name].astype(float) == (name not in bad)).sum())
            for name in flags
            if name in bad or _CHOICE.search(name)
        },
        bad=bad,
        further=[one.name for one in columns if one.levels in range(2, 200) and _FURTHER.search(one.name)],
    )


def transposed(obs: pd.DataFrame, var: pd.DataFrame) -> bool:
    """Whether the rows of a file are genes and its columns are none, as far as ids and mitochondrial genes tell."""
    rows, columns = (pd.Series(table.index.astype(str)) for table in (obs, var))
    return _are_genes(rows) and not _are_genes(columns)


def _are_genes(names: pd.Series) -> bool:
    return is_ensembl(names) or names.str.match(_MITOCHONDRIAL).sum() >= _LEAST_MITOCHONDRIAL


def possible_depths(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns of obs that may hold each cell's depth: integers, not negative, none missing; [cells] int64.

    A number of genes is none: it is below the depth, and would bound it all the same where a file has few genes.
    """
    found = {}
    for name in obs.columns:
        if _OF_GENES.search(str(name)) and not _OF_COUNTS.search(str(name)):
            continue
        if not pd.api.types.is_numeric_dtype(obs[name]) or pd.api.types.is_bool_dtype(obs[name]):
            continue
        values = obs[name].to_numpy(np.float64, na_value=np.nan)
        if ((values >= 0) & (values == np.rint(values)) & (values < 2.0**53)).all() and len(np.unique(values)) > 2:
            found[str(name)] = values.astype(np.int64)
    return found


def _counted(values: pd.Series) -> pd.Series:
    """Value -> cells, the most frequent first."""
    counted = values.value_counts()
    return counted[counted > 0]  # of a categorical column, some values may be in no cell


def _perturbations(
    obs: pd.DataFrame, columns: list[ColumnFacts], counted: dict[str, pd.Series], genes: Set[str]
) -> list[PerturbationFacts]:
    """The columns that may label the perturbation, the likeliest first."""
    read = [
        read_perturbation(obs[one.name], counted[one.name], genes)
        for one in columns
        if one.kind == "labels" and _may_label(one, len(obs))
    ]
    likely = [one for one in read if one.score >= _LEAST_SCORE]
    # A name alone is enough where nothing else is there: what it lacks can be said.
    named = [one for one in read if one.score > 0 and PERTURBATION.search(one.column)]
    found = sorted(likely or named, key=lambda one: -one.score)
    _coarser_first(found, obs)
    return found


def _column(name: str, values: pd.Series, counted: pd.Series) -> ColumnFacts:
    levels = counted.index
    if pd.api.types.is_bool_dtype(values):
        kind = "true/false"
    elif pd.api.types.is_numeric_dtype(levels.dtype):
        kind = "integers" if (levels.to_numpy(float) % 1 == 0).all() else "numbers"
    else:
        kind = "labels"
        counted = counted[~missing_labels(pd.Series(levels, dtype=object))]
    return ColumnFacts(name, kind, len(levels), len(values) - int(counted.sum()), [str(one) for one in levels[:3]])


def _refusal(column: ColumnFacts, cells: int) -> str | None:
    """Why a column that is named as a perturbation labels none; None where it may."""
    examples = ", ".join(column.examples)
    if not column.levels:
        return "holds nothing"
    if column.levels == 1:
        return f"is {column.examples[0]!r} in all cells: controls and perturbations are needed"
    if column.kind == "true/false":
        return "is true or false, and names no target gene"
    if column.kind in ("integers", "numbers"):
        return f"holds numbers ({examples}, …), not labels: write the target genes in their place"
    if column.levels == cells:
        return f"has a label of its own for every cell ({examples}, …): pseudobulk, or barcodes; cells are needed"
    if not _may_label(column, cells):
        return f"has {column.levels:,} labels for {many(cells, 'cell')} ({examples}, …): too few cells of each"
    return None


def _coarser_first(perturbations: list[PerturbationFacts], obs: pd.DataFrame) -> None:
    """Put what was done before what tells a donor too: ctrl_101 and ctrl_102 of a sample are one ctrl."""
    for one in perturbations[1:]:
        first = perturbations[0]
        pairs = obs[[first.column, one.column]].drop_duplicates()
        coarser = len(first.controls) > len(one.controls) > 0 and not pairs[first.column].duplicated().any()
        if coarser and max(one.genes, one.by_pattern) >= max(first.genes, first.by_pattern):
            perturbations.remove(one)
            perturbations.insert(0, one)


def _is_receptor(counted: pd.Series) -> bool:
    """Whether labels are genes of T and B cell receptors, which are found in a cell and never its perturbation."""
    labels = pd.Series(counted.index, dtype=object).astype(str)
    named = labels[~missing_labels(labels)]
    return bool(len(named) and named.str.match(r"(TR[ABGD]|IG[HKL])[VDJC]?[A-Z0-9]*\d").mean() >= 0.5)


def _may_label(column: ColumnFacts, cells: int) -> bool:
    return 2 <= column.levels <= min(_MOST_LEVELS, max(cells // 2, 2))
