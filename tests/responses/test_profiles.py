"""Control profiles: shares of the counts in control cells, batch by batch."""

import numpy as np
import pytest
from tiny_screens import CONTROL, screen, store_of

from vcc_fm.ground.errors import UserError
from vcc_fm.responses.profiles import control_log_shares


def test_the_posterior_of_a_batch_by_hand(tmp_path):
    counts = [[20_000, 30_000], [40_000, 10_000], [10_000, 90_000], [7, 1], [3, 500]]
    labels = [CONTROL, CONTROL, CONTROL, "A", "A"]
    store = store_of(tmp_path, screen(np.array(counts), "K", ["1", "1", "2", "1", "3"], labels))
    shares = np.exp(control_log_shares(store))
    # Controls of batch 1: 60,000 and 40,000; of batch 2: 10,000 and 90,000; batch 3 has none.
    context = 70_000.5 / 200_001
    expected = [(60_000 + 200_000 * context) / 300_000, (10_000 + 200_000 * context) / 300_000, context]
    assert store.batches == ["1", "2", "3"]
    np.testing.assert_allclose(shares[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-6)


def test_each_context_has_its_own_profile_even_in_one_lane(tmp_path):
    counts = np.array([[9000, 1000], [1000, 9000], [5, 5], [5, 5]])
    store = store_of(tmp_path, screen(counts, ["K", "H", "K", "H"], "lane", [CONTROL, CONTROL, "A", "A"]))
    shares = np.exp(control_log_shares(store))
    for context, expected in (("K", 0.9), ("H", 0.1)):
        batch = np.unique(store.batch[store.rows(context)])
        assert shares[batch, 0] == pytest.approx([expected], abs=1e-3)


def test_shares_sum_to_one_over_the_measured_genes(tmp_path):
    rng = np.random.default_rng(0)
    labels = [CONTROL, CONTROL, "A", "B"]
    first = screen(rng.poisson(3.0, (4, 3)), "K", "1", labels, ["a", "b", "c"])
    second = screen(rng.poisson(3.0, (4, 2)), ["K", "H", "K", "H"], "1", labels, ["c", "d"])
    store = store_of(tmp_path, first, second)
    log_shares = control_log_shares(store)
    np.testing.assert_array_equal(np.isfinite(log_shares), store.measured)
    np.testing.assert_allclose(np.exp(log_shares).sum(axis=1), 1.0, rtol=1e-6)
    assert np.isneginf(log_shares[~store.measured]).all()
    assert log_shares.dtype == np.float32


def test_a_gene_is_not_rarer_for_being_measured_in_fewer_files(tmp_path):
    # Gene c is half of what the first file counted; the second, twenty times as deep, did not measure it.
    labels = [CONTROL, "A"]
    first = screen(np.array([[250, 250, 500], [1, 1, 1]]), "K", "1", labels, ["a", "b", "c"])
    second = screen(np.array([[10_000, 10_000], [1, 1]]), "K", "1", labels, ["a", "b"])
    shares = np.exp(control_log_shares(store_of(tmp_path, first, second)))
    np.testing.assert_allclose(shares, [[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]], rtol=0.01)


def test_a_gene_that_no_control_batch_measured_is_rare(tmp_path):
    first = screen(np.array([[4000, 6000], [1, 1]]), "K", "1", [CONTROL, "A"], ["a", "b"])
    elsewhere = screen(np.array([[50, 50, 50], [40, 60, 0]]), "H", "1", [CONTROL, "A"], ["a", "b", "c"])
    without = screen(np.array([[50, 50, 50], [9, 9, 9]]), ["H", "K"], "1", [CONTROL, "A"], ["a", "b", "c"])
    store = store_of(tmp_path, first, elsewhere, without)
    share = np.exp(control_log_shares(store)[store.batches.index("K:s2:1")])
    np.testing.assert_allclose(share, [0.4, 0.6, 0.5 / 10_000], rtol=0.01)


def test_a_context_without_controls_is_refused(tmp_path):
    store = store_of(tmp_path, screen(np.ones((3, 2)), ["K", "K", "H"], "1", [CONTROL, "A", "A"]))
    with pytest.raises(UserError, match=r"no control cells \('control'\) in context H: a prediction starts from"):
        control_log_shares(store)
