"""How a file of scaled cells is to be read, found from a sample of them: log, precision, target, use of depths."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vcc_fm.sources.proof import BASES, FACTOR, FEW, PROVED, Fit, Reading, ScaledValues, Totals
from vcc_fm.sources.scaled import fit, strange

_LEAST_TELLING = 10  # values of the sample: each fits a wrong reading with a chance below 1 in 1000 per multiple tried
_USUAL_TARGETS = (1e3, 1e4, 1e5, 1e6)
_MOST = 0.99  # share of the sampled cells that must agree with what is taken for the rule of the file
_MODE = 0.2  # share of the sampled cells whose depth is the total: two that agree to the last digits are no chance


class TotalsError(Exception):
    """The depths that the recipe names are not those of the values; says what was found."""


def find_reading(
    values: np.ndarray, indptr: np.ndarray, scales: tuple[ScaledValues, ...], totals: np.ndarray | None
) -> Reading | None:
    """How cells are scaled, or ``None`` where they are no scaled counts.

    Args:
        values: [n] float values of whole cells, finite and not negative.
        indptr: [cells + 1] int64, where each cell starts in ``values``.
        scales: the scales to try.
        totals: [cells] int64 depth of each cell before normalisation (UMI), if known.

    Raises:
        TotalsError: the cells are scaled counts, and ``totals`` are not their depths.
    """
    if values.dtype.kind != "f" or values.dtype == np.float16:
        return None
    # Values computed in float32 are often stored as float64.
    precisions = [values.dtype] + ([np.dtype(np.float32)] if values.dtype == np.float64 else [])
    bases = [0.0] * ("normalised" in scales) + list(BASES.values()) * ("log-normalised" in scales)
    best, found = 0.5, None
    for precision in precisions:
        for base in bases:
            reading = Reading(base, precision)
            share = _share(fit(values, indptr, reading, None))
            if share > best + 0.01 * (found is not None):
                best, found = share, reading
    return None if found is None else _with_target(values, indptr, found, totals)


def _share(cells: Fit) -> float:
    """Share of the cells that a reading explains, among those that could tell that it is wrong."""
    explained = _explained(cells)
    told = explained & (cells.telling > 0)
    refused = (cells.code != PROVED) & ~explained
    if cells.telling[told].sum() < _LEAST_TELLING:
        return 0.0
    if strange(cells.fine[explained].sum(), cells.divisible[explained].sum(axis=0)):
        return 0.0
    return float(told.sum() / (told | refused).sum())


def _explained(cells: Fit) -> np.ndarray:
    return np.isin(cells.code, (PROVED, FEW, FACTOR)) & (cells.unit > 0)


def _with_target(values: np.ndarray, indptr: np.ndarray, reading: Reading, totals: np.ndarray | None) -> Reading:
    """Add what is common to the cells."""
    cells = fit(values, indptr, reading, None)
    proved = (cells.code == PROVED) & (cells.unit > 0)
    # Cells of a small panel are not proved alone; a common factor is rare in them all the same.
    likely = _explained(cells) & (cells.telling > 0)
    anchors = np.flatnonzero(proved if proved.sum() >= max(10, likely.sum() / 2) else likely)
    unit, depth = cells.unit[anchors], cells.depth[anchors]
    slack = cells.spread[anchors] + 16 * reading.eps
    target = _common(unit * depth, slack) if len(np.unique(depth)) > 2 else 0.0
    if not target:
        target = next((usual for usual in _USUAL_TARGETS if _gives_depths(usual, unit, depth, slack)), 0.0)
    use: Totals = "none"
    if totals is not None:
        use, target = _use_of_totals(unit, depth, slack, target, totals[anchors])
    return dataclasses.replace(reading, target=_snapped(target, 16 * reading.eps), totals=use)


def _common(numbers: np.ndarray, slack: np.ndarray) -> float:
    """What (nearly) all numbers are, within their relative error; 0 where they differ."""
    middle = float(np.median(numbers))
    return middle if (np.abs(numbers / middle - 1.0) <= 2 * slack).mean() >= _MOST else 0.0


def _gives_depths(
    target: float, unit: np.ndarray, depth: np.ndarray, slack: np.ndarray, coarsest: float = 0.02
) -> bool:
    """Whether target / unit is a sum of counts in (nearly) all cells: an integer, and not below the counts seen.

    And no factor is common to all. ``coarsest`` is the largest error of a depth that can tell an integer.
    """
    whole = target / unit
    error = whole * slack
    if len(whole) < 10 or np.median(error) > coarsest:
        return False
    fitting = (np.abs(whole - np.rint(whole)) <= error) & (whole + 0.5 >= depth)
    if fitting.mean() < 0.9:  # cells with a common factor of 2 have half-integers
        return False
    # 10,000 gives integers too where the target is 2,500: four times each depth. In deep cells any number fits.
    telling = whole[fitting & (error <= coarsest)]
    return int(np.gcd.reduce(np.rint(telling).astype(np.int64))) == 1


def _use_of_totals(
    unit: np.ndarray, depth: np.ndarray, slack: np.ndarray, target: float, totals: np.ndarray
) -> tuple[Totals, float]:
    """What depths are good for, and the target, which they may tell."""
    scaled = unit * totals
    middle = float(np.median(scaled))
    if middle > 0 and len(np.unique(totals)) > 2 and _are_factors(scaled / middle, slack):
        return "exact", middle
    if _are_factors(totals / depth, np.zeros(len(depth))):
        return "sum", target
    whole = np.maximum(target / unit, depth)
    below = totals < whole * (1.0 - slack) - 0.5
    if below.any():
        raise TotalsError(
            f"in {int(below.sum())} of {len(below)} sampled cells it is less than the counts add up to "
            f"(median {np.median(totals):g}, the counts' {np.median(whole):g})"
        )
    return "bound", target or _target_below(unit, depth, slack, totals)


def _target_below(unit: np.ndarray, depth: np.ndarray, slack: np.ndarray, totals: np.ndarray) -> float:
    """The target of cells whose depths are at most their totals; 0 where none is found.

    Quality metrics are often older than the last filter of genes, which took some counts of some cells away. The
    target is unit x total where nothing went (the mode), or else unit x (total - n), with the n that makes the depth
    of the other cells an integer too.
    """
    scaled = unit * totals
    order = np.argsort(scaled)
    ends = np.searchsorted(scaled[order], scaled[order] * (1 + 2 * np.median(slack)))
    first = int((ends - np.arange(len(ends))).argmax())
    same = order[first : ends[first]]
    candidates = np.zeros(0)
    if len(same) >= max(10, _MODE * len(order)) and len(np.unique(totals[same])) > 2:
        candidates = np.median(scaled[same])[None]
    coarsest = 0.1 if len(unit) >= 30 else 0.02  # of thousands of candidates none fits 27 of 30 cells by chance
    finest = np.argsort(slack * totals)[:12]
    for cell in finest[:3]:  # a wrong factor in one of them does not matter
        tried = unit[cell] * np.arange(totals[cell], totals[cell] // 2, -1)
        whole = tried[:, None] / unit[finest]
        error = whole * slack[finest]
        near = ((np.abs(whole - np.rint(whole)) <= error) & (error < coarsest)).sum(axis=1) >= len(finest) - 2
        candidates = np.r_[
            candidates, [one for one in tried[near] if _gives_depths(one, unit, depth, slack, coarsest)]
        ]
    bounded = candidates <= np.quantile(scaled * (1 + 2 * slack), 1 - _MOST)
    return float(candidates[bounded.argmax()]) if bounded.any() else 0.0


def _are_factors(ratio: np.ndarray, slack: np.ndarray) -> bool:
    """Whether ratios are 1 in most cells and integers in (nearly) all: common factors of counts are rare."""
    whole = np.abs(ratio - np.rint(ratio)) <= 2 * slack * ratio
    return bool(whole.mean() >= _MOST and (whole & (np.rint(ratio) == 1)).mean() > 0.5)


def _snapped(target: float, slack: float) -> float:
    """A power of ten that is meant, or a multiple of a half, as the median of integers is; else as measured."""
    if target > 0:
        power = 10.0 ** round(math.log10(target))
        if abs(target / power - 1.0) <= slack:
            return power
        half = round(2 * target) / 2
        if abs(half - target) <= slack * target < 0.05:
            return half
    return target
