"""How strong perturbations are: amplitudes, estimated together, of which many may be zero."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vcc_fm.responses.shrinkage import mixture_weights

LEAST_AMPLITUDE = 0.01
"""Beside the root mean square: an inert perturbation has next to no effect."""
AMPLITUDES, SMALLEST, ITERATIONS = 40, 0.05, 200
"""Of the grid of amplitudes: their number, the smallest above zero beside the largest; how long weights are fitted."""


@dataclass(frozen=True)
class AmplitudePrior:
    """Squared amplitudes of responses, each with its precision, and how those of perturbations are distributed.

    Attributes:
        size, certain: [n] estimates from each training group alone, and their precisions.
        at: [n] perturbation of each group.
        grid: [k] amplitudes that a perturbation may have; the first is 0.
        weight: [k] their probabilities.
        mean_square: of the shrunken amplitudes, over groups.
    """

    size: np.ndarray
    certain: np.ndarray
    at: np.ndarray
    grid: np.ndarray
    weight: np.ndarray
    mean_square: float = 1.0

    @classmethod
    def of(cls, size: np.ndarray, certain: np.ndarray, at: np.ndarray) -> AmplitudePrior:
        """The distribution that makes the estimates likeliest, on a grid, by EM (Kiefer & Wolfowitz 1956).

        With the same leaning to zero as :func:`shrink_sparse`: what few perturbations leave open is no effect.
        """
        precision = np.bincount(at, certain)
        found = np.bincount(at, size * certain) / precision
        largest = np.sqrt(max(float(found.max()), 1e-12))
        grid = np.concatenate([[0.0], largest * np.geomspace(SMALLEST, 1.0, AMPLITUDES - 1)])
        free = cls(size, certain, at, grid, np.full(AMPLITUDES, 1 / AMPLITUDES))
        weight = mixture_weights(free._density(found, precision), ITERATIONS)
        # An amplitude of no weight at all would leave an odd group without any.
        free = replace(free, weight=np.maximum(weight, 1e-9))
        return replace(free, mean_square=max(float(np.mean(free.amplitude**2)), 1e-12))

    @property
    def amplitude(self) -> np.ndarray:
        """[n] of the groups' perturbations."""
        precision = np.bincount(self.at, self.certain)
        return self._shrunken(np.bincount(self.at, self.size * self.certain) / precision, precision)[self.at]

    def without(self, rows: np.ndarray, unknown: float) -> np.ndarray:
        """[rows] of their perturbations, as the other groups tell; ``unknown`` where there is none."""
        at, several = self.at[rows], np.bincount(self.at)[self.at[rows]] > 1
        total = np.bincount(self.at, self.size * self.certain)[at] - (self.size * self.certain)[rows]
        precision = np.where(several, np.bincount(self.at, self.certain)[at] - self.certain[rows], 1.0)
        return np.where(several, self._shrunken(total / precision, precision), unknown)

    def _shrunken(self, found: np.ndarray, precision: np.ndarray) -> np.ndarray:
        """Posterior means."""
        posterior = self.weight * self._density(found, precision)
        amplitude = posterior @ self.grid / posterior.sum(axis=1)
        return np.asarray(np.maximum(amplitude / np.sqrt(self.mean_square), LEAST_AMPLITUDE))

    def _density(self, found: np.ndarray, precision: np.ndarray) -> np.ndarray:
        """Density of estimates given the amplitudes of the grid, beside the likeliest [estimates, k]."""
        far = precision[:, None] * (found[:, None] - self.grid**2) ** 2
        return np.asarray(np.exp(-0.5 * (far - far.min(axis=1, keepdims=True))))
