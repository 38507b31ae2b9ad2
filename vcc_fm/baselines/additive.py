"""A combination does what its single perturbations do, added up on the log scale."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.other_contexts import OtherContexts


class Additive(OtherContexts):
    """Sum of the single perturbations, where one of them was measured; else as other contexts.

    The model that combinations must beat: Ahlmann-Eltze, Huber & Anders, Nature Methods 22:1657 (2025).
    """

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Sum of shrunken log ratios, [G] float32."""
        genes = self.data.targets(perturbation)
        summed = self.data.responses.additive(context, genes) if len(genes) > 1 else None
        return super().log_ratio(context, perturbation) if summed is None else summed
