"""What a mixed model of all training responses predicts; see :mod:`vcc_fm.cellsets.mixed_model`."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np
import torch
from rich.console import Console

from vcc_fm.baselines.baseline import Baseline
from vcc_fm.cellsets.evidence import evidence_of
from vcc_fm.cellsets.kernels import Kernels, Vectors, coexpression, principal_features
from vcc_fm.cellsets.mixed_model import MixedModel
from vcc_fm.cellsets.split import assert_no_leak
from vcc_fm.store.cells import evenly_spaced

WIDTHS = (4, 8, 16, 32)
"""Principal components of a table of vectors that are tried, beside a model without it; the likeliest, if clear."""
CLEAR = 3.0
"""Standard errors; the best of several widths of vectors that say nothing gains two and a half."""
LARGEST = 3.0
SOME = 800
"""Training groups by which it is chosen, about."""


def in_size(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Mean of a signal [G] times one factor: its mean square is then what the signal's is expected to be.

    A posterior mean is shrunken by all that is not known, that of a perturbation that was measured nowhere most of
    all. A score that compares sets of significant genes wants the direction in its likely size. The factor is at most
    ``LARGEST``: a direction of which nearly nothing is known is not blown up.
    """
    known, unknown = (np.square(x, dtype=np.float64).sum() for x in (mean, deviation))
    return (mean * min(np.sqrt(1 + unknown / max(known, 1e-30)), LARGEST)).astype(np.float32)


class Mixed(Baseline):
    """The best linear unbiased prediction in the size that the signal is expected to have.

    At the target genes it is the knock-down that training perturbations show.
    """

    def prepare(self, groups: Collection[tuple[str, str]], device: torch.device, console: Console) -> None:
        """Fit the model, once for all groups."""
        del groups, device
        widths = [len(next(iter(table.values()))) for table in self.model.kernels.tables]
        console.print(f"mixed-model: {len(self.model.contexts):,} training groups, widths of tables {widths}")

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Signal [G] float32."""
        mean = in_size(*self.model.predict(context, perturbation)[:2])
        for gene in self.data.targets(perturbation):
            if gene in self.data.axis:
                mean[self.data.axis[gene]] = self._knock_down(context, perturbation, gene)
        return mean

    @cached_property
    def model(self) -> MixedModel:
        """Of the kernels that leave-one-out predicts the training responses best with."""
        data = self.data
        assert_no_leak(data.split, data.responses.groups, data.cells.control, "mixed-model")
        evidence = evidence_of(data)
        labels = np.array([label for _, label in evidence.groups])
        contexts = len({context for context, _ in evidence.groups})
        some = evenly_spaced(np.unique(labels), max(SOME // contexts, 1))
        part = evidence.of(np.flatnonzero(np.isin(labels, some)))
        chosen: list[Vectors] = []
        best = MixedModel(part, Kernels(data.targets))
        targets = {gene for label in some for gene in data.targets(label)}
        for vectors in self.tables().values():
            if not targets & vectors.keys():
                continue
            tried = [[*chosen, features] for width in WIDTHS if (features := principal_features(vectors, width))]
            models = [MixedModel(part, Kernels(data.targets, tables)) for tables in tried]
            likely = max(models, key=lambda one: float(one.log_density.mean()), default=best)
            if _is_better(likely, best):
                best, chosen = likely, list(likely.kernels.tables)
        return MixedModel(evidence, Kernels(data.targets, chosen))

    def tables(self) -> dict[str, Vectors]:
        """Vectors of genes by which perturbations may be alike; a table of your own is one line more."""
        data, proteins = self.data, self.data.protein_vectors.vectors
        return {
            "proteins": {gene: np.asarray(proteins[row]) for gene, row in data.protein_rows.items()},
            "co-expression": coexpression(data.cells, data.log_shares, data.dispersion, max(WIDTHS)),
        }

    def _knock_down(self, context: str, perturbation: str, gene: str) -> float:
        """Log ratio of a target gene: of the perturbation elsewhere, or of its single one, or of all training ones."""
        responses, place = self.data.responses, self.data.axis[gene]
        elsewhere = responses.elsewhere(context, perturbation)
        if elsewhere is not None:
            return float(elsewhere[place])
        if gene != perturbation and responses.has_single([gene]):
            return float(responses.here_or_elsewhere(context, gene)[place])
        return responses.knock_down


def _is_better(one: MixedModel, other: MixedModel) -> bool:
    """Whether a model makes the responses likelier, by ``CLEAR`` standard errors over perturbations."""
    _, at = np.unique([label for _, label in one.evidence.groups], return_inverse=True)
    gain = np.bincount(at, one.log_density - other.log_density) / np.bincount(at)
    return bool(gain.mean() > CLEAR * gain.std() / np.sqrt(len(gain)))
