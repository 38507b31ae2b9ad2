"""Shrinkage: what a noisy effect is worth, judged by all effects that were measured with it."""

from __future__ import annotations

import numpy as np

NULL_PRIOR = 10.0
"""Weight of the point at zero in the Dirichlet prior of the mixture, a normal's being 1 (ashr's ``nullbiased``)."""
ITERATIONS, TOLERANCE = 100, 1e-4


def shrink_sparse(effect: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Posterior means of effects of which many may be zero and a few may be large (adaptive shrinkage).

    The prior is a mixture of a point at zero and of normal distributions around zero, each twice as wide as the one
    before, whose weights EM fits to the effects. A clear effect then stays as it is, however many
    others are noise (Stephens 2017, Biostatistics 18:275; the R package ashr).

    Args:
        effect: [n] estimates.
        variance: [n] their sampling variances, above zero.

    Returns:
        [n] float64.
    """
    if not len(effect):
        return np.zeros(0)
    effect, variance = effect.astype(np.float64), variance.astype(np.float64)
    smallest = float(np.sqrt(variance.min())) / 10.0
    widest = 2.0 * float(np.sqrt(max((effect**2 - variance).max(), 0.0)))
    widths = smallest * 2.0 ** np.arange(1 + np.ceil(np.log2(max(widest / smallest, 1.0))))
    prior_variance = np.concatenate([[0.0], widths**2])
    total = prior_variance + variance[:, None]
    log_density = -0.5 * (np.log(total) + effect[:, None] ** 2 / total)
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    posterior = density * mixture_weights(density, ITERATIONS, TOLERANCE)
    posterior /= posterior.sum(axis=1, keepdims=True)
    return effect * (posterior * (prior_variance / total)).sum(axis=1)


def mixture_weights(density: np.ndarray, iterations: int, tolerance: float = 0.0) -> np.ndarray:
    """Weights [k] of a mixture's components by EM; the prior leans to the first, the point at zero (``NULL_PRIOR``).

    Args:
        density: [n, k] of each observation under each component, up to a factor of its own.
        iterations: most of them.
        tolerance: largest change of a weight with which it ends before.
    """
    extra = np.zeros(density.shape[1])
    extra[0] = NULL_PRIOR - 1.0
    weight = np.full(len(extra), 1.0 / len(extra))
    for _ in range(iterations):
        counts = weight * (density.T @ (1.0 / (density @ weight))) + extra
        new = counts / counts.sum()
        settled = np.abs(new - weight).max() < tolerance
        weight = new
        if settled:
            break
    return weight


def shrink_vector(effect: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Posterior means under one normal prior, its variance by moments: a vector in a space without preferred axes.

    With one variance for all coordinates the shrinkage is a factor on the whole vector, which keeps its direction
    (empirical Bayes for normal means: Efron & Morris 1973).

    Args:
        effect: [n] coordinates.
        variance: [n] their sampling variances, above zero.

    Returns:
        [n], zero where the coordinates are no larger than their noise.
    """
    if not len(effect):
        return effect
    signal = max(0.0, float(np.average(effect**2 - variance, weights=1.0 / variance)))
    return effect * signal / (signal + variance)
