"""The effect scale that validation scores ask for."""

import math

import pytest

from vcc_fm.prediction.calibrate import SCALES, best_scale


def test_the_best_scale_is_the_top_of_a_parabola_within_those_tried():
    assert best_scale({scale: -((math.log(scale) - math.log(1.1)) ** 2) for scale in SCALES}) == pytest.approx(1.1)
    assert best_scale({scale: scale for scale in SCALES}) == max(SCALES)


def test_without_a_scaled_mean_nothing_is_scaled():
    assert best_scale(dict.fromkeys(SCALES, math.nan)) == 1.0
