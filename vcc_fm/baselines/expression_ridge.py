"""What a linear model makes of how the target genes themselves respond to other perturbations."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vcc_fm.baselines.ridge import Ridge
from vcc_fm.responses.kernels import principal_axes

COMPONENTS = 10


class ExpressionRidge(Ridge):
    """Ridge regression of log ratios on the target genes' loadings on their principal components.

    The linear model of Ahlmann-Eltze, Huber & Anders, Nature Methods 22:1657 (2025): genes are embedded by the
    principal components of the training responses, and a perturbation by the embedding of its target genes.
    """

    @cached_property
    def _loadings(self) -> np.ndarray:
        """[G, K] loadings of the genes, K at most ``COMPONENTS``."""
        ratio = self.data.responses.ratio
        values, axes = principal_axes(ratio - ratio.mean(axis=0), COMPONENTS)
        return axes[values > 1e-4 * values.max(initial=0.0)].T

    def features(self, perturbation: str) -> np.ndarray | None:
        """Mean loadings of the target genes, [K]; None where one of them is not on the axis."""
        genes, rows = self.data.targets(perturbation), self.data.axis
        if not rows.keys() >= set(genes):
            return None
        return np.asarray(self._loadings[[rows[gene] for gene in genes]].mean(axis=0))
