"""Emission: integers with the asked mean and variance, each cell on its own."""

from __future__ import annotations

import numpy as np

from vcc_fm.decoder.emit import emit


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
