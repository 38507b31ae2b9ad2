"""Counts out of scaled cells: exact, or not proved; never wrong."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from vcc_fm.sources import scaled
from vcc_fm.sources.proof import (
    COARSE,
    CONTRADICTED,
    FACTOR,
    FEW,
    LEAST_VALUES,
    NO_UNIT,
    PROVED,
    REASONS,
    STRANGE,
    Reading,
)
from vcc_fm.sources.reading import TotalsError, find_reading
from vcc_fm.sources.scaled import fit

BOTH = ("normalised", "log-normalised")
BASES = [0.0, math.e, 2.0, 10.0]
PRECISIONS = [np.float32, np.float64]
GENES = 60


def scale(counts, totals, target, base, dtype):
    """Stored values of cells [cells, genes], by the arithmetic of scanpy's normalize_total and log1p."""
    factor = np.broadcast_to(totals / np.asarray(target, dtype), len(counts)).astype(dtype)
    linear = counts.astype(dtype) / np.where(factor == 0, 1, factor)[:, None]
    if not base:
        return linear
    return np.log1p(linear) if base == math.e else np.log1p(linear) / dtype(np.log(base))


def packed(matrix):
    """Values and cell starts of the non-zero entries."""
    return matrix[matrix != 0], np.r_[0, np.cumsum((matrix != 0).sum(1))].astype(np.int64)


def dense(cells, matrix):
    out = np.zeros(matrix.shape, np.int64)
    out[matrix != 0] = cells.counts
    return out


def ordinary(rng, cells):
    """Counts of cells of any depth: rates over five orders of magnitude."""
    rate = np.exp(rng.normal(rng.uniform(-2, 3), rng.uniform(0.3, 2.0), (cells, GENES)))
    return rng.poisson(np.minimum(rate, 20_000))


def nasty(rng):
    """Counts of one cell that invite a wrong unit."""
    some = rng.random(GENES) < rng.choice([0.03, 0.1, 0.4, 1.0])
    kind = rng.integers(7)
    small = rng.integers(1, rng.choice([2, 3, 5, 30]), GENES)
    if kind == 0:
        return small * some
    if kind == 1:
        return small * rng.integers(2, 400) * some  # a common factor
    if kind == 2:
        return (small * rng.integers(2, 2000) + rng.integers(0, 2, GENES)) * some  # nearly one
    if kind == 3:
        return np.where(rng.random(GENES) < 0.05, rng.integers(1, 2_000_000), 2 * small) * some  # one odd giant
    if kind == 4:
        return rng.integers(1, 50_000, GENES) * some
    if kind == 5:
        return (rng.integers(50_000, 60_000) + rng.integers(0, 9, GENES)) * some
    return (np.arange(GENES) < rng.integers(0, 4)) * rng.integers(1, 9, GENES)  # up to three values


def outside_the_premise(counts):
    """What stored values cannot show, and UMI counts are not like: a factor that 20 counts or more have in common."""
    present = counts[counts > 0]
    return len(present) >= LEAST_VALUES and (np.gcd.reduce(present) > 1 or present.min() > 1000)


def never_wrong(cells, matrix, counts, premise):
    found = dense(cells, matrix)
    for row in np.flatnonzero(cells.code == PROVED):
        if not premise or not outside_the_premise(counts[row]):
            np.testing.assert_array_equal(found[row], counts[row])
    assert not found[cells.code != PROVED].any()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(BASES),
    st.sampled_from(PRECISIONS),
    st.sampled_from(["none", "exact", "sum", "bound"]),
    st.sampled_from([1e3, 1e4, 1e6, 4321.5, "own"]),
    st.booleans(),
)
def test_cells_are_exact_or_not_proved(seed, base, dtype, use, target, subset):
    rng = np.random.default_rng(seed)
    counts = np.vstack([ordinary(rng, 4), *[nasty(rng) for _ in range(12)]])
    seen = rng.random(GENES) < (rng.uniform(0.1, 1.0) if subset and use != "sum" else 1.0)
    own = target == "own"
    goal = rng.uniform(10, 1e5, len(counts)) if own else target
    matrix = scale(counts, counts.sum(1), goal, base, dtype)[:, seen]
    totals = counts.sum(1)
    if use == "bound":
        totals = totals + rng.integers(0, 2 * totals + 1)
    reading = Reading(base, np.dtype(dtype), 0.0 if own else target, use if not (own and use == "exact") else "none")
    cells = fit(*packed(matrix), reading, totals)
    never_wrong(cells, matrix, counts[:, seen], premise=reading.totals in ("none", "bound"))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(BASES),
    st.sampled_from(PRECISIONS),
    st.sampled_from(["nothing", "depths", "depths before genes were left out"]),
    st.sampled_from([1e4, 1e6, "median", "own"]),
    st.booleans(),
)
@example(496093, 0.0, np.float32, "depths before genes were left out", "median", True)
def test_a_file_that_says_nothing_of_its_scale_is_read_exactly_or_not_at_all(seed, base, dtype, known, target, subset):
    rng = np.random.default_rng(seed)
    cells = 60
    counts = np.vstack([ordinary(rng, cells), *[nasty(rng) for _ in range(cells // 4)]])
    depth = counts.sum(1)
    goal = {"median": np.median(depth), "own": rng.uniform(10, 1e5, len(counts))}.get(target, target)
    seen = rng.random(GENES) < (rng.uniform(0.1, 1.0) if subset else 1.0)
    matrix = scale(counts, depth, goal, base, dtype)[:, seen]
    totals = None if known == "nothing" else depth if known == "depths" else depth + rng.integers(0, depth + 1)
    reading = find_reading(*packed(matrix), BOTH, totals)
    if reading is not None:
        assert reading.base == base
        never_wrong(
            fit(*packed(matrix), reading, totals), matrix, counts[:, seen], reading.totals in ("none", "bound")
        )


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", [1e4, 1e6, "median", "own"])
def test_ordinary_cells_are_all_proved(base, dtype, target):
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.gamma(0.4, 6.0, 400), (120, 400))
    depth = counts.sum(1)
    goal = {"median": np.median(depth), "own": rng.uniform(10, 1e5, 120)}.get(target, target)
    matrix = scale(counts, depth, goal, base, dtype)
    reading = find_reading(*packed(matrix), BOTH, None)
    assert reading == Reading(base, np.dtype(dtype), 0.0 if target == "own" else float(goal))
    cells = fit(*packed(matrix), reading, None)
    assert (cells.code == PROVED).all()
    np.testing.assert_array_equal(dense(cells, matrix), counts)
    for factor, use in ((1, "sum" if target == "own" else "exact"), (2, "bound" if target == "own" else "exact")):
        reading = find_reading(*packed(matrix), BOTH, factor * depth)
        assert reading.totals == use
        cells = fit(*packed(matrix), reading, factor * depth)
        assert (cells.code == PROVED).all()
        np.testing.assert_array_equal(dense(cells, matrix), counts)
    # Half of the genes, chosen after scaling: the sum of a cell is no target any more.
    half = matrix[:, ::2]
    for totals, use in ((None, "none"), (depth, "sum" if target == "own" else "exact"), (depth + 9, "bound")):
        if use == "sum":
            use = "bound"  # the depth of a part of the genes is not the total
        reading = find_reading(*packed(half), BOTH, totals)
        assert reading.totals == use
        if (target in (1e4, 1e6) and dtype == np.float64) or use == "exact":
            assert reading.target == pytest.approx(goal, rel=1e-6)
        np.testing.assert_array_equal(dense(fit(*packed(half), reading, totals), half), counts[:, ::2])


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_depths_settle_cells_that_values_alone_do_not(dtype):
    rng = np.random.default_rng(4)
    counts = rng.poisson(0.3, (80, 100))
    counts[0], counts[1], counts[2] = 0, 0, 0
    counts[0, :5], counts[1, :3], counts[2, 7] = 2, [4, 6, 2], 3
    depth = counts.sum(1) + 50  # genes that are not in the matrix
    matrix = scale(counts, depth, 1e4, math.e, dtype)
    alone = fit(*packed(matrix), find_reading(*packed(matrix), BOTH, None), None)
    assert (alone.code[:3] != PROVED).all()
    reading = find_reading(*packed(matrix), BOTH, depth)
    assert (reading.totals, reading.target) == ("exact", 1e4)
    cells = fit(*packed(matrix), reading, depth)
    assert (cells.code == PROVED).all()
    np.testing.assert_array_equal(dense(cells, matrix), counts)


def test_reasons():
    few = np.array([1.0, 2.0, 3.0])
    whole = np.r_[np.arange(1.0, 40)]
    half = np.r_[whole, 7.5]
    irrational = np.r_[whole, math.pi]
    doubled = 2 * whole
    parts = [few, whole, half, irrational]
    values, indptr = 0.37 * np.concatenate(parts), np.cumsum([0, *map(len, parts)])

    def codes(values, indptr, reading, totals=None):
        return [int(code) for code in fit(values, indptr, reading, totals).code]

    exact = np.dtype(float)
    assert codes(values, indptr, Reading(0.0, exact)) == [FEW, PROVED, STRANGE, NO_UNIT]
    ends = np.array([0, len(doubled)])
    # Nothing but a target or a depth tells counts from twice the counts; a target does for every other depth.
    assert codes(doubled / 1563 * 1e4, ends, Reading(0.0, exact, 1e4)) == [FACTOR]
    assert codes(doubled / 1562 * 1e4, ends, Reading(0.0, exact, 1e4)) == [PROVED]
    totals = np.array([1562])
    assert codes(doubled / 1562 * 1e4, ends, Reading(0.0, exact, 1e4, "exact"), totals) == [STRANGE]
    assert codes(few / 6, np.array([0, 3]), Reading(0.0, exact, 1.0, "exact"), np.array([5])) == [CONTRADICTED]
    assert set(REASONS) == {NO_UNIT, COARSE, FEW, FACTOR, CONTRADICTED, STRANGE}


def test_no_rate_makes_counts_divisible_as_often_as_is_taken_for_strange():
    rates = np.exp(np.linspace(np.log(0.01), np.log(500), 600))[:, None]
    for prime, most in zip((2, 3, 5, 7, 11, 13), scaled._OFTEN, strict=True):
        divisible = poisson.pmf(np.arange(prime, 1500, prime), rates).sum(1) / -np.expm1(-rates[:, 0])
        assert divisible.max() <= most + 1e-12
        alone = np.array([LEAST_VALUES] * 6) * (scaled._PRIMES == prime)
        assert scaled.strange(LEAST_VALUES, alone)
    assert not scaled.strange(LEAST_VALUES - 1, np.array([LEAST_VALUES - 1, 0, 0, 0, 0, 0]))


def one_cell(counts, target, base, use, total, dtype=np.float32, depth=None):
    """Code of a cell that was scaled from ``depth``, read with a total."""
    counts = np.asarray(counts)[None]
    matrix = scale(counts, counts.sum(1) if depth is None else depth, target, base, dtype)
    cells = fit(*packed(matrix), Reading(base, np.dtype(dtype), target, use), np.array([total]))
    assert cells.code[0] != PROVED or (cells.counts == counts[counts > 0]).all()
    return int(cells.code[0])


def test_totals_prove_nothing_where_they_leave_a_choice():
    assert one_cell([3, 5, 7], 1e4, 0.0, "sum", 15) == PROVED
    assert one_cell([3, 5], 1e4, 0.0, "sum", 8) == FEW  # any two values add up to something
    assert one_cell([3, 5], 1e4, 0.0, "exact", 8) == PROVED
    many = np.r_[1, 2, 3, np.full(400, 5000)]
    assert one_cell(many, 1e4, 0.0, "sum", many.sum()) == PROVED
    assert one_cell(many, 1e4, 0.0, "sum", many.sum() + 1) == CONTRADICTED  # one in two million, which rounds away
    assert one_cell([1, 2, 3], 1e4, 0.0, "bound", 11) == PROVED
    assert one_cell([1, 2, 3], 1e4, 0.0, "bound", 12) == FEW  # 2, 4, 6 is possible too
    assert one_cell([1, 2, 3], 1e4, 0.0, "bound", 5) == CONTRADICTED
    assert one_cell([1, 2], 1e4, 0.0, "bound", 5) == FEW
    assert one_cell([2, 4, 6], 1e4, 0.0, "bound", 14, depth=13) == PROVED  # 6.5 is no depth
    assert one_cell([2, 4, 6], 1e4, 0.0, "bound", 26, depth=13) == FACTOR
    # A factor that makes the largest count too coarse; an odd one that is all there is against a factor.
    giant = np.array([2, 4, 6, 8, 10, 50_000])
    assert one_cell(giant, 1e4, math.e, "bound", giant.sum() + 1, depth=giant.sum() + 1) == COARSE
    assert one_cell(giant, 1e4, math.e, "bound", giant.sum() + 1, np.float64, depth=giant.sum() + 1) == PROVED
    assert one_cell([2, 4, 6, 8, 2001], 1e4, 0.0, "none", 0) == FACTOR


def test_counts_beyond_the_precision_are_not_proved():
    counts = np.r_[np.arange(1, 40), 3_000_000]
    for dtype, told in ((np.float32, False), (np.float64, True)):
        values = scale(counts[None], counts.sum(), 1e4, math.e, dtype)
        cells = fit(*packed(values), Reading(math.e, np.dtype(dtype)), None)
        assert (cells.code[0] == PROVED) == told
        assert dense(cells, values).any() == told


def test_cells_without_values_hold_no_counts():
    cells = fit(np.zeros(2, np.float32), np.array([0, 0, 2]), Reading(math.e, np.dtype(np.float32)), None)
    assert cells.code.tolist() == [PROVED, PROVED]
    assert not cells.counts.any()


def test_float32_arithmetic_in_a_float64_file():
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.gamma(0.4, 6.0, 300), (50, 300))
    matrix = np.log1p(scale(counts, counts.sum(1), 1e4, 0.0, np.float32).astype(np.float64))
    reading = find_reading(*packed(matrix), BOTH, None)
    assert reading == Reading(math.e, np.dtype(np.float32), 1e4)
    np.testing.assert_array_equal(dense(fit(*packed(matrix), reading, None), matrix), counts)


def test_depths_of_something_else_are_refused():
    rng = np.random.default_rng(6)
    counts = rng.poisson(rng.gamma(0.4, 6.0, 300), (50, 300))
    matrix = scale(counts, counts.sum(1), 1e4, math.e, np.float32)
    with pytest.raises(TotalsError, match="less than the counts add up to"):
        find_reading(*packed(matrix), BOTH, (counts > 0).sum(1))


@pytest.mark.parametrize(
    "kind",
    [
        "gamma",
        "per gene",
        "root",
        "rounded",
        "float16",
        "smoothed",
        "few decimals",
        "halves",
        "thirds",
        "halves of few",
    ],
)
def test_what_is_no_scaled_count_has_no_reading(kind):
    rng = np.random.default_rng(7)
    counts = rng.poisson(rng.gamma(0.4, 6.0, 300), (100, 300))
    linear = scale(counts, counts.sum(1), 1e4, 0.0, np.float64)
    fewer = rng.poisson(4.0, (400, 12)) + 0.5 * (rng.random((400, 12)) < 0.2)
    matrix = {
        "gamma": rng.gamma(0.5, 2.0, counts.shape),
        "per gene": np.log1p(linear * rng.uniform(0.5, 2.0, 300)),
        "root": np.sqrt(linear),
        "rounded": np.log1p(linear).round(2),
        "float16": np.log1p(linear).astype(np.float16),
        "smoothed": np.log1p((linear + np.roll(linear, 1, 0)) / 2),
        "few decimals": linear.round(1),
        "halves": scale(counts + 0.5 * (rng.random(counts.shape) < 0.1), counts.sum(1), 1e4, math.e, np.float32),
        "halves of few": scale(fewer, fewer.sum(1), 1e4, 0.0, np.float64),
        "thirds": scale(counts + (rng.random(counts.shape) < 0.1) / 3, counts.sum(1), 1e4, math.e, np.float64),
    }[kind]
    assert find_reading(*packed(matrix), BOTH, None) is None


# ------------------------------------------------------------------------------- depths from before a filter of genes
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("least_cells", [3, 20])
def test_depths_just_below_the_totals_are_found(dtype, least_cells):
    # scanpy's usual order: quality metrics, then a filter of genes, scaling to the median, log, a choice of genes.
    rng = np.random.default_rng(3)
    share = rng.gamma(0.3, 1.0, 4000)
    counts = rng.poisson(rng.lognormal(8.5, 0.4, 200)[:, None] * share / share.sum())
    totals, kept = counts.sum(1), (counts > 0).sum(0) >= least_cells
    counts = counts[:, kept]
    depth = counts.sum(1)
    assert ((totals == depth).mean() > 0.2) == (least_cells == 3)  # of 20 cells: no total is a depth any more
    some = np.argsort(-counts.mean(0))[np.r_[0:2, 300 : counts.shape[1] : 90]]
    matrix = scale(counts, depth, np.median(depth), math.e, dtype)[:, some]
    assert find_reading(*packed(matrix), BOTH, None).target == 0.0  # 20 values a cell say nothing of the rest
    reading = find_reading(*packed(matrix), BOTH, totals)
    assert (reading.totals, reading.target) == ("bound", pytest.approx(np.median(depth), rel=1e-7))
    cells = fit(*packed(matrix), reading, totals)
    assert (cells.code == PROVED).mean() > 0.98
    never_wrong(cells, matrix, counts[:, some], premise=False)
    # Numbers that are far above the depths give no target.
    other = find_reading(*packed(matrix), BOTH, rng.permutation(totals) + 3 * totals.max())
    assert (other.totals, other.target) == ("bound", 0.0)
