"""Emission: integers with the asked mean and variance, each cell on its own."""

from __future__ import annotations

import numpy as np
import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.prediction.emit import emit, emit_from_controls


def test_mean_and_variance() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.15, 0.05])
    dispersion = np.array([0.1, 0.5, 1.0, 3.0])
    counts = emit(np.tile(np.log(share), (40_000, 1)), np.full(40_000, 100.0), dispersion, rng)
    assert counts.dtype == np.int32
    mean = 100.0 * share
    np.testing.assert_allclose(counts.mean(0), mean, rtol=0.05)
    np.testing.assert_allclose(counts.var(0), mean + dispersion * mean**2, rtol=0.1)


def test_cells_differ_and_depth_is_each_cells_own() -> None:
    rng = np.random.default_rng(0)
    share = np.full(500, 1 / 500)
    depth = np.array([100.0, 10_000.0, 10_000.0])
    counts = emit(np.tile(np.log(share), (3, 1)), depth, np.full(500, 0.05), rng)
    np.testing.assert_allclose(counts.sum(1), depth, rtol=0.2)
    assert (counts[1] != counts[2]).any()


def test_a_gene_that_cannot_appear_does_not() -> None:
    rng = np.random.default_rng(0)
    log_share = np.log(np.array([[0.5, 0.5, 1.0]]))
    log_share[:, 2] = -np.inf
    assert emit(np.repeat(log_share, 100, 0), np.full(100, 50.0), np.full(3, 0.3), rng)[:, 2].sum() == 0


def test_the_same_generator_gives_the_same_cells() -> None:
    one, two = (emit(np.zeros((3, 2)), np.ones(3), np.ones(2), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_count_that_fits_no_integer_is_refused() -> None:
    log_share = np.zeros((1, 1))
    with pytest.raises(UserError, match=r"a predicted count is .*predict.depth"):
        emit(log_share, np.array([1e15]), np.array([0.01]), np.random.default_rng(0))
    counts = np.full((1, 1), 1000)
    with pytest.raises(UserError, match=r"a predicted count is .*predict.depth"):
        changed(counts, log_share, log_share, np.array([0.01]), np.random.default_rng(0), np.array([1e15]))


def controls(rng: np.random.Generator, n: int, share: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Counts [n, G] of control cells whose depths differ."""
    mean = rng.lognormal(6.0, 0.5, n)[:, None] * share
    return rng.poisson(rng.gamma(1 / dispersion, dispersion * mean))


def changed(counts, log_share, profile, dispersion, rng, depth=None, again=False):
    depth = counts.sum(1).astype(float) if depth is None else depth
    shape = counts.shape
    return emit_from_controls(
        counts,
        np.broadcast_to(log_share, shape),
        np.broadcast_to(profile, shape),
        depth,
        dispersion,
        np.full(len(counts), again),
        rng,
    )


def test_a_control_cell_that_nothing_changes_is_itself() -> None:
    rng = np.random.default_rng(0)
    profile = np.log(rng.dirichlet(np.ones(30)))
    counts = controls(rng, 200, np.exp(profile), np.full(30, 0.4))
    found = changed(counts, profile, profile, np.full(30, 0.4), rng)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, counts)


def test_thinned_and_grown_cells_are_as_drawn_anew() -> None:
    # Under the prior of the control profile, mean and variance of every gene are those of the negative binomial around
    # the predicted share, for cells that were changed and for those drawn once more.
    rng = np.random.default_rng(1)
    share, dispersion = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.5, 1.0, 2.0])
    target = share * np.array([0.25, 1.0, 2.0, 2.5])
    target /= target.sum()
    # Genes that nothing touches hold most counts, so that a cell's own normaliser does not vary.
    share, target = (np.concatenate([0.05 * one, np.full(200, 0.95 / 200)]) for one in (share, target))
    dispersion = np.concatenate([dispersion, np.full(200, 0.002)])
    mean = 2000.0
    counts = rng.poisson(rng.gamma(1 / dispersion, dispersion * mean * share, (20_000, 204)))
    for again in (False, True):
        found = changed(counts, np.log(target), np.log(share), dispersion, rng, again=again)[:, :4]
        expected = (mean * target)[:4]
        np.testing.assert_allclose(found.mean(0), expected, rtol=0.05)
        np.testing.assert_allclose(found.var(0), expected + dispersion[:4] * expected**2, rtol=0.12)


def test_depth_is_kept_or_as_asked_in_cells_whose_composition_differs() -> None:
    # One gene holds a tenth to nine tenths of a cell. Halving it takes a cell's depth from nobody.
    rng = np.random.default_rng(2)
    rest, own = rng.dirichlet(np.full(50, 5.0)), rng.uniform(0.1, 0.9, 400)
    counts = rng.poisson(2000.0 * np.column_stack([own, (1 - own)[:, None] * rest]))
    profile = np.log(counts.sum(0) / counts.sum())
    log_share = profile.copy()
    log_share[0] -= np.log(2.0)
    log_share -= np.log(np.exp(log_share).sum())
    for depth in (counts.sum(1).astype(float), np.full(400, 700.0), np.full(400, 6000.0)):
        found = changed(counts, log_share, profile, np.full(51, 0.3), rng, depth)
        np.testing.assert_allclose(found.sum(1).mean(), depth.mean(), rtol=0.01)
        assert np.abs(found.sum(1) / depth - 1).max() < 0.25
    halved = changed(counts, log_share, profile, np.full(51, 0.3), rng)
    odds = [np.corrcoef(np.log(c[:, 0] / c[:, 1:].sum(1)), np.log(own / (1 - own)))[0, 1] for c in (counts, halved)]
    assert min(odds) > 0.98
    rest_then, rest_now = (one[:, 1:] / one[:, 1:].sum(1, keepdims=True) for one in (counts, halved))
    np.testing.assert_allclose(rest_now.mean(0), rest_then.mean(0), rtol=0.1)


def test_a_gene_that_was_not_measured_stays_absent() -> None:
    rng = np.random.default_rng(3)
    profile = np.log(np.array([0.5, 0.5, 1.0]))
    profile[2] = -np.inf
    counts = np.column_stack([rng.poisson(50.0, (100, 2)), np.zeros(100, int)])
    log_share = np.log(np.array([0.2, 0.7, 0.1]))
    for again in (False, True):
        found = changed(counts, log_share, profile, np.full(3, 0.3), rng, again=again)
        assert found[:, 2].sum() == 0
        assert found[:, 1].mean() > 60
