"""Ridge regression of expression on patches: what the decoder starts from, and a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENALTIES = np.logspace(-4, 2, 13)
"""Relative to the number of nuclei; after them the mean alone is tried."""


@dataclass(frozen=True)
class Ridge:
    """``mean + (features - centre) / size @ slope``, all float32.

    Attributes:
        centre: [F] mean of the training features.
        size: [F] their standard deviation, 1 where there is none.
        slope: [F, G].
        mean: [G] of the training targets.
        error: squared error on the validation nuclei.
    """

    centre: np.ndarray
    size: np.ndarray
    slope: np.ndarray
    mean: np.ndarray
    error: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """[n, G] float32."""
        return ((features - self.centre) / self.size) @ self.slope + self.mean


def fit(x: np.ndarray, y: np.ndarray, held_x: np.ndarray, held_y: np.ndarray, columns: np.ndarray) -> Ridge:
    """Fit on ``x`` [n, F] and ``y`` [n, G]; the penalty has the least squared error on what is held out.

    slope = Q (Λ + penalty n)^-1 Q'X'Y with X'X = Q Λ Q', of standardised features.

    Args:
        x: training features.
        y: training targets.
        held_x: validation features.
        held_y: validation targets.
        columns: bool [F], which features have a slope.
    """
    centre, mean, spread = x.mean(axis=0, dtype=float), y.mean(axis=0, dtype=float), x.std(axis=0, dtype=float)
    size = np.where(spread > 1e-6 * (np.abs(centre) + 1e-6), spread, 1.0)
    z, held_z = (((one - centre) / size)[:, columns] for one in (x, held_x))
    values, vectors = np.linalg.eigh(z.T @ z)
    turned, seen = vectors.T @ (z.T @ (y - mean)), held_z @ vectors
    factors = [1 / (values.clip(min=0) + penalty * len(x)) for penalty in PENALTIES] + [np.zeros_like(values)]
    errors = [float(((seen * one @ turned + mean - held_y) ** 2).sum()) for one in factors]
    best = int(np.argmin(errors))
    slope = np.zeros((x.shape[1], y.shape[1]))
    slope[columns] = vectors @ (factors[best][:, None] * turned)
    single = [part.astype(np.float32) for part in (centre, size, slope, mean)]
    return Ridge(single[0], single[1], single[2], single[3], errors[best])
