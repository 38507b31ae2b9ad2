"""Amplitudes of perturbations, some of which do nothing."""

from __future__ import annotations

import numpy as np
import pytest

from vcc_fm.responses.amplitudes import LEAST_AMPLITUDE, AmplitudePrior


def drawn(true: np.ndarray, groups: int = 1, error: float = 0.1) -> AmplitudePrior:
    """Squared amplitudes of each perturbation in several groups, with a normal error."""
    at = np.repeat(np.arange(len(true)), groups)
    size = true[at] ** 2 + np.random.default_rng(0).normal(0, error, len(at))
    return AmplitudePrior.of(size, np.full(len(at), error**-2), at)


def test_what_does_nothing_has_next_to_no_amplitude_and_the_others_keep_theirs():
    true = np.repeat([0.0, 1.0, 2.0], [100, 60, 40])
    found = drawn(true).amplitude
    assert np.mean(found**2) == pytest.approx(1.0, abs=0.01)
    # Root mean square 1, so 1 and 2 are worth so much.
    unit = 1 / np.sqrt(np.mean(true**2))
    assert (found >= LEAST_AMPLITUDE).all()
    assert np.median(found[:100]) < 0.1 * unit
    np.testing.assert_allclose(found[100:160].mean(), unit, rtol=0.03)
    np.testing.assert_allclose(found[160:].mean(), 2 * unit, rtol=0.03)


def test_all_alike_are_one_amplitude_whatever_their_noise():
    found = drawn(np.full(50, 3.0), error=1.0).amplitude
    np.testing.assert_allclose(found, 1.0, atol=0.1)


def test_a_group_left_out_counts_by_the_others_of_its_perturbation():
    true = np.repeat([0.0, 1.0], [20, 20])
    prior = drawn(true, groups=3)
    left = prior.without(np.array([0, 3 * 20]), 9.0)
    assert left[0] < 0.2
    assert left[1] == pytest.approx(prior.amplitude[3 * 20], abs=0.15)
    assert drawn(true).without(np.array([5]), 9.0)[0] == 9.0
