"""The perturbation does here what it did elsewhere."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.mean_response import mean_response
from vcc_fm.cellsets.dataset import Dataset


def other_contexts(data: Dataset, context: str, perturbation: str) -> np.ndarray:
    """Shrunken log ratio [G] of the same perturbation in the other contexts; the mean response where there is none."""
    elsewhere = data.responses.elsewhere(context, perturbation)
    return mean_response(data, context, perturbation) if elsewhere is None else elsewhere
