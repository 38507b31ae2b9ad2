"""What a linear model makes of the target genes' protein vectors."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.ridge import Ridge


class ProteinRidge(Ridge):
    """Ridge regression of log ratios on protein vectors; of a combination, on the mean of its target genes'."""

    def features(self, perturbation: str) -> np.ndarray | None:
        """Mean protein vector of the target genes, [V]; None where one of them has none."""
        genes, rows = self.data.targets(perturbation), self.data.protein_rows
        if not rows.keys() >= set(genes):
            return None
        return np.asarray(self.data.protein_vectors.vectors[[rows[gene] for gene in genes]]).mean(axis=0)
