"""Shrinkage: against the posterior means of a known prior, and what it must not do to a rare large effect."""

import numpy as np
import pytest

from vcc_fm.responses.shrinkage import shrink_sparse, shrink_vector


def spikes_and_slab(rng: np.random.Generator, n: int = 4000, share: float = 0.1, width: float = 1.5):
    """Effects of which a share is normal and the rest zero, measured with noise of several sizes."""
    there = rng.random(n) < share
    effect = np.where(there, rng.normal(0, width, n), 0.0)
    noise = rng.choice([0.05, 0.3, 1.0], n)
    return effect, effect + noise * rng.standard_normal(n), noise**2


def known_posterior(seen: np.ndarray, variance: np.ndarray, share: float = 0.1, width: float = 1.5) -> np.ndarray:
    def density(total):
        return np.exp(-0.5 * seen**2 / total) / np.sqrt(total)

    slab = share * density(width**2 + variance)
    slab /= slab + (1 - share) * density(variance)
    return slab * seen * width**2 / (width**2 + variance)


def test_it_comes_close_to_who_knows_the_prior():
    effect, seen, variance = spikes_and_slab(np.random.default_rng(0))
    found, best = shrink_sparse(seen, variance), known_posterior(seen, variance)
    assert np.mean((found - effect) ** 2) < 1.03 * np.mean((best - effect) ** 2)
    assert np.mean((shrink_vector(seen, variance) - effect) ** 2) > 1.3 * np.mean((found - effect) ** 2)


def test_one_large_effect_among_noise_stays_and_noise_goes():
    rng = np.random.default_rng(1)
    variance = rng.uniform(0.01, 0.2, 3000)
    seen = rng.standard_normal(3000) * np.sqrt(variance)
    seen[5], variance[5] = -2.59, (2.59 / 12) ** 2
    found = shrink_sparse(seen, variance)
    assert found[5] == pytest.approx(-2.59, abs=0.1)
    assert np.square(np.delete(found, 5)).mean() < 0.01 * np.square(np.delete(seen, 5)).mean()


@pytest.mark.parametrize("shrink", [shrink_sparse, shrink_vector])
def test_edges(shrink):
    assert shrink(np.zeros(0), np.zeros(0)).shape == (0,)
    np.testing.assert_array_equal(shrink(np.zeros(4), np.ones(4)), np.zeros(4))
    rng = np.random.default_rng(2)
    seen, variance = rng.standard_normal(50), rng.uniform(0.1, 2, 50)
    found = shrink(seen, variance)
    assert (np.abs(found) <= np.abs(seen)).all()
    assert (found * seen >= 0).all()
    # Units do not matter, nor does the sign or the order.
    np.testing.assert_allclose(shrink(-3 * seen[::-1], 9 * variance[::-1]), -3 * found[::-1], rtol=1e-6, atol=1e-12)


def test_a_vector_keeps_its_direction():
    seen = np.random.default_rng(3).standard_normal(100)
    found = shrink_vector(seen, np.full(100, 0.2))
    signal = np.mean(seen**2) - 0.2
    np.testing.assert_allclose(found, seen * signal / (signal + 0.2))
