import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vcc_fm.sources.values import AmbiguousError, NotCountsError, decide, describe, recover

COUNTS = hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 50_000))


@given(COUNTS, st.sampled_from([np.float32, np.float64, np.int32, np.uint16, np.int64]))
def test_counts_come_back(counts, dtype):
    found, residual = recover(counts.astype(dtype), "counts")
    assert found.dtype == np.int32
    assert residual == 0
    np.testing.assert_array_equal(found, counts)


@given(COUNTS, st.sampled_from([np.float32, np.float64]), st.booleans())
def test_log1p_counts_come_back(counts, dtype, in_stored_precision):
    stored = np.log1p(counts.astype(dtype)) if in_stored_precision else np.log1p(counts).astype(dtype)
    found, residual = recover(stored, "log1p-counts")
    np.testing.assert_array_equal(found, counts)
    assert residual <= 4 * np.spacing(dtype(12))
    assert decide(stored) == ("counts" if not counts.any() else "log1p-counts")


@given(hnp.arrays(np.int64, 40, elements=st.integers(1, 3000)), st.floats(0.2, 5.0), st.sampled_from(["f4", "f8"]))
def test_log_normalised_is_never_taken_for_counts(counts, scale, dtype):
    if abs(scale * counts - np.rint(scale * counts)).max() > 0.01:
        stored = np.log1p(scale * counts).astype(dtype)
        for asked in ("counts", "log1p-counts"):
            with pytest.raises(NotCountsError):
                recover(stored, asked)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(-1.0, "negative"), (np.nan, "finite"), (np.inf, "finite"), (0.5, "integer"), (2.0**31, "too large")],
)
def test_the_first_bad_value_is_named(value, reason):
    with pytest.raises(NotCountsError, match=reason) as error:
        recover(np.array([1.0, 2.0, value, value]), "counts")
    assert error.value.position == 2


def test_noise_of_float32_arithmetic_is_rounded_and_more_is_not():
    found, residual = recover(np.array([3.0000005, 99.99999], np.float32), "counts")
    np.testing.assert_array_equal(found, [3, 100])
    assert 0 < residual < 1e-4
    with pytest.raises(NotCountsError, match="integer"):
        recover(np.array([2_000_000.25]), "counts")


def test_integers_that_a_log_matrix_never_holds():
    with pytest.raises(NotCountsError, match="never"):
        recover(np.array([0, 3]), "log1p-counts")


def test_large_values_of_each_kind():
    with pytest.raises(NotCountsError, match="too large"):
        recover(np.array([2**31], np.uint64), "counts")
    with pytest.raises(NotCountsError, match="too large"):
        recover(np.array([22.0]), "log1p-counts")
    assert recover(np.log1p([2.0**31 - 1]), "log1p-counts")[0][0] == 2**31 - 1


@pytest.mark.parametrize(
    ("stored", "scale"),
    [
        (np.array([1, 4000], np.float16), "counts"),
        (np.array([1, 2**25], np.float32), "counts"),
        (np.log1p([1.0, 5.0]).astype(np.float16), "log1p-counts"),
        (np.log1p([1.0, 1e6]).astype(np.float32), "log1p-counts"),
    ],
)
def test_a_precision_that_cannot_tell_neighbours_apart_is_refused(stored, scale):
    with pytest.raises(AmbiguousError, match=r"cannot tell"):
        recover(stored, scale)
    with pytest.raises(AmbiguousError):
        decide(stored)


def test_what_values_look_like():
    rng = np.random.default_rng(1)
    counts = rng.poisson(3.0, (20, 30)) + 1.0
    scaled = counts / counts.sum(1, keepdims=True) * 1e4
    indptr = np.arange(0, 601, 30)

    def looks(matrix):
        return describe(matrix.ravel(), indptr)

    assert "z-scored" in looks(scaled - scaled.mean(0))
    assert "missing" in looks(np.where(counts == 2, np.nan, counts))
    assert looks(counts).startswith("raw counts")
    assert looks(np.log1p(counts)).startswith("log1p of raw counts")
    assert looks(np.log2(1 + counts)).startswith("log2")
    assert looks(scaled).startswith("normalised counts (scaled per cell)")
    assert looks(np.log1p(scaled).astype(np.float32)).startswith("log-normalised counts (log1p")
    assert looks(np.sqrt(scaled * 100)).startswith("normalised counts")
    assert looks(np.log1p(scaled * rng.uniform(0.5, 2, 30))).startswith("log-normalised or otherwise")
