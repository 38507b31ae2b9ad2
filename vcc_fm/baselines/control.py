"""Nothing changes."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.baseline import Baseline


class Control(Baseline):
    """A log ratio of zero for every gene."""

    scaled = False

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Zeros, [G] float32."""
        return np.zeros(len(self.data.cells.genes), np.float32)
