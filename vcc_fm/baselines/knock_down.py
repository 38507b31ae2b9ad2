"""The target gene goes down, and nothing else happens."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.baseline import Baseline


class KnockDown(Baseline):
    """The mean knock-down of the training perturbations at the target genes, zero elsewhere."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32; all zero where no training perturbation has its target gene on the axis."""
        ratio = np.zeros(len(self.data.cells.genes), np.float32)
        own = [axis for gene in self.data.targets(perturbation) if (axis := self.data.axis.get(gene)) is not None]
        ratio[own] = self.data.responses.knock_down
        return ratio
