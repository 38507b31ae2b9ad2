"""Dispersion of control cells, against simulated cells whose dispersion is known."""

import numpy as np
import pytest
from tiny_screens import CONTROL, draw_counts, screen, store_of

from vcc_fm.cellsets.dispersion import LARGEST, SMALLEST, control_dispersion
from vcc_fm.cellsets.profiles import control_log_shares

GENES = 30
ALPHA = np.geomspace(0.05, 1.0, GENES)


def estimate(folder, uneven: bool, perturbed: float = 1.0) -> np.ndarray:
    """Dispersion from 3,000 controls in two batches, with uneven depth and strong batch effects or without."""
    rng = np.random.default_rng(3)
    share = rng.dirichlet(np.full(GENES, 8.0), 2)
    batch = np.arange(3000) % 2
    depth = rng.uniform(500, 5000, 3000) if uneven else np.full(3000, 2000.0)
    counts = draw_counts(rng, share[batch if uneven else 0 * batch], depth, ALPHA)
    labels = np.where(np.arange(3000) < 2900, CONTROL, "A")
    counts[2900:] = (counts[2900:] * perturbed).astype(int)
    names = [f"g{i}" for i in range(GENES)]
    store = store_of(folder, screen(counts, "K", batch.astype(str), labels, names))
    log_shares = control_log_shares(store)
    found = control_dispersion(store, log_shares)
    np.testing.assert_allclose(control_dispersion(store, log_shares, chunk=100), found, rtol=1e-9)
    return found


@pytest.mark.parametrize("uneven", [False, True])
def test_the_simulated_dispersion_is_recovered(tmp_path, uneven):
    found = estimate(tmp_path, uneven)
    assert np.abs(np.log(found / ALPHA)).max() < 0.35
    assert abs(np.log(found / ALPHA).mean()) < 0.08


def test_perturbed_cells_are_not_read(tmp_path):
    np.testing.assert_array_equal(estimate(tmp_path / "a", True), estimate(tmp_path / "b", True, perturbed=5.0))


def test_a_gene_with_few_counts_takes_the_common_value_and_all_stay_in_bounds(tmp_path):
    rng = np.random.default_rng(0)
    share = np.r_[1e-6, np.full(9, 1 / 9)]
    counts = draw_counts(rng, share, np.full(800, 1000.0), 0.4)
    wild = counts.copy()
    wild[:, 5] = np.where(np.arange(800) == 5, 10**6, 0)
    wild[:, 6] = 100
    names = [f"g{i}" for i in range(10)]
    labels = np.where(np.arange(800) < 799, CONTROL, "A")
    for name, table in (("plain", counts), ("wild", wild)):
        store = store_of(tmp_path / name, screen(table, "K", "1", labels, names))
        found = control_dispersion(store, control_log_shares(store))
        assert ((found >= SMALLEST) & (found <= LARGEST)).all()
        if name == "plain":
            assert found[0] == pytest.approx(0.4, rel=0.25)


def test_a_gene_counts_where_it_was_measured(tmp_path):
    rng = np.random.default_rng(1)
    labels = np.where(np.arange(1500) < 1490, CONTROL, "A")
    names = [f"g{i}" for i in range(10)]
    counts = draw_counts(rng, np.full(10, 0.1), np.full(1500, 1000.0), 0.5)
    fewer = draw_counts(rng, np.full(9, 1 / 9), np.full(1500, 1000.0), 0.5)
    store = store_of(tmp_path, screen(counts, "K", "1", labels, names), screen(fewer, "K", "1", labels, names[:9]))
    found = control_dispersion(store, control_log_shares(store))
    np.testing.assert_allclose(found, 0.5, rtol=0.25)
