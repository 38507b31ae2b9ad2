"""The perturbation does what perturbations of similar proteins do."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vcc_fm.baselines.mean_response import MeanResponse
from vcc_fm.baselines.protein_ridge import ProteinRidge

NEIGHBOURS = 5


class Nearest(MeanResponse):
    """The mean over the training perturbations with the most similar target proteins, each here or else elsewhere.

    Similar by the cosine of protein vectors less their mean. The mean response where the target has no vector.
    """

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        """Training perturbation -> unit vector [V] of its target proteins."""
        vectors = ProteinRidge(self.data)
        labels = {label for _, label in self.data.responses.groups}
        return {label: self._unit(one) for label in sorted(labels) if (one := vectors.features(label)) is not None}

    def _unit(self, vector: np.ndarray) -> np.ndarray:
        centred = vector - self._centre
        return centred / (np.linalg.norm(centred) or 1.0)

    @cached_property
    def _centre(self) -> np.ndarray:
        return np.asarray(self.data.protein_vectors.vectors).mean(axis=0)

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32."""
        asked = ProteinRidge(self.data).features(perturbation)
        others = [label for label in self._known if label != perturbation]
        if asked is None or not others:
            return super().log_ratio(context, perturbation)
        alike = np.stack([self._known[label] for label in others]) @ self._unit(asked)
        nearest = np.argsort(-alike, kind="stable")[:NEIGHBOURS]
        ratios = [self.data.responses.here_or_elsewhere(context, others[i]) for i in nearest]
        return np.stack(ratios).mean(axis=0)
