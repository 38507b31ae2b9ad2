"""Vectors are read in a common size, whatever encoder they come from."""

from __future__ import annotations

import numpy as np
import torch

from vcc_fm.decoder.scaling import VectorScaling


def test_shift_and_size_of_an_encoder_do_not_matter() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.float32([1, 2, 3, 4])
    other = 300 * vectors + np.float32([7, -5, 0, 100])
    read = []
    for given in (vectors, other):
        scaling = VectorScaling(4)
        scaling.fit(given)
        read.append(scaling(torch.from_numpy(given)))
    torch.testing.assert_close(read[0], read[1], rtol=0, atol=1e-5)
    assert abs(float(read[0].var(0, correction=0).mean()) - 1) < 1e-5
    # Components keep their proportions.
    assert read[0].std(0)[3] / read[0].std(0)[0] > 3


def test_equal_vectors_stay_finite() -> None:
    scaling = VectorScaling(2)
    scaling.fit(np.ones((3, 2), np.float32))
    assert scaling(torch.ones(2)).tolist() == [0.0, 0.0]


def test_what_was_fitted_is_saved_with_the_decoder() -> None:
    scaling, loaded = VectorScaling(2), VectorScaling(2)
    scaling.fit(np.array([[0, 1], [2, 5]], np.float32))
    loaded.load_state_dict(scaling.state_dict())
    assert torch.equal(loaded(torch.ones(2)), scaling(torch.ones(2)))
