"""The perturbation does here what it did elsewhere."""

from __future__ import annotations

import numpy as np

from vcc_fm.baselines.mean_response import MeanResponse


class OtherContexts(MeanResponse):
    """The same perturbation in the other contexts; the mean response where there is none."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Shrunken log ratio, [G] float32."""
        elsewhere = self.data.responses.elsewhere(context, perturbation)
        return super().log_ratio(context, perturbation) if elsewhere is None else elsewhere
