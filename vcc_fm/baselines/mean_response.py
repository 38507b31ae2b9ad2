"""Every perturbation does what perturbations do on average."""

from __future__ import annotations

import numpy as np

from vcc_fm.cellsets.dataset import Dataset


def mean_response(data: Dataset, context: str, perturbation: str) -> np.ndarray:
    """Mean log ratio [G] over the training perturbations, equal weight each.

    Over those of the context, or of the other contexts where the context has none; ``perturbation`` itself left out.
    """
    return data.responses.mean_response(context, without=perturbation)
