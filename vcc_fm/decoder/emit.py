"""Emission: from a distribution to integer cells, each drawn on its own."""

from __future__ import annotations

import numpy as np


def emit(log_share: np.ndarray, depth: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw negative-binomial counts as a gamma-Poisson mixture.

    Args:
        log_share: [n, G] natural log of each gene's share of a cell's counts; -inf for a gene that cannot appear.
        depth: [n] expected UMI total of each cell.
        dispersion: [G] alpha of ``variance = mu + alpha mu^2``, above zero.
        rng: source of randomness.

    Returns:
        [n, G] int32 counts.
    """
    mean = depth[:, None] * np.exp(log_share.astype(np.float64))
    rate = rng.gamma(1.0 / dispersion, dispersion * mean)
    return rng.poisson(rate).astype(np.int32)
