"""The effect scale that validation scores ask for."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vcc_fm.prediction.calibrate import PRIOR, SCALES, SPREAD, best_scale, best_scales, entry_of
from vcc_fm.scoring.compare import MEAN, UNLIMITED

PLACES = np.log(np.divide(SCALES, PRIOR))
NOISE = np.random.default_rng(0).normal(size=(4000, 1))


def drawn(curve, noise):
    """Scores at each scale, as measured and in draws whose slope varies by ``noise``."""
    return np.vstack([curve, curve + noise * (NOISE - NOISE.mean()) / NOISE.std() * PLACES])


def test_without_noise_it_is_the_top_of_a_parabola_within_the_scales_tried():
    assert best_scale(drawn(-((PLACES - np.log(1.25 / PRIOR)) ** 2), 0)) == pytest.approx(1.25)
    assert best_scale(drawn(PLACES, 0)) == pytest.approx(max(SCALES))
    assert best_scale(drawn(-PLACES, 0)) == pytest.approx(min(SCALES))


def test_the_less_validation_tells_the_nearer_is_the_prior():
    # a + b x + c x^2 with b = 0.2, c = -1: the top is at 0.1, and with slope noise s at b / 2 / (1 + s / (2 SPREAD)).
    curve = 0.2 * PLACES - PLACES**2
    for noise in (0.1, 0.6, 6.0):
        place = 0.1 / (1 + noise / (2 * SPREAD))
        assert best_scale(drawn(curve, noise)) == pytest.approx(PRIOR * np.exp(place), rel=1e-6)


def test_a_slope_as_large_as_its_noise_moves_it_by_spread():
    assert best_scale(drawn(0.3 * PLACES, 0.3)) == pytest.approx(PRIOR * np.exp(SPREAD), rel=1e-6)


def test_without_a_scaled_mean_the_prior_is_kept():
    assert best_scale(np.full((3, len(SCALES)), np.nan)) == PRIOR


def test_the_scale_is_that_of_the_entry_that_scores_best_and_what_was_tried_is_kept(table):
    # At the two scales in the middle the predictor scores as a replica does, at the others as no effect.
    entries = {entry_of("p", scale): "replica" if scale in SCALES[1:3] else "no effect" for scale in SCALES}
    parts = {
        name: pd.concat(
            getattr(table, name)[getattr(table, name)["entry"] == like].assign(entry=entry)
            for entry, like in entries.items()
        )
        for name in ("rows", "values")
    }
    best, tried = best_scales(replace(table, **parts), ["p"])
    assert SCALES[1] < best["p"] < SCALES[2]
    assert tried["scale"].tolist() == list(SCALES)
    for row, like in zip(tried.to_dict("records"), entries.values(), strict=True):
        assert row[MEAN] == pytest.approx(table.mean(like))
        assert row["expr_mse_unbiased_capped_norm"] == -table.judged(like, "expr_mse_unbiased_capped_norm")
    assert tried[UNLIMITED].notna().all()
