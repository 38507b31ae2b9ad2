"""A combination does what its single perturbations do, added up on the log scale."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.other_contexts import other_contexts
from vcc_fm.cellsets.dataset import Dataset


def additive(data: Dataset, context: str, perturbation: str) -> np.ndarray:
    """Sum of the log ratios [G] of the single perturbations, where one of them was measured; else as other contexts.

    The model that combinations must beat: Ahlmann-Eltze, Huber & Anders, Nature Methods 22:1657 (2025).
    """
    genes = data.targets(perturbation)
    summed = data.responses.additive(context, genes) if len(genes) > 1 else None
    return other_contexts(data, context, perturbation) if summed is None else summed
