"""Dispersion of control cells, against simulated cells whose dispersion is known."""

import numpy as np
import pytest
from tiny_screens import CONTROL, draw_counts, screen, store_of

from vcc_fm.responses.dispersion import LARGEST, SMALLEST, control_dispersion, null_ratios
from vcc_fm.responses.profiles import control_log_shares

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vcc_fm.responses.dispersion.CHUNK", 100)
        np.testing.assert_allclose(control_dispersion(store, log_shares), found, rtol=1e-9)
    return found


def test_moments_and_weighted_sums_are_those_of_their_formulas(tmp_path):
    rng = np.random.default_rng(5)
    counts = draw_counts(rng, rng.dirichlet(np.full(8, 4.0)), rng.uniform(50, 400, 200), 0.6)
    store = store_of(
        tmp_path, screen(counts, "K", "12" * 100, [CONTROL] * 190 + ["A"] * 10, [f"g{i}" for i in range(8)])
    )
    profile, rows = control_log_shares(store), store.rows(perturbation=CONTROL)
    x, mu = store.dense(rows).astype(float), store.depth[rows, None] * np.exp(profile[store.batch[rows]].astype(float))
    excess, squares = ((x - mu) ** 2 - mu).sum(axis=0), (mu**2).sum(axis=0)
    better = squares > np.median(squares)
    common = np.median(excess[better] / squares[better])
    alpha = control_dispersion(store, profile)
    np.testing.assert_allclose(alpha, (excess + 20 * common) / (squares + 20), rtol=1e-4)
    weight = 1 / (1 + alpha * mu)
    ratio = (20 + (weight * x).sum(axis=0)) / (20 + (weight * mu).sum(axis=0))
    np.testing.assert_allclose(null_ratios(store, profile, alpha)[0], ratio, rtol=1e-5)


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


def test_no_effect_is_the_optimum_of_the_likelihood_among_control_cells(tmp_path):
    # A gene whose share follows nothing but chance, and one that takes a cell over: profiles weigh cells by UMI, a
    # likelihood does not, and the difference looked like an effect of 0.1 on all genes.
    rng = np.random.default_rng(4)
    share = rng.gamma(2.0, 1.0, 30)
    rest = share / share.sum() * rng.lognormal(np.log(2000), 0.5, 600)[:, None]
    rest[:, 3] = rest.sum(1) * rng.lognormal(-0.3, 1.0, 600)
    labels = [CONTROL] * 590 + ["A"] * 10
    store = store_of(
        tmp_path,
        screen(rng.poisson(rest), "K", (np.arange(600) % 2).astype(str), labels, [f"g{i}" for i in range(30)]),
    )
    profile = control_log_shares(store)
    alpha = control_dispersion(store, profile)
    rows = store.rows("K", CONTROL)
    counts, mean = store.dense(rows), store.depth[rows, None] * np.exp(profile[store.batch[rows]])

    def slope(ratio):
        """Derivative of the log-likelihood by the log of the mean, in units of its own expected spread."""
        weight = 1 / (1 + alpha * mean * ratio)
        return (weight * (counts - mean * ratio)).sum(0) / np.sqrt((weight * mean * ratio).sum(0))

    ratio = null_ratios(store, profile, alpha)[0]
    assert np.abs(slope(np.ones(30))).max() > 5
    assert np.abs(slope(ratio)).max() < 1
    assert ratio[3] < 0.95 < 1.03 < np.median(np.delete(ratio, 3))


def test_where_cells_are_as_the_likelihood_says_it_wants_the_profile(tmp_path):
    rng = np.random.default_rng(5)
    counts = draw_counts(rng, rng.dirichlet(np.full(40, 2.0)), rng.lognormal(7, 0.5, 1500), 0.3)
    names = [f"g{i}" for i in range(40)]
    store = store_of(tmp_path, screen(counts, "K", "1", [CONTROL] * 1490 + ["A"] * 10, names))
    profile = control_log_shares(store)
    assert np.abs(null_ratios(store, profile, control_dispersion(store, profile)) - 1).max() < 0.04
