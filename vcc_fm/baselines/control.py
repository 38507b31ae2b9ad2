"""Nothing changes."""

from __future__ import annotations

import numpy as np

from vcc_fm.cellsets.dataset import Dataset


def control_unchanged(data: Dataset, context: str, perturbation: str) -> np.ndarray:
    """A log ratio of zero for every gene, [G]."""
    return np.zeros(len(data.cells.genes), np.float32)
