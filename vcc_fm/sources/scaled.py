"""Counts out of scaled cells, a cell at a time: v = c u or v = log(1 + c u), where each cell has a unit u of its own.

**What is assumed.** A stored value is the scaled count, rounded: at most four roundings between the count and c u
(division by the depth, times the target, storage), and in a log at most four units in the last place of v more
(implementations of log1p differ by that, and another base is one more division). With eps the distance from 1 to the
next number of the precision and L the natural log of the base, a linearised value x = exp(L v) - 1 is therefore within

    tol = 4 eps x + 4 eps v L (1 + x)        (d x / d v = L (1 + x); the second term is for logs only)

of a multiple of u. A rounding of u itself is common to the cell, and u is fitted.

**How u is found.** The smallest value is k times the unit, for k = 1, 2, …, until every value is a multiple. Each
value holds u in an interval, [(x - tol) / m, (x + tol) / m], and the intersection of all of them is kept, so that what
is found is not a best fit: no other multiple is possible for any value. A value is only taken as a multiple where its
interval, in units, is less than half a unit wide.

**When a cell is proved.** Values that are multiples of u are multiples of u / 2 too; normalisation forgets a factor
that all counts of a cell share. It is excluded in one of these ways:

- *totals, exact*: u = target / total follows from the depth of the cell, with the target common to the file.
- *totals, sum*: the counts of a cell add up to its total.
- *totals, bound*: a common factor of 2 would make the cell deeper than its total.
- *values alone*: the cell has at least ``LEAST_VALUES`` fine values. Given any rate, a Poisson count above zero is
  even with probability (1 - exp(-rate)) / 2 < 1/2, so n counts drawn at any rates are all even with less than 2**-n,
  and have a larger common factor less often still: below one in a million cells for 20 values. This is a premise
  about counts, and the one thing that the values cannot show: twice a cell's counts give the same stored values.

A value is *fine* when its interval is at most 1/1000 of a unit wide. Wrong multiples c k / c_min of a cell with
smallest count c_min miss an integer by at least 1 / c_min, so fine values cannot be wrong multiples while c_min is
below 1000; then what the fine values say of the unit (their greatest common divisor must be 1) holds for all others.

By the same premise, multiples of which too many are divisible by a prime are no counts, but fractions of counts, of
which some are halves or thirds (reads that were shared out over genes): ``strange`` refuses them, for a cell and, as
the sum over cells says more, for a file. A Poisson count above zero is divisible by 2 with a probability below 1/2, by
3 below 1/3 and by larger primes less often (the largest over all rates).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from vcc_fm.sources.proof import (
    COARSE,
    CONTRADICTED,
    FACTOR,
    FEW,
    FINE,
    LEAST_VALUES,
    LEAST_WITH_TOTALS,
    NO_UNIT,
    PROVED,
    STRANGE,
    Fit,
    Reading,
    Totals,
)

MULTIPLES_TRIED = 16
ROUNDINGS = 4

_PRIMES = np.array([2, 3, 5, 7, 11, 13])
_OFTEN = np.array([1 / 2, 1 / 3, 0.204, 0.158, 0.121, 0.111])  # largest probability of that for a count above zero
_RARE = math.log(2.0**LEAST_VALUES)
# Bit p of entry m says whether prime p divides m.
_DIVIDED_BY = ((np.arange(2048)[:, None] % _PRIMES == 0) << np.arange(len(_PRIMES))).sum(1)

_NONE, _EXACT, _SUM, _BOUND = range(4)
_MODES: dict[Totals, int] = {"none": _NONE, "exact": _EXACT, "sum": _SUM, "bound": _BOUND}


def fit(values: np.ndarray, indptr: np.ndarray, reading: Reading, totals: np.ndarray | None) -> Fit:
    """Read scaled cells as counts.

    Args:
        values: [n] stored values, finite and not negative, integer, float32 or float64.
        indptr: [cells + 1] int64, where each cell starts in ``values``.
        reading: of the file.
        totals: [cells] int64 depth of each cell (UMI), needed unless ``reading.totals`` is ``none``.
    """
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    cells = len(indptr) - 1
    out = Fit(
        counts=np.zeros(len(values), np.int32),
        code=np.zeros(cells, np.int8),
        unit=np.zeros(cells),
        spread=np.zeros(cells),
        residual=np.zeros(cells),
        fine=np.zeros(cells, np.int64),
        telling=np.zeros(cells, np.int64),
        depth=np.zeros(cells, np.int64),
        divisible=np.zeros((cells, len(_PRIMES)), np.int64),
    )
    known = np.zeros(cells, np.int64) if totals is None else totals
    scale = math.log(reading.base) if reading.base else 0.0
    _fit_cells(values, indptr, scale, reading.eps, reading.target, _MODES[reading.totals], known, out)
    return out


@numba.njit(cache=True, nogil=True)
def strange(fine, divisible):  # type: ignore[no-untyped-def]
    """Whether less than one in 2**20 draws of ``fine`` counts has as many that are divisible by some prime.

    By the bound of Chernoff: P(at least d of n) <= exp(-n KL(d / n || q)), where each is with probability q or less.
    """
    for p in range(len(_PRIMES)):
        q, d = _OFTEN[p], divisible[p]
        if d > q * fine:
            share = d / fine
            divergence = share * math.log(share / q)
            if d < fine:
                divergence += (1.0 - share) * math.log((1.0 - share) / (1.0 - q))
            if fine * divergence >= _RARE - 1e-9:
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _fit_cells(values, indptr, scale, eps, target, mode, totals, out):  # type: ignore[no-untyped-def]
    """Fill the arrays of ``out``, a :class:`Fit`, which hold zeros."""
    code, fine, depth = out.code, out.fine, out.depth
    longest = 0
    for cell in range(len(code)):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    x, tol, at = np.empty(longest), np.empty(longest), np.empty(longest, np.int64)
    multiple = np.empty(longest, np.int64)
    by_total = mode == _EXACT or mode == _SUM
    for cell in range(len(code)):
        n, smallest, total_x, total_tol = _linear(values, indptr[cell], indptr[cell + 1], scale, eps, x, tol, at)
        if n == 0:
            continue
        if n < 0:
            code[cell] = NO_UNIT
            continue
        total = totals[cell]
        if by_total:
            # The target was found from other cells, whose own rounding is in it.
            low, high = target * (1.0 - 16 * eps), target * (1.0 + 16 * eps)
            if mode == _SUM:
                low, high = total_x - total_tol, total_x + total_tol
            found, low, high = _multiples(x, tol, n, low / max(total, 1), high / max(total, 1), multiple)
        else:
            found, low, high = NO_UNIT, 0.0, 0.0
            for k in range(1, MULTIPLES_TRIED + 1):
                bounds = (x[smallest] - tol[smallest]) / k, (x[smallest] + tol[smallest]) / k
                found, low, high = _multiples(x, tol, n, bounds[0], bounds[1], multiple)
                if found != NO_UNIT:
                    break
        if found != PROVED:
            code[cell] = CONTRADICTED if found == NO_UNIT and by_total else found
            continue
        u = 0.5 * (low + high)
        divisor, widest, largest = _add_up(x, tol, n, low, high, multiple, multiple[smallest], cell, out)
        out.unit[cell], out.spread[cell] = u, 0.5 * (high - low) / u
        if by_total:
            code[cell], factor = _judge_by_total(mode, depth[cell], total, fine[cell]), 1
        else:
            relative = out.spread[cell] + ROUNDINGS * eps
            code[cell], factor = _judge(mode, depth[cell], target / u, relative, total, divisor, fine[cell])
            if factor > 1 and (widest * factor >= 0.5 or largest * factor >= 2**31):
                code[cell], factor = COARSE, 1
        if code[cell] == PROVED and strange(fine[cell], out.divisible[cell]):
            code[cell] = STRANGE
        if code[cell] == PROVED:
            out.unit[cell] /= factor
            out.residual[cell] *= factor
            depth[cell] *= factor
            for i in range(n):
                out.counts[at[i]] = multiple[i] * factor


@numba.njit(cache=True, nogil=True)
def _add_up(x, tol, n, low, high, multiple, smallest, cell, out):  # type: ignore[no-untyped-def]
    """Add the values of a cell to ``out``: the divisor of the fine ones, the widest interval, the largest multiple."""
    u = 0.5 * (low + high)
    divisor, widest, largest = 0, 0.0, 0
    for i in range(n):
        m = multiple[i]
        width = (x[i] + tol[i]) / low - (x[i] - tol[i]) / high
        widest = max(widest, width)
        largest = max(largest, m)
        if width <= FINE:
            divisor = math.gcd(divisor, m)
            out.fine[cell] += 1
            out.telling[cell] += m != smallest
            if m > 1:
                divided = _DIVIDED_BY[m] if m < len(_DIVIDED_BY) else _divided_by(m)
                if divided:
                    for p in range(len(_PRIMES)):
                        out.divisible[cell, p] += divided >> p & 1
        out.residual[cell] = max(out.residual[cell], abs(x[i] / u - m))
        out.depth[cell] += m
    return divisor, widest, largest


@numba.njit(cache=True, nogil=True)
def _divided_by(m):  # type: ignore[no-untyped-def]
    """An entry of ``_DIVIDED_BY``."""
    bits = 0
    for p in range(len(_PRIMES)):
        bits |= (m % _PRIMES[p] == 0) << p
    return bits


@numba.njit(cache=True, nogil=True)
def _linear(values, start, stop, scale, eps, x, tol, at):  # type: ignore[no-untyped-def]
    """Linearise the values above zero of a cell: their number (-1: beyond any count), the smallest, and sums."""
    n, smallest, total_x, total_tol = 0, 0, 0.0, 0.0
    for place in range(start, stop):
        v = np.float64(values[place])
        if v <= 0.0:
            continue
        if scale > 0.0:
            w = v * scale
            if w > 60.0:
                return -1, 0, 0.0, 0.0
            x[n] = math.expm1(w)
            tol[n] = ROUNDINGS * eps * (x[n] + w * (1.0 + x[n]))
        else:
            x[n] = v
            tol[n] = ROUNDINGS * eps * v
        at[n] = place
        if x[n] < x[smallest]:
            smallest = n
        total_x += x[n]
        total_tol += tol[n]
        n += 1
    return n, smallest, total_x, total_tol + n * 2.0**-52 * total_x  # the second term is this sum's own rounding


@numba.njit(cache=True, nogil=True)
def _multiples(x, tol, n, low, high, multiple):  # type: ignore[no-untyped-def]
    """The only multiples of a unit in [low, high] that the values can be, and the unit's interval after that."""
    for i in range(n):
        multiple[i] = 0
    left = n
    while left > 0:
        before = left
        for i in range(n):
            if multiple[i] > 0:
                continue
            least, most = (x[i] - tol[i]) / high, (x[i] + tol[i]) / low
            if most >= 2.0**31:
                return COARSE, low, high
            m = math.floor(most)
            if m < least or m < 1:
                return NO_UNIT, low, high
            if most - least >= 0.5:
                continue  # its turn comes again, when other values have narrowed the unit
            low = max(low, (x[i] - tol[i]) / m)
            high = min(high, (x[i] + tol[i]) / m)
            if low > high:
                return NO_UNIT, low, high
            multiple[i] = m
            left -= 1
        if left == before:
            return COARSE, low, high
    return PROVED, low, high


@numba.njit(cache=True, nogil=True)
def _judge_by_total(mode, depth, total, fine):  # type: ignore[no-untyped-def]
    """Code of a cell whose unit follows from its total."""
    if depth > total or (mode == _SUM and depth != total):
        return CONTRADICTED
    # A unit out of the values' own sum is no surprise to one or two of them.
    return PROVED if fine >= (LEAST_WITH_TOTALS if mode == _SUM else 1) else FEW


@numba.njit(cache=True, nogil=True)
def _judge(mode, depth, whole, relative, total, divisor, fine):  # type: ignore[no-untyped-def]
    """Code of a cell whose unit was fitted, and the factor on its multiples.

    ``whole`` is target / unit, the depth of the cell where the target is known: an integer, as a sum of counts.
    """
    if divisor != 1:
        return FACTOR if fine > 0 else FEW, 1
    slack = whole * relative
    integral = whole > 0.0 and slack < 0.05
    if whole > 0.0 and depth > whole + slack + 0.5:
        return NO_UNIT, 1
    one = not integral or abs(whole - round(whole)) <= slack
    if mode == _BOUND:
        least = max(whole, 1.0 * depth)
        possible, factor = 0, 0
        for k in range(1, int(total * (1.0 + relative) / least + 1e-6) + 1):
            if not integral or abs(k * whole - round(k * whole)) <= k * slack:
                possible += 1
                factor = k
            if possible > 1:
                break
        if possible == 0:
            return CONTRADICTED, 1
        if possible == 1 and fine >= LEAST_WITH_TOTALS:
            return PROVED, factor
    if not one:
        return FACTOR, 1
    return PROVED if fine >= LEAST_VALUES else FEW, 1
