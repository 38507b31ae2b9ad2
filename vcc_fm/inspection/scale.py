"""On which scale the cells of a sample are, and which column of obs holds their depths before normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.sources.matrix import Block
from vcc_fm.sources.proof import FACTOR, FEW, PROVED, Reading, Totals
from vcc_fm.sources.reading import TotalsError, find_reading
from vcc_fm.sources.scaled import fit
from vcc_fm.sources.values import AmbiguousError, NotCountsError, check, decide, describe

BY_COLUMN = "no counts, but cells scaled or something else; it is stored by column, and only --all can tell"
_MOST = 0.99  # share of the cells that a column must not contradict
_ALIKE = 0.8  # rank correlation of a column with what a count is in a cell, which falls with the cell's depth


@dataclass(frozen=True)
class TotalsFacts:
    """What an obs column is good for as depth before normalisation."""

    column: str
    use: Totals
    proved: float
    """Share of the cells whose counts are proved with it."""


class Told(NamedTuple):
    """What a sample of cells is."""

    reading: Reading | float | None
    """How the values give counts: the base of a log (0 for none), or as scaled cells; None where they give none."""
    sentence: str


def tell(block: Block, genes: int, whole: bool) -> Told:
    """Tell on which scale cells are.

    Args:
        block: some cells.
        genes: number of genes, with a value or without.
        whole: whether the block holds all values of the cells.
    """
    values = block.data
    if not np.count_nonzero(values):
        return Told(None, "no value above zero" + ("" if whole else " in the columns looked at"))
    try:
        scale, base = decide(values, ("counts", "log1p-counts"))
    except AmbiguousError as error:
        if values.dtype == np.float16:  # anything fits
            return Told(None, describe(values, block.indptr, genes))
        return Told(None, f"log1p of counts, as it seems, but they cannot be had back: {error.reason}")
    except NotCountsError:
        pass
    else:
        return Told(base, "raw counts" if scale == "counts" else "log1p of raw counts")
    try:
        check(values)
    except NotCountsError:
        return Told(None, describe(values, block.indptr, genes))
    if not whole and values.dtype != np.float16:
        return Told(None, BY_COLUMN)
    reading = find_reading(values, block.indptr, ("normalised", "log-normalised"), None)
    return Told(reading, "scaled counts" if reading else describe(values, block.indptr, genes))


def try_totals(
    block: Block, rows: np.ndarray, reading: Reading | float | None, totals: dict[str, np.ndarray]
) -> tuple[list[TotalsFacts], tuple[str, Reading] | None]:
    """Find which columns can be the depths of scaled cells.

    Args:
        block: whole cells.
        rows: [cells] int64, where they are in the file.
        reading: how they are read without depths.
        totals: column -> [all cells of the file] int64, UMI.

    Returns:
        The columns that can be, best first; and the one that tells more than the values alone, with the reading then.
    """
    if not isinstance(reading, Reading):
        return [], None
    alone = fit(block.data, block.indptr, reading, None)
    proved = alone.code == PROVED
    read = np.flatnonzero((alone.unit > 0) & np.isin(alone.code, (PROVED, FEW, FACTOR)))
    tried: list[tuple[TotalsFacts, Reading]] = []
    for column, depths in totals.items():
        known = depths[rows]
        if not len(read) or (known[read] >= alone.depth[read]).mean() < _MOST:
            continue  # no depth is below the counts that were seen; trying costs far more than this
        try:
            found = find_reading(
                block.data, block.indptr, ("log-normalised" if reading.base else "normalised",), known
            )
        except TotalsError:
            continue
        # Any large number bounds a depth; one that does not rise with it knows nothing of it.
        if found is not None and (found.totals != "bound" or _correlation(known[read], alone.unit[read]) < -_ALIKE):
            cells = fit(block.data, block.indptr, found, known)
            tried.append((TotalsFacts(column, found.totals, float((cells.code == PROVED).mean())), found))
    # Where two prove as much, depths that equal the cells' own say more than those that only bound them.
    tried.sort(key=lambda one: (-one[0].proved, ("exact", "sum", "bound", "none").index(one[0].use)))
    facts = [one for one, _ in tried]
    if facts and (facts[0].proved > proved.mean() or (facts[0].use != "bound" and facts[0].proved == proved.mean())):
        return facts, (facts[0].column, tried[0][1])
    return facts, None


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation (Spearman)."""
    ranks = pd.DataFrame({"one": one, "other": other}).rank()
    return float(ranks["one"].corr(ranks["other"]))
