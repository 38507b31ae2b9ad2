"""Means and dispersions of genes as they were measured, in a few numbers.

Fitted to perturbplan's table of negative-binomial baselines in six cell contexts (A549, K562, THP-1, CD8 T cells, iPSC
and neurons; licence MIT): 5,307 genes that all six report and whose mean share is above 3e-5. Below that a dispersion
is hardly known.

    log share   = its mean over genes + KNOTS, interpolated at a normal score
    score[c,g]  = sqrt(ALIKE) N[g] + sqrt(1 - ALIKE) N[c,g]          Gaussian copula of the contexts
    log alpha   = LEVEL + SLOPE (log share - its mean) + SPREAD (sqrt(STEADY) N[g] + sqrt(1 - STEADY) N[c,g])

alpha is that of ``variance = mu + alpha mu^2``. The line through log alpha leaves out 8 % of the pairs of a gene and a
context, which lie beyond three standard deviations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SCORES = np.arange(-3.0, 4.0)
KNOTS = np.array([-5.85, -3.78, -0.96, 0.03, 1.10, 2.90, 4.92])
"""Log share minus its mean over genes, at the normal scores ``SCORES``."""
ALIKE = 0.43
LEVEL, SLOPE, SPREAD, STEADY = -1.38, 0.08, 0.50, 0.33


def log_expression(common: Floats, own: Floats) -> Floats:
    """Log relative expression in one context, [G], from standard normal draws [G] of all contexts and of this one."""
    score = np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * own
    return np.interp(score, SCORES, KNOTS)


def dispersion(log_share: Floats, common: Floats, own: Floats) -> Floats:
    """Dispersion in one context, [G], from :func:`log_expression` and standard normal draws, as there."""
    noise = np.sqrt(STEADY) * common + np.sqrt(1 - STEADY) * own
    return np.exp(LEVEL + SLOPE * log_share + SPREAD * noise)
