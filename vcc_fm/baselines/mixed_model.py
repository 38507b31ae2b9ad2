"""What a mixed model of all training responses predicts; see :mod:`vcc_fm.cellsets.mixed_model`."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vcc_fm.baselines.baseline import Baseline
from vcc_fm.cellsets.mixed_model import Evidence, Kernels, MixedModel, principal_features
from vcc_fm.store.cells import evenly_spaced

WIDTHS = (4, 8, 16, 32)
"""Principal components of the protein vectors; beside them a model without proteins. The likeliest is taken."""
SOME = 1000
"""Training groups by which it is chosen."""


class Mixed(Baseline):
    """The best linear unbiased prediction, and at the target genes the knock-down of training perturbations."""

    @cached_property
    def model(self) -> MixedModel:
        """Of the width that leave-one-out predicts the training responses best with."""
        evidence = self._evidence
        some = evidence.of(evenly_spaced(np.arange(len(evidence.groups)), SOME))
        targets = {gene for _, label in evidence.groups for gene in self.data.targets(label)}
        known = self.data.protein_rows
        vectors = {gene: np.asarray(self.data.protein_vectors.vectors[row]) for gene, row in known.items()}
        candidates = [Kernels(self.data.targets, {})]
        if targets & vectors.keys():
            candidates += [Kernels(self.data.targets, principal_features(vectors, width)) for width in WIDTHS]
        likely = max(candidates, key=lambda kernels: MixedModel(some, kernels).log_likelihood)
        return MixedModel(evidence, likely)

    @cached_property
    def _evidence(self) -> Evidence:
        data, responses = self.data, self.data.responses
        cells = data.cells
        controls = cells.rows(perturbation=cells.control)
        depth = np.array([cells.depth[cells.rows(*group)].sum(dtype=np.float64) for group in responses.groups])
        own = np.zeros(responses.ratio.shape, bool)
        for row, (_, label) in enumerate(responses.groups):
            own[row, responses.own.get(label, [])] = True
        # The mean share of a gene over the batches that measured it.
        with np.errstate(divide="ignore"):
            share = np.exp(data.log_shares.astype(np.float64))
        share = share.sum(axis=0) / np.maximum(cells.measured.sum(axis=0), 1)
        mean_depth = float(cells.depth[controls].mean(dtype=np.float64))
        return Evidence(
            responses.groups,
            responses.ratio,
            responses.precision > 0,
            own,
            depth,
            {
                context: float(cells.depth[cells.rows(context, cells.control)].sum(dtype=np.float64))
                for context in cells.contexts
            },
            1.0 / np.maximum(share, 1e-9) + data.dispersion * mean_depth,
        )

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Mean of the prediction, [G] float32."""
        mean, _ = self.model.predict(context, perturbation)
        own = [axis for gene in self.data.targets(perturbation) if (axis := self.data.axis.get(gene)) is not None]
        if own:
            elsewhere = self.data.responses.elsewhere(context, perturbation)
            mean[own] = self.data.responses.knock_down if elsewhere is None else elsewhere[own]
        return mean
