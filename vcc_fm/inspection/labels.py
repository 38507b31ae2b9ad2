"""What the columns of obs are: which one labels the perturbation, which label is the control, context, batch."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.inspection.perturbation import PERTURBATION, GeneNames, PerturbationFacts, read_perturbation
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
class LabelFacts:
    """What the columns of obs are."""

    columns: list[ColumnFacts]
    duplicate_barcodes: int
    perturbations: list[PerturbationFacts]
    """Columns that may label the perturbation, the likeliest first."""
    refused: dict[str, str]
    """Columns that are named as a perturbation, or are said to be it, but cannot label it -> what they hold."""
    contexts: list[str]
    """Columns that are named as a context: cell lines, cell types, donors."""
    batches: list[str]
    """Columns that are named as a batch, donors last."""
    lacking: dict[str, int]
    """Columns that are named as a context or a batch -> cells without a value, where that keeps them from being it."""
    numbers_of_guides: list[str]
    choices: dict[str, int]
    """Columns of true and false that may choose the good cells -> cells that are good."""
    bad: list[str]
    """Of these, the columns that are false for good cells."""
    further: list[str]
    """Columns with several levels that are named as what may make one context several (dose, time, donor)."""


def read_obs(obs: pd.DataFrame, genes: GeneNames, asked: str | None) -> LabelFacts:
    """Tell what the columns of obs are.

    Args:
        obs: table of all cells of the file.
        genes: names of the genes of the file.
        asked: the column of perturbations, where the user says; it comes first.
    """
    counted = {str(name): obs[name].value_counts() for name in obs.columns}
    columns = [_column(name, obs[name], counted[name]) for name in counted]
    of = {column.name: column for column in columns}
    candidates = [
        c
        for c in columns
        if c.name == asked
        or (PERTURBATION.search(c.name) and not _FIGURE.search(c.name) and not _is_receptor(counted[c.name]))
    ]
    refused = {c.name: why for c in candidates if (why := _refusal(c, len(obs)))}
    labels = [
        c.name for c in columns if c.kind == "labels" and _may_label(c, len(obs)) and not _is_receptor(counted[c.name])
    ]
    perturbations = [read_perturbation(obs[name], counted[name], genes) for name in labels]
    likely = [one for one in perturbations if one.score >= _LEAST_SCORE]
    # A name alone is enough where nothing else is there: what it lacks can be said.
    named = [one for one in perturbations if one.score > 0 and PERTURBATION.search(one.column)]
    perturbations = [one for one in likely or named if one.column != asked]
    perturbations.sort(key=lambda one: -one.score)
    _coarser_first(perturbations, obs)
    if asked in of:
        perturbations.insert(0, read_perturbation(obs[asked], counted[asked], genes))
    free = [c for c in columns if c.name not in {one.column for one in perturbations[:1]}]
    levels = {c.name: c.levels for c in free if c.kind == "labels" or (c.kind == "integers" and is_donor(c.name))}
    contexts = may_be_contexts(levels)
    batches = may_be_batches({c.name: c.levels for c in free if c.kind in ("labels", "integers")}, len(obs))
    choices = [c.name for c in columns if c.kind == "true/false" and c.levels == 2]
    bad = [name for name in choices if _BAD.search(name)]
    return LabelFacts(
        columns=columns,
        duplicate_barcodes=int(obs.index.duplicated().sum()),
        perturbations=perturbations,
        refused=refused,
        contexts=[name for name in contexts if not of[name].missing],
        batches=[name for name in batches if not of[name].missing],
        lacking={name: of[name].missing for name in [*contexts[:1], *batches[:1]] if of[name].missing},
        numbers_of_guides=[c.name for c in columns if c.kind == "integers" and _NUMBER_OF_GUIDES.match(c.name)],
        choices={
            name: int((obs[name].astype(float) == (name not in bad)).sum())
            for name in choices
            if name in bad or _CHOICE.search(name)
        },
        bad=bad,
        further=[c.name for c in columns if c.levels in range(2, 200) and _FURTHER.search(c.name)],
    )


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


def _column(name: str, values: pd.Series, counted: pd.Series) -> ColumnFacts:
    counted = counted[counted.to_numpy() > 0]
    levels = counted.index
    labelled = int(counted.sum())
    kind = "labels"
    if pd.api.types.is_bool_dtype(values):
        kind = "true/false"
    elif pd.api.types.is_numeric_dtype(levels.dtype):
        kind = "integers" if (levels.to_numpy(float) % 1 == 0).all() else "numbers"
    if kind == "labels":
        labelled = int(counted[~missing_labels(pd.Series(levels, dtype=object))].sum())
    return ColumnFacts(name, kind, len(levels), len(values) - labelled, [str(level) for level in levels[:3]])


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
    labels = pd.Series(counted.index[counted.to_numpy() > 0], dtype=object).astype(str)
    named = labels[~missing_labels(labels)]
    return bool(len(named) and named.str.match(r"(TR[ABGD]|IG[HKL])[VDJC]?[A-Z0-9]*\d").mean() >= 0.5)


def _may_label(column: ColumnFacts, cells: int) -> bool:
    return 2 <= column.levels <= min(_MOST_LEVELS, max(cells // 2, 2))
