"""What a linear model makes of how the target genes themselves respond to other perturbations."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vcc_fm.baselines.ridge import Ridge

COMPONENTS = 10


class ExpressionRidge(Ridge):
    """Ridge regression of log ratios on the target genes' loadings on their principal components.

    The linear model of Ahlmann-Eltze, Huber & Anders, Nature Methods 22:1657 (2025): genes are embedded by the
    principal components of the training responses, and a perturbation by the embedding of its target genes.
    """

    @cached_property
    def _loadings(self) -> np.ndarray:
        """[G, K] loadings of the genes, K at most ``COMPONENTS``."""
        ratio = self.data.responses.ratio.astype(np.float64)
        centred = ratio - ratio.mean(axis=0)
        # In the space of groups, of which there are fewer than genes.
        values, vectors = np.linalg.eigh(centred @ centred.T)
        kept = [i for i in np.argsort(-values)[:COMPONENTS] if values[i] > 1e-9 * values.max()]
        return centred.T @ vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1e-300))

    def features(self, perturbation: str) -> np.ndarray | None:
        """Mean loadings of the target genes, [K]; None where one of them is not on the axis."""
        genes, rows = self.data.targets(perturbation), self.data.axis
        if not rows.keys() >= set(genes):
            return None
        return np.asarray(self._loadings[[rows[gene] for gene in genes]].mean(axis=0))
