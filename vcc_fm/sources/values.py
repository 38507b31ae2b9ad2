"""Value scale: raw counts out of stored values, proved value by value, or the reason why they cannot be had.

``counts`` are integers. ``log1p-counts`` are v = log(1 + c) of base e, 2 or 10: c = round(base**v - 1) is computed in
float64, and log(1 + c), rounded to the stored precision, must give v back. Where each cell was scaled before
(``normalised``, ``log-normalised``), a value alone says nothing: ``scaled.py`` reads whole cells.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from vcc_fm.sources.integers import mix_of
from vcc_fm.sources.proof import BASES

Scale = Literal["counts", "log1p-counts", "normalised", "log-normalised"]

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


def recover(values: np.ndarray, base: float) -> tuple[np.ndarray, float]:
    """Read stored values as counts.

    Args:
        values: [n] stored values, integer or float, in the precision of the file.
        base: of the log1p-counts that they are said to be (e, 2 or 10), or 0 for counts.

    Returns:
        counts [n] int32 (UMI), and the largest residual: the distance of a value to what its count should have been
        stored as, in units of the stored values.

    Raises:
        NotCountsError: at the first value that is not finite, negative, no count on this scale, or 2**31 and above.
        AmbiguousError: at the largest value, where the stored precision cannot tell it from its neighbours.
    """
    if not values.size:
        return np.zeros(0, np.int32), 0.0
    check(values)
    if base:
        return _recover_log(values, math.log(base))
    if values.dtype.kind != "f":
        _refuse_first(values >= COUNT_LIMIT, "too large for a count")
        return values.astype(np.int32), 0.0
    # Half precision has no number that is too large for a count, and none to compare with.
    exact = values.astype(np.float32) if values.dtype.itemsize < 4 else values
    counts, residual = np.rint(exact), np.zeros(1)
    if not np.array_equal(counts, exact):
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


def _recover_log(values: np.ndarray, log: float) -> tuple[np.ndarray, float]:
    if values.dtype.kind != "f":
        _refuse_first(values > 0, "an integer, which the log1p of a count never is")
        return values.astype(np.int32), 0.0
    exact = values.astype(np.float64)
    _refuse_first(exact > np.log1p(COUNT_LIMIT - 1) / log, "too large for the log1p of a count")
    counts = np.rint(np.expm1(exact * log))
    stored = (np.log1p(counts) / log).astype(values.dtype).astype(np.float64)
    residual = np.abs(stored - exact)
    tolerance = LOG_ULP * np.spacing(values).astype(np.float64)
    _refuse_first(residual > tolerance, "not the log1p of an integer")
    # The gap between log(1 + c) and log(2 + c) shrinks with c while the tolerance grows: the largest value decides.
    largest = int(exact.argmax())
    gap = np.log1p(1.0 / (counts[largest] + 1.0)) / log
    if values.dtype == np.float16 or gap <= 2 * tolerance[largest]:
        raise AmbiguousError(largest, f"a log in {values.dtype} cannot tell this count from its neighbours")
    return counts.astype(np.int32), float(residual.max())


def check(values: np.ndarray) -> None:
    """Refuse what is an expression value on no scale.

    Raises:
        NotCountsError: at the first value that is not finite, or negative.
    """
    if values.dtype.kind == "f":
        _refuse_first(~np.isfinite(values), "not a finite number")
    _refuse_first(values < 0, "negative")


def _refuse_first(bad: np.ndarray, reason: str) -> None:
    if bad.any():
        raise NotCountsError(int(bad.argmax()), reason)


def decide(values: np.ndarray, scales: tuple[Scale, ...]) -> tuple[Scale, float]:
    """Tell which scale values are on, where each value alone tells; every one must agree.

    Args:
        values: [n] stored values of a sample of cells.
        scales: the scales to try; normalised ones are none of them.

    Returns:
        The scale, and the base of the log (0 for counts).

    Raises:
        NotCountsError: they are on none of these scales; position and reason are those of the first reading tried.
        AmbiguousError: they are the log1p of counts, at a precision that does not give the counts back, or to a base
            that too few values cannot tell.
    """
    readings: list[tuple[Scale, float]] = [("counts", 0.0)] if "counts" in scales else []
    # Any integer is the log2 of a power of two: where all are, they are counts, or nothing that can be told.
    bases = [math.e] if (values == np.rint(values)).all() else list(BASES.values())
    readings += [("log1p-counts", base) for base in bases] if "log1p-counts" in scales else []
    errors: list[NotCountsError] = []
    fitting = []
    for scale, base in readings:
        try:
            recover(values, base)
        except NotCountsError as error:
            errors.append(error)
        else:
            if scale == "counts":
                return scale, base
            fitting.append((scale, base))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AmbiguousError(int(values.argmax()), "the log1p of a count to more than one base")
    raise next((error for error in errors if isinstance(error, AmbiguousError)), errors[0])


def describe(values: np.ndarray, indptr: np.ndarray, columns: int) -> str:
    """Say what values look like, to be read after 'the values look like '.

    Args:
        values: [n] stored values of some cells, one cell after the other.
        indptr: [cells + 1] int, where each cell starts in ``values``.
        columns: number of genes, with a value or without.
    """
    if not np.isfinite(values).all():
        return "a matrix with missing or infinite values"
    if (values < 0).any():
        return "z-scored, centred, batch-corrected or otherwise residual expression, which counts do not follow from"
    try:
        scale, _ = decide(values, ("counts", "log1p-counts"))
    except NotCountsError:
        pass
    else:
        return ("raw counts" if scale == "counts" else "log1p of raw counts") + f" (set values to {scale})"
    if values.dtype == np.float16:
        return "expression in float16, which is too coarse to tell counts"
    from vcc_fm.sources.reading import find_reading  # compiles: no part of what every command imports

    mix = mix_of(values, indptr)
    if mix is not None:
        return f"{mix}, and no one scale reads both"
    for tried in ("normalised", "log-normalised"):
        if find_reading(values, indptr, (tried,), None) is not None:
            return f"{tried} counts (set values to {tried})"
    if np.count_nonzero(values) > 0.95 * (len(indptr) - 1) * columns:
        return "denoised or model-based expression (scVI, MAGIC, imputation): hardly a zero, no multiples of a unit"
    # Only values below this are taken for logs: ln(1 + 1e6), the log of a count per million, is 13.8.
    kind = "log-transformed" if values.max() < 15.0 else "normalised"
    return f"{kind} expression that is no multiple of one unit per cell (corrected, rounded, or no UMI counts)"
