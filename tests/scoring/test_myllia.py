"""The score of "Echoes of Silenced Genes": the platform's example, values by hand, and limma's moderation."""

import numpy as np
import pandas as pd
import pytest
from scoring_screens import CONTROL, make_screen, perturbed

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.moderated import moderated_t, prior_of, trigamma_inverse
from vcc_fm.scoring.presets.myllia import BASELINE, ID, score_responses, score_table, weights_of
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry

# Rounded normal values of two groups, and what inmoose 0.9.1, a port of limma, makes of them (lmFit, eBayes).
VALUES = np.array(
    [
        [0.41, 0.41, -0.7, -0.29, 0.8, -0.54, -0.09, -0.25],
        [0.06, -0.44, -0.33, -0.13, -0.2, -0.7, 0.2, -0.92],
        [-2.87, -3.12, 4.04, -0.19, -2.13, -2.66, 2.3, -2.4],
        [-3.19, -0.21, -3.07, -1.69, -1.19, -1.88, -1.27, 0.93],
        [-2.88, -8.07, -12.11, -0.69, -1.73, 2.59, -2.51, -2.61],
        [-2.3, -1.97, -0.83, -1.73, -0.93, 2.08, -0.3, -3.73],
    ]
)
LIMMA_T = [0.236776, 0.277892, 0.190494, -1.222972, -3.175301, -0.644446]
LIMMA_P = [0.819165, 0.788597, 0.853973, 0.258351, 0.014224, 0.538480]


def tables(truth, predicted, weights, baseline):
    genes = [f"G{number}" for number in range(len(truth[0]))]
    solution = pd.DataFrame(truth, columns=genes)
    solution[[f"w_{gene}" for gene in genes]] = weights
    solution[BASELINE] = baseline
    ids = [f"pert_{number}" for number in range(len(truth))]
    return solution.assign(**{ID: ids}), pd.DataFrame(predicted, columns=genes).assign(**{ID: ids})


def test_the_platforms_example():
    # Both errors are 0.5, each gain log2(2 / 0.5) = 2; the cosine is 1.8 / sqrt(2 x 3.28).
    solution, submission = tables([[1, 0], [0, 1]], [[1, 1], [0.8, 0.8]], [[1, 1], [1, 1]], [2, 2])
    assert score_table(solution, submission) == 2.81113
    shuffled = submission.iloc[::-1][["G1", ID, "G0"]]
    assert score_table(solution, shuffled) == 2.81113


def test_gate_cap_and_sign_by_hand():
    truth, weights = np.array([[0.1, -0.4], [0.0, 0.05]]), np.array([[0.5, 1.5], [1.0, 1.0]])
    predicted = np.array([[0.0, -0.4], [0.0, 0.05]])
    found = score_responses(truth, predicted, weights, np.array([0.2, 0.1]))
    # The second row is exact: its gain is capped. The first: error 0.5 x 0.1 / 2 = 0.025, log2(0.2 / 0.025) = 3.
    assert found.gains == pytest.approx([3, 5])
    # u = 0.5, 1, 0, 0.25: gates 0.5^2, 1, 0, 0.15625^2.
    gates, t, x = np.array([0.25, 1, 0, 0.15625**2]), truth.ravel(), predicted.ravel()
    cosine = (gates * t * x).sum() / np.sqrt((gates * t * t).sum() * (gates * x * x).sum())
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.total == pytest.approx(8 * cosine)
    wide = score_responses(truth, predicted, weights, np.array([0.2, 0.1]), (0.0, 0.3))
    assert wide.cosine != pytest.approx(cosine, abs=1e-4)
    some = score_responses(truth, predicted, weights, np.array([0.2, 0.1]), (0.1, 0.2))
    gates = np.array([0, 1, 0, 0])  # the first is 0.1, the last 0.05
    assert some.cosine == pytest.approx((gates * t * x).sum() / np.sqrt((gates * t * t).sum() * (gates * x * x).sum()))
    # No response is no cosine, a wrong sign counts as none, and losses of a good cosine stay losses.
    assert score_responses(truth, 0 * truth, weights, np.ones(2)).total == 0
    assert score_responses(truth, -truth, weights, np.ones(2)).total == 0
    assert score_responses(truth, 9 * truth, weights, np.full(2, 0.01)).total < 0


def test_moderation_is_limmas():
    first, second = VALUES[:, :3], VALUES[:, 3:]
    means = np.array([first.mean(axis=1), second.mean(axis=1)])
    t, p = moderated_t(means, np.array([3 * first.var(axis=1), 5 * second.var(axis=1)]), np.array([3, 5]))
    np.testing.assert_allclose(t, LIMMA_T, atol=1e-6)
    np.testing.assert_allclose(p, LIMMA_P, atol=1e-6)
    variance = (3 * first.var(axis=1) + 5 * second.var(axis=1)) / 6
    assert prior_of(variance, 6) == pytest.approx((1.504764048011771, 0.9181512643531669), rel=1e-9)


def test_the_ends_of_moderation():
    for value in (1e-6, 0.3, 1.0, 40.0, 1e6):
        x = trigamma_inverse(value)
        assert np.sum(1 / (x + np.arange(200_000)) ** 2) + 1 / (x + 200_000) == pytest.approx(value, rel=1e-4)
    assert prior_of(np.full(50, 2.0), 10) == (np.inf, 2.0)
    assert prior_of(np.array([0.0, 3.0, 0.0]), 10) == (0.0, 0.0)
    t, p = moderated_t(np.array([np.ones(3), np.zeros(3)]), np.zeros((2, 3)), np.array([4, 4]))
    assert t.tolist() == [0, 0, 0]
    assert p.tolist() == [1, 1, 1]


def test_weights_sum_to_the_genes_and_leave_the_target_out():
    t = np.array([[0.0, -5.0, 40.0, 2.0]])
    weights = weights_of(t, np.array([[False, False, False, True]]))
    size = np.array([0.1, 5.1, 10.0, 0.0]) / 10
    np.testing.assert_allclose(weights[0], 4 * size**2 / (size**2).sum())
    assert weights.sum() == pytest.approx(4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.assign(G1=[np.nan, 0]), "1 value not finite"),
        (lambda table: table.assign(G1=["x", 0]), "1 value not finite"),
        (lambda table: table.drop(columns="G1"), "lacks genes: G1"),
        (lambda table: table.assign(w_G1=1), "has unknown genes: w_G1"),
        (lambda table: table.assign(pert_id=["pert_0", "pert_0"]), "ids repeat: pert_0"),
        (lambda table: table.drop(index=0), "lacks ids: pert_0"),
        (lambda table: table.drop(columns=ID), "lacks ids: pert_0"),
    ],
)
def test_what_the_platform_refuses_is_named(spoil, message):
    solution, submission = tables([[1, 0], [0, 1]], [[1, 1], [0.8, 0.8]], [[1, 1], [1, 1]], [2, 2])
    with pytest.raises(UserError, match=message):
        score_table(solution, spoil(submission))
    with pytest.raises(UserError, match=r"weights of a row sum to 2 but for 0\.5"):
        score_table(solution.assign(w_G0=1.5), submission)


def test_cells_are_scored_as_their_responses_are(screen, tmp_path):
    entries = [Entry(name, "model", getattr(screen, name)) for name in ("good", "bad")]
    own = tmp_path / "own.h5ad"
    perturbed(make_screen(0)).write_h5ad(own)
    found = score(screen.truth, [*entries, Entry("truth", "model", own)], CONTROL, "myllia", tmp_path)
    rows = found.rows.set_index(["entry", "context", "metric"])["raw"]
    for context in found.contexts():
        groups = len(found.significant[found.significant["context"] == context])
        # The truth itself: every gain at the cap, and a cosine of 1.
        assert rows["truth", context, "gain"] == 5
        assert rows["truth", context, "cosine"] == pytest.approx(1)
        assert rows["truth", context, "score"] == pytest.approx(5 * groups)
        assert rows["good", context, "gain"] > rows["bad", context, "gain"]
        assert rows["good", context, "cosine"] > rows["bad", context, "cosine"]
        assert rows["the mean response of the truth", context, "gain"] == pytest.approx(0, abs=1e-12)
    assert found.mean("good") > found.mean("bad")
