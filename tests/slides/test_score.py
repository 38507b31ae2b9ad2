"""The challenge's scores, by hand and beside scipy; its table, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vcc_fm.ground.errors import UserError
from vcc_fm.slides.score import check_table, correlation, long_table, score


def test_scores_by_hand():
    # Ranks of the truth 1 2 3 4; predicted in order, reversed, constant; and of a truth with ties, 1.5 1.5 3 4.
    measured = np.array([[0.0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 1, 2]])
    predicted = np.array([[0.0, 1, 2, 4], [3, 2, 1, 0], [1, 1, 1, 1], [0, 1, 2, 3]])
    found = score(predicted, measured, np.array(["a", "a", "a", "b"]), np.array(["I", "I", "N", "I"]))
    np.testing.assert_allclose(found.nuclei, [1.0, -1.0, 0.0, 4.5 / np.sqrt(4.5 * 5)], atol=1e-12)
    # a: region I (1 - 1) / 2 = 0, N 0; MSE I (0.25 + 5) / 2 = 2.625, N 1.5; the two regions weigh alike.
    np.testing.assert_allclose(found.samples.loc["a", ["spearman", "mse"]], [0.0, (2.625 + 1.5) / 2])
    np.testing.assert_allclose(found.samples.loc["b", ["spearman", "mse"]], [0.9486832980505138, 0.75])
    np.testing.assert_allclose(
        found.samples.loc["ALL", ["spearman", "mse"]], [0.4743416490252569, (2.0625 + 0.75) / 2]
    )
    assert list(found.samples.index) == ["a", "b", "ALL"]
    assert not found.valid


@pytest.mark.parametrize(("error", "valid"), [(0.19, True), (0.21, False)])
def test_an_entry_is_valid_below_the_limit(error, valid):
    measured = np.arange(6.0).reshape(2, 3)
    labels = np.array(["a", "a"])
    assert score(measured + np.sqrt(error), measured, labels, labels).valid is valid


def test_correlations_are_scipys():
    rng = np.random.default_rng(0)
    predicted, measured = rng.integers(0, 4, (20, 30)).astype(float), rng.integers(0, 4, (20, 30)).astype(float)
    labels = np.full(20, "a")
    found = score(predicted, measured, labels, labels)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(predicted, measured, strict=True)]
    np.testing.assert_allclose(found.nuclei, expected, atol=1e-12)
    by_gene = [stats.pearsonr(a, b).statistic for a, b in zip(predicted.T, measured.T, strict=True)]
    np.testing.assert_allclose(correlation(predicted, measured, axis=0), by_gene, atol=1e-12)
    assert found.samples.loc["a", "genes"] == pytest.approx(np.mean(by_gene))


def test_the_table_is_long_rounded_and_not_below_zero():
    table = long_table("S", np.array([7, 3]), ["A", "B"], np.array([[-0.004, 0.126], [1.0, 0.005]]))
    expected = {
        "sample": ["S"] * 4,
        "cell_id": [7, 7, 3, 3],
        "gene": ["A", "B"] * 2,
        "prediction": [0.0, 0.13, 1.0, 0.0],
    }
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected), check_dtype=False)
    check_table(table, "S", pd.Index([3, 7]), ["A", "B"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[["cell_id", "sample", "gene", "prediction"]], "columns"),
        (lambda t: t.assign(sample="T"), "this sample alone"),
        (lambda t: t.assign(prediction=np.nan), "finite"),
        (lambda t: t.assign(prediction=-t["prediction"] - 1), "zero or above"),
        (lambda t: t.iloc[1:], "once"),
        (lambda t: pd.concat([t.iloc[1:], t.iloc[1:2]]), "once"),
        (lambda t: t.replace({"gene": {"B": "C"}}), "once"),
        (lambda t: t.assign(cell_id=t["cell_id"] + 1), "once"),
    ],
)
def test_a_bad_table_is_refused(change, said):
    table = long_table("S", np.array([7, 3]), ["A", "B"], np.ones((2, 2)))
    with pytest.raises(UserError, match=said):
        check_table(change(table), "S", pd.Index([3, 7]), ["A", "B"])
