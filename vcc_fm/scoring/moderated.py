"""Moderated t-statistics of two groups of cells: variances of genes borrow from each other.

G. K. Smyth, Linear models and empirical Bayes methods for assessing differential expression in microarray experiments,
Stat. Appl. Genet. Mol. Biol. 3 (2004), article 3; the estimates are those of its section 6.2, as in limma.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma


def moderated_t(means: np.ndarray, squares: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The moderated t of the first group's mean less the second's and its two-sided p, float64 [G] each.

    Args:
        means: of the two groups, [2, G].
        squares: sums of squared distances from the group's mean, [2, G].
        cells: of the two groups, three or more together, [2].
    """
    freedom = int(cells.sum()) - 2
    variance = squares.sum(axis=0) / freedom
    prior, typical = prior_of(variance, freedom)
    # A gene without variance has the prior's share alone; where nothing varies, nothing can be told.
    posterior = typical if np.isinf(prior) else (prior * typical + freedom * variance) / (prior + freedom)
    error = np.sqrt(posterior * (1 / cells).sum())
    difference = means[0] - means[1]
    t = np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)
    # No more degrees than all genes have together, as limma has it.
    return t, 2 * stats.t.sf(np.abs(t), min(prior + freedom, freedom * len(variance)))


def prior_of(variance: np.ndarray, freedom: float) -> tuple[float, float]:
    """Degrees of freedom and variance of the prior, from variances [G] with ``freedom`` degrees each.

    The variances of genes are taken as draws of s0² F(freedom, d0): mean and variance of their logarithms give d0 and
    s0². Where they spread no more than chance makes them, d0 is infinite and s0² their mean. Genes without variance
    tell nothing; where fewer than two have one, d0 is 0.
    """
    seen = variance[variance > 0]
    if len(seen) < 2:
        return 0.0, 0.0
    logs = np.log(seen) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(ddof=1) - polygamma(1, freedom / 2)
    if excess <= 0:
        return np.inf, float(seen.mean())
    prior = 2 * trigamma_inverse(float(excess))
    return prior, float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))


def trigamma_inverse(value: float) -> float:
    """The x > 0 whose trigamma is ``value`` > 0. Trigamma falls, and is between 1 / x and 1 / x + 1 / x²."""
    low, high = 1 / value, 1 / value + 1 / np.sqrt(value)
    return float(brentq(lambda x: polygamma(1, x) - value, low, high, xtol=1e-300, rtol=1e-12))
