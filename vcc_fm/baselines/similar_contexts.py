"""The perturbation does here what it did in contexts like this one."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vcc_fm.baselines.mean_response import MeanResponse


class SimilarContexts(MeanResponse):
    """The same perturbation in the other contexts, each weighted by how like its control cells are to those here.

    A context's profile is the log share of each gene that all batches measured, the mean over its batches. A context
    at a squared distance ``d`` is weighted by ``exp(-d / m)``, ``m`` being the mean over all pairs of contexts: the
    Gaussian kernel at the contexts' own scale. The mean response where there is no other context.
    """

    @cached_property
    def _weights(self) -> dict[str, dict[str, float]]:
        """Context -> other context -> weight, the largest 1."""
        cells = self.data.cells
        shares = self.data.log_shares[:, cells.measured.all(axis=0)]
        batches = [np.unique(cells.batch[cells.rows(context)]) for context in cells.contexts]
        profiles = np.stack([shares[rows].mean(axis=0) for rows in batches]).astype(np.float64)
        squared = ((profiles[:, None] - profiles[None]) ** 2).sum(axis=2)
        others = ~np.eye(len(profiles), dtype=bool)
        scale = squared[others].mean() if others.any() else 1.0
        weight = np.where(others, np.exp(-squared / (scale or 1.0)), 0.0)
        weight /= np.maximum(weight.max(axis=1, keepdims=True), 1e-300)
        return {
            context: dict(zip(cells.contexts, row, strict=True))
            for context, row in zip(cells.contexts, weight.tolist(), strict=True)
        }

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Shrunken log ratio, [G] float32."""
        elsewhere = self.data.responses.elsewhere(context, perturbation, self._weights[context])
        return super().log_ratio(context, perturbation) if elsewhere is None else elsewhere
