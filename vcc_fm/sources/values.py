"""Value scale: raw counts out of a stored matrix, proved value by value, or the reason why they cannot be had.

Two scales are read. ``counts`` are integers. ``log1p-counts`` are v = ln(1 + c): c = round(exp(v) - 1) is computed in
float64, and ln(1 + c), rounded to the stored precision, must give v back. Nothing else is taken for counts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Scale = Literal["counts", "log1p-counts"]

COUNT_TOLERANCE = 1e-6  # distance to the next integer: absolute up to 1, relative above it, never above COUNT_SLACK
COUNT_SLACK = 1e-3
LOG_ULP = 4  # distance of v to ln(1 + c) in units of the last place; vectorised log1p implementations differ by that
COUNT_LIMIT = 2**31  # counts are kept as int32


class NotCountsError(Exception):
    """A value that cannot be read as a count on the asked scale.

    Attributes:
        position: index of the first such value in the array that was checked.
        reason: what is wrong with it, to be read after 'holds VALUE: '.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class AmbiguousError(NotCountsError):
    """A value that several neighbouring counts would have given at the stored precision."""


def recover(values: np.ndarray, scale: Scale) -> tuple[np.ndarray, float]:
    """Read stored values as counts.

    Args:
        values: [n] stored values, integer or float, in the precision of the file.
        scale: what they are said to be.

    Returns:
        counts [n] int32 (UMI), and the largest residual: the distance of a value to what its count should have been
        stored as, in units of the stored values.

    Raises:
        NotCountsError: at the first value that is not finite, negative, no count on this scale, or 2**31 and above.
        AmbiguousError: at the largest value, where the stored precision cannot tell it from its neighbours.
    """
    if not values.size:
        return np.zeros(0, np.int32), 0.0
    if values.dtype.kind == "f":
        _refuse_first(~np.isfinite(values), "not a finite number")
    _refuse_first(values < 0, "negative")
    if scale == "log1p-counts":
        return _recover_log(values)
    if values.dtype.kind != "f":
        _refuse_first(values >= COUNT_LIMIT, "too large for a count")
        return values.astype(np.int32), 0.0
    exact = values.astype(np.float64)
    counts = np.rint(exact)
    residual = np.abs(exact - counts)
    _refuse_first(residual > np.clip(COUNT_TOLERANCE * exact, COUNT_TOLERANCE, COUNT_SLACK), "not an integer")
    _refuse_first(counts >= COUNT_LIMIT, "too large for a count")
    largest = int(counts.argmax())
    # The significand holds every integer up to 2**(nmant + 1); above, neighbours share one stored value.
    if counts[largest] > 2.0 ** (np.finfo(values.dtype).nmant + 1):
        raise AmbiguousError(largest, f"{values.dtype} cannot tell this count from its neighbours")
    return counts.astype(np.int32), float(residual.max())


def _recover_log(values: np.ndarray) -> tuple[np.ndarray, float]:
    if values.dtype.kind != "f":
        _refuse_first(values > 0, "an integer, which the log1p of a count never is")
        return values.astype(np.int32), 0.0
    exact = values.astype(np.float64)
    _refuse_first(exact > np.log1p(COUNT_LIMIT - 1), "too large for the log1p of a count")
    counts = np.rint(np.expm1(exact))
    stored = np.log1p(counts).astype(values.dtype).astype(np.float64)
    residual = np.abs(stored - exact)
    tolerance = LOG_ULP * np.spacing(values).astype(np.float64)
    _refuse_first(residual > tolerance, "not the log1p of an integer")
    # The gap between ln(1 + c) and ln(2 + c) shrinks with c while the tolerance grows: the largest value decides.
    largest = int(exact.argmax())
    gap = np.log1p(1.0 / (counts[largest] + 1.0))
    if values.dtype == np.float16 or gap <= 2 * tolerance[largest]:
        raise AmbiguousError(largest, f"a log in {values.dtype} cannot tell this count from its neighbours")
    return counts.astype(np.int32), float(residual.max())


def _refuse_first(bad: np.ndarray, reason: str) -> None:
    if bad.any():
        raise NotCountsError(int(bad.argmax()), reason)


def decide(values: np.ndarray) -> Scale:
    """Tell which scale values are on; every value must agree with it.

    Args:
        values: [n] stored values of a sample of cells.

    Raises:
        NotCountsError: they are on neither scale; position and reason are those of the reading as counts.
        AmbiguousError: they are the log1p of counts, at a precision that does not give the counts back.
    """
    try:
        recover(values, "counts")
    except AmbiguousError:
        raise
    except NotCountsError as as_counts:
        try:
            recover(values, "log1p-counts")
        except AmbiguousError:
            raise
        except NotCountsError:
            raise as_counts from None
        return "log1p-counts"
    return "counts"


def describe(values: np.ndarray, indptr: np.ndarray) -> str:
    """Say what values look like, to be read after 'the values look like '.

    Args:
        values: [n] stored values of some cells, one cell after the other.
        indptr: [cells + 1] int, where each cell starts in ``values``.
    """
    if not np.isfinite(values).all():
        return "a matrix with missing or infinite values"
    if (values < 0).any():
        return "z-scored, centred or otherwise residual expression"
    try:
        scale = decide(values)
    except NotCountsError:
        exact = values.astype(np.float64)
    else:
        return ("raw counts" if scale == "counts" else "log1p of raw counts") + f" (set values to {scale})"
    # Only values below this are taken for logs: ln(1 + 1e6), the log of a count per million, is 13.8.
    if exact.max() < 15.0:
        powers = np.exp2(exact) - 1.0
        if (np.abs(powers - np.rint(powers)) <= 1e-4 * np.maximum(powers, 1.0)).all():
            return "log2(1 + counts), which is not read"
        if _multiples(np.expm1(exact), indptr) > 0.5:
            return "log-normalised counts (log1p of counts scaled per cell)"
    if _multiples(exact, indptr) > 0.5:
        return "normalised counts (scaled per cell)"
    return "log-normalised or otherwise log-transformed counts" if exact.max() < 15.0 else "normalised counts"


def _multiples(values: np.ndarray, indptr: np.ndarray) -> float:
    """Fraction of the cells whose non-zero values are integer multiples of their smallest one."""
    cell = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))[values > 0]
    values = values[values > 0]
    smallest = np.full(len(indptr) - 1, np.inf)
    np.minimum.at(smallest, cell, values)
    ratio = values / smallest[cell]
    off = np.abs(ratio - np.rint(ratio)) > 1e-3 * ratio
    told = np.bincount(cell, minlength=len(smallest)) >= 3  # one or two values are multiples too easily
    wrong = np.bincount(cell, weights=off, minlength=len(smallest)) > 0
    return float((told & ~wrong).sum() / max(told.sum(), 1))
