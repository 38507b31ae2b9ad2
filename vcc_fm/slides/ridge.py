"""Ridge regression of expression on patches: what the decoder starts from, and a baseline."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vcc_fm.encoders.images.encoder import COLOURS
from vcc_fm.slides.data import PatchData

PENALTIES = np.logspace(-4, 2, 13)
"""Relative to the number of nuclei; after them the mean alone is tried."""
AT_MOST = 20_000
"""Training, and validation, nuclei that a regression is fitted on."""


class Ridge(NamedTuple):
    """``mean + (features - centre) / size @ slope``, all float32.

    Attributes:
        centre: [F] mean of the training features.
        size: [F] their standard deviation, 1 where there is none.
        slope: [F, G].
        mean: [G] of the training targets.
    """

    centre: np.ndarray
    size: np.ndarray
    slope: np.ndarray
    mean: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """[n, G] float32."""
        return ((features - self.centre) / self.size) @ self.slope + self.mean


def fit(
    x: np.ndarray, y: np.ndarray, held_x: np.ndarray, held_y: np.ndarray, columns: np.ndarray
) -> tuple[float, Ridge]:
    """Fit on ``x`` [n, F] and ``y`` [n, G]; the penalty has the least squared error on what is held out.

    slope = Q (Λ + penalty n)^-1 Q'X'Y with X'X = Q Λ Q', of standardised features; of ``columns``, bool [F], alone.

    Returns:
        That error, summed over nuclei and genes, and the regression.
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
    return errors[best], Ridge(*(part.astype(np.float32) for part in (centre, size, slope, mean)))


def fit_patches(data: PatchData, *columns: np.ndarray) -> Ridge:
    """Regressions of values and ranks [T] on the patches of training nuclei.

    Args:
        data: the nuclei; penalties are chosen on those that validate.
        columns: sets of features, bool [2 F]; each is tried, and the best on the validation nuclei taken.
    """
    train, held = (rows[:: -(-len(rows) // AT_MOST)] for rows in map(data.rows, ("train", "validation")))
    x, held_x, both = data.patches(train), data.patches(held), []
    for of in (data.values, data.ranks):
        y, held_y = of(train), of(held)
        both.append(min((fit(x, y, held_x, held_y, one) for one in columns), key=lambda found: found[0])[1])
    value, rank = both
    slope, mean = np.concatenate([value.slope, rank.slope], axis=1), np.concatenate([value.mean, rank.mean])
    return value._replace(slope=slope, mean=mean)


def colour_columns(data: PatchData) -> np.ndarray:
    """Which numbers of both patches are colours, bool [2 F]."""
    return np.tile(np.arange(data.store.width) >= data.store.width - COLOURS, 2)


def start_of(data: PatchData) -> Ridge:
    """What a decoder starts from: regressions on both patches, or on their colours alone where that is better."""
    return fit_patches(data, np.ones(2 * data.store.width, bool), colour_columns(data))
