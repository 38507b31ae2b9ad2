import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vcc_fm.sources.values import AmbiguousError, NotCountsError, decide, describe, recover

BOTH = ("counts", "log1p-counts")
COUNTS = hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 50_000))


@given(COUNTS, st.sampled_from([np.float32, np.float64, np.int32, np.uint16, np.int64]))
def test_counts_come_back(counts, dtype):
    found, residual = recover(counts.astype(dtype), 0.0)
    assert found.dtype == np.int32
    assert residual == 0
    np.testing.assert_array_equal(found, counts)


@given(
    COUNTS,
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.sampled_from([math.e, 2.0, 10.0]),
    st.booleans(),
)
def test_log1p_counts_come_back(counts, dtype, in_stored_precision, base, by_division):
    exact = counts.astype(dtype) if in_stored_precision else counts
    if base == math.e:
        stored = np.log1p(exact)
    elif by_division:
        stored = np.log1p(exact) / (dtype if in_stored_precision else float)(np.log(base))
    else:
        stored = (np.log2 if base == 2 else np.log10)(1 + exact)
    stored = stored.astype(dtype)
    found, residual = recover(stored, base)
    np.testing.assert_array_equal(found, counts)
    assert residual <= 4 * np.spacing(dtype(16))
    if ((counts == 2) | (counts == 5)).any():  # few small ones tell the base
        assert decide(stored, BOTH) == ("log1p-counts", base)


@given(hnp.arrays(np.int64, 40, elements=st.integers(1, 3000)), st.floats(0.2, 5.0), st.sampled_from(["f4", "f8"]))
def test_log_normalised_is_never_taken_for_counts(counts, scale, dtype):
    if abs(scale * counts - np.rint(scale * counts)).max() > 0.01:
        stored = np.log1p(scale * counts).astype(dtype)
        for base in (0.0, math.e):
            with pytest.raises(NotCountsError):
                recover(stored, base)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(-1.0, "negative"), (np.nan, "finite"), (np.inf, "finite"), (0.5, "integer"), (2.0**31, "too large")],
)
def test_the_first_bad_value_is_named(value, reason):
    with pytest.raises(NotCountsError, match=reason) as error:
        recover(np.array([1.0, 2.0, value, value]), 0.0)
    assert error.value.position == 2


def test_noise_of_float32_arithmetic_is_rounded_and_more_is_not():
    found, residual = recover(np.array([3.0000005, 99.99999], np.float32), 0.0)
    np.testing.assert_array_equal(found, [3, 100])
    assert 0 < residual < 1e-4
    with pytest.raises(NotCountsError, match="integer"):
        recover(np.array([2_000_000.25]), 0.0)


def test_integers_that_a_log_matrix_never_holds():
    with pytest.raises(NotCountsError, match="never"):
        recover(np.array([0, 3]), math.e)


def test_large_values_of_each_kind():
    with pytest.raises(NotCountsError, match="too large"):
        recover(np.array([2**31], np.uint64), 0.0)
    with pytest.raises(NotCountsError, match="too large"):
        recover(np.array([22.0]), math.e)
    assert recover(np.log1p([2.0**31 - 1]), math.e)[0][0] == 2**31 - 1


@pytest.mark.parametrize(
    ("stored", "base"),
    [
        (np.array([1, 4000], np.float16), 0.0),
        (np.array([1, 2**25], np.float32), 0.0),
        (np.log1p([1.0, 5.0]).astype(np.float16), math.e),
        (np.log1p([1.0, 1e6]).astype(np.float32), math.e),
        (np.log2([3.0, 1e6 + 1]).astype(np.float32), 2.0),
    ],
)
def test_a_precision_that_cannot_tell_neighbours_apart_is_refused(stored, base):
    with pytest.raises(AmbiguousError, match=r"cannot tell"):
        recover(stored, base)
    with pytest.raises(AmbiguousError):
        decide(stored, BOTH)


def test_a_scale_is_looked_for_among_those_that_are_asked_for():
    counts, logs = np.arange(5.0), np.log10(1 + np.arange(5.0))
    assert decide(counts, BOTH) == decide(counts, ("counts",)) == ("counts", 0.0)
    assert decide(logs, BOTH) == decide(logs, ("log1p-counts",)) == ("log1p-counts", 10.0)
    with pytest.raises(NotCountsError, match="not an integer") as error:
        decide(logs, ("counts",))
    assert error.value.position == 1
    with pytest.raises(NotCountsError, match="not the log1p of an integer"):
        decide(counts, ("log1p-counts",))


def test_a_base_that_large_counts_alone_cannot_tell_is_not_guessed():
    stored = np.log1p([0.0, 41.0]).astype(np.float32)
    assert recover(stored, math.e)[0].tolist() == [0, 41]
    recover(stored, 10.0)
    with pytest.raises(AmbiguousError, match="to more than one base"):
        decide(stored, BOTH)
    assert decide(np.log1p([2.0, 41.0]).astype(np.float32), BOTH) == ("log1p-counts", math.e)
    assert decide(np.zeros(3), ("log1p-counts",)) == ("log1p-counts", math.e)


def test_what_values_look_like():
    rng = np.random.default_rng(1)
    counts = rng.poisson(1.5, (40, 60))
    scaled = counts / counts.sum(1, keepdims=True) * 1e4

    def looks(matrix):
        present = matrix != 0
        return describe(matrix[present], np.r_[0, np.cumsum(present.sum(1))], matrix.shape[1])

    assert looks(scaled - scaled.mean(0)).startswith("z-scored, centred, batch-corrected")
    assert "missing" in looks(np.where(counts == 2, np.nan, counts))
    assert looks(counts.astype(float)) == "raw counts (set values to counts)"
    assert looks(np.log1p(counts)) == "log1p of raw counts (set values to log1p-counts)"
    assert looks(np.log2(1 + counts)) == "log1p of raw counts (set values to log1p-counts)"
    assert looks(scaled) == "normalised counts (set values to normalised)"
    assert looks(np.log1p(scaled).astype(np.float32)) == "log-normalised counts (set values to log-normalised)"
    assert looks(np.log1p(scaled).astype(np.float16)) == "expression in float16, which is too coarse to tell counts"
    assert looks(np.sqrt(scaled * 100)).startswith("normalised expression that is no multiple")
    assert looks(np.log1p(scaled * rng.uniform(0.5, 2, 60))).startswith("log-transformed expression that is no")
    assert looks(rng.gamma(2.0, 1.0, (40, 30))).startswith("denoised or model-based expression (scVI")
