"""What a linear model makes of features of the target genes: the part that ridge regressions share."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vcc_fm.baselines.mean_response import MeanResponse

if TYPE_CHECKING:
    from sklearn.linear_model import RidgeCV

PENALTIES = tuple(np.logspace(-2, 4, 13))


class Ridge(MeanResponse):
    """The mean response, and on it a linear function of the target genes' features.

    Fitted on all training groups whose perturbation has features: the log ratio less its context's mean response on
    the features, which are centred and scaled. The penalty is chosen by leave-one-out error. A perturbation without
    features gets the mean response.
    """

    @abstractmethod
    def features(self, perturbation: str) -> np.ndarray | None:
        """Features of a perturbation, [F]; None where nothing is known of its target genes."""

    @cached_property
    def _fitted(self) -> tuple[RidgeCV, np.ndarray, float] | None:
        """The regression, and mean [F] and scale of the features; None with fewer than three perturbations."""
        responses = self.data.responses
        found = [(row, self.features(label)) for row, (_, label) in enumerate(responses.groups)]
        known = [(row, vector) for row, vector in found if vector is not None]
        if len({responses.groups[row][1] for row, _ in known}) < 3:
            return None
        x = np.stack([vector for _, vector in known]).astype(np.float64)
        mean, scale = x.mean(axis=0), float(np.sqrt(x.var(axis=0).mean())) or 1.0
        y = np.empty((len(known), responses.ratio.shape[1]), np.float32)
        # Of all groups: without the own one, what is beyond it would be too large by n / (n - 1).
        means = {context: responses.mean_response(context, without="") for context, _ in responses.groups}
        for beyond, (row, _) in zip(y, known, strict=True):
            # A gene that was not measured has a ratio of 0, and nothing beyond the mean response either.
            measured = responses.precision[row] > 0
            beyond[:] = np.where(measured, responses.ratio[row] - means[responses.groups[row][0]], 0.0)
        # Imported here: a recipe that is only read does not wait for it.
        from sklearn.linear_model import RidgeCV

        return RidgeCV(alphas=PENALTIES).fit((x - mean) / scale, y), mean, scale

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32."""
        mean, vector = super().log_ratio(context, perturbation), self.features(perturbation)
        if vector is None or self._fitted is None:
            return mean
        model, centre, scale = self._fitted
        return (mean + model.predict(((vector - centre) / scale)[None])[0]).astype(np.float32)
