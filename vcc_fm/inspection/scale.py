"""On which scale the cells of a sample are, and which column of obs holds their depths before normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.sources.matrix import Block
from vcc_fm.sources.proof import FACTOR, FEW, PROVED, Reading, ScaledValues, Totals
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
    proved: float  # share of the cells whose counts are proved with it


class Told(NamedTuple):
    """What a sample of cells is."""

    reading: Reading | float | None  # base of the log of counts (0 for none), or as scaled cells; None: no counts
    sentence: str
    totals: str | None = None  # the column of depths that the reading uses: it tells more than the values alone
    tried: tuple[TotalsFacts, ...] = ()  # the columns that can be the depths, the best first


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
        return Told(base, "raw counts" if scale == "counts" else "log1p of raw counts")
    except AmbiguousError as error:
        if values.dtype != np.float16:  # in float16 anything fits
            return Told(None, f"log1p of counts, as it seems, but they cannot be had back: {error.reason}")
    except NotCountsError:
        pass
    try:
        check(values)
    except NotCountsError:
        return Told(None, describe(values, block.indptr, genes))
    if not whole and values.dtype != np.float16:
        return Told(None, BY_COLUMN)
    reading = find_reading(values, block.indptr, ("normalised", "log-normalised"), None)
    return Told(reading, "scaled counts" if reading else describe(values, block.indptr, genes))


def with_totals(told: Told, block: Block, rows: np.ndarray, totals: dict[str, np.ndarray]) -> Told:
    """Find which columns can be the depths of scaled cells, and whether one tells more than the values alone.

    Args:
        told: of these cells, without depths.
        block: whole cells.
        rows: [cells] int64, where they are in the file.
        totals: column -> [all cells of the file] int64, UMI.
    """
    if not isinstance(told.reading, Reading):
        return told
    alone = fit(block.data, block.indptr, told.reading, None)
    proved = float((alone.code == PROVED).mean())
    read = np.flatnonzero((alone.unit > 0) & np.isin(alone.code, (PROVED, FEW, FACTOR)))
    tried: list[tuple[TotalsFacts, Reading]] = []
    for column, depths in totals.items():
        known = depths[rows]
        if not len(read) or (known[read] >= alone.depth[read]).mean() < _MOST:
            continue  # no depth is below the counts that were seen; trying costs far more than this
        scale: ScaledValues = "log-normalised" if told.reading.base else "normalised"
        try:
            found = find_reading(block.data, block.indptr, (scale,), known)
        except TotalsError:
            continue
        # Any large number bounds a depth; one that does not rise with it knows nothing of it.
        if found is not None and (found.totals != "bound" or _correlation(known[read], alone.unit[read]) < -_ALIKE):
            cells = fit(block.data, block.indptr, found, known)
            tried.append((TotalsFacts(column, found.totals, float((cells.code == PROVED).mean())), found))
    if not tried:
        return told
    # Where two prove as much, depths that equal the cells' own say more than those that only bound them.
    tried.sort(key=lambda one: (-one[0].proved, ("exact", "sum", "bound", "none").index(one[0].use)))
    facts, (best, reading) = tuple(one for one, _ in tried), tried[0]
    if best.proved > proved or (best.use != "bound" and best.proved == proved):
        return told._replace(reading=reading, totals=best.column, tried=facts)
    return told._replace(tried=facts)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation (Spearman)."""
    return float(pd.Series(one).rank().corr(pd.Series(other).rank()))
