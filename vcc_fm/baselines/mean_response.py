"""Every perturbation does what perturbations do on average."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.baseline import Baseline


class MeanResponse(Baseline):
    """Mean log ratio over the training perturbations, equal weight each."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Over those of the context, or of the others where it has none; ``perturbation`` left out, [G] float32."""
        return self.data.responses.mean_response(context, without=perturbation)
