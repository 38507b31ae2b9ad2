"""What a mixed model is fitted on: responses of training groups, and variances of their noise at expected counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2

from vcc_fm.responses.responses import Responses
from vcc_fm.store.cells import CellStore

Group = tuple[str, str]

NOISE_KINDS, GROUPS_OF_KINDS = 8, 1500
"""Kinds of genes by where they are noisy; fewer for more groups, since each kind costs a decomposition."""
ALIKE = 0.1
"""Log ratio of variances below which contexts are as noisy as each other."""
SMALLEST_SHARE = 1e-9


@dataclass(frozen=True)
class Evidence:
    """Responses and their noise.

    Attributes:
        groups: (context, perturbation) of each row.
        ratio: [n, G] float32 log ratios; 0 where a gene was not measured.
        measured: [n, G] bool.
        own: [n, G] bool, target genes of the row's perturbation, whose ratios are not used.
        depth: [n] UMI of each group's cells.
        control_depth: context -> UMI of its control cells.
        unit: context -> [G] variance of a log ratio times the depth, above zero.
    """

    groups: Sequence[Group]
    ratio: np.ndarray
    measured: np.ndarray
    own: np.ndarray
    depth: np.ndarray
    control_depth: Mapping[str, float]
    unit: Mapping[str, np.ndarray]

    @classmethod
    def from_responses(
        cls,
        responses: Responses,
        depth: np.ndarray,
        control_depth: Mapping[str, float],
        unit: Mapping[str, np.ndarray],
    ) -> Evidence:
        """The evidence of responses, with the noise of their counts as the attributes have it."""
        own = np.zeros(responses.ratio.shape, bool)
        for row, (_, label) in enumerate(responses.groups):
            own[row, responses.own.get(label, [])] = True
        return cls(responses.groups, responses.ratio, responses.precision > 0, own, depth, control_depth, unit)

    def of(self, rows: np.ndarray) -> Evidence:
        """The evidence of some groups alone."""
        return Evidence(
            [self.groups[row] for row in rows],
            self.ratio[rows],
            self.measured[rows],
            self.own[rows],
            self.depth[rows],
            self.control_depth,
            self.unit,
        )


def evidence_of(cells: CellStore, responses: Responses, log_shares: np.ndarray, dispersion: np.ndarray) -> Evidence:
    """The evidence of training groups.

    The variance of a log ratio at expected counts ``E = depth x share`` is ``1 / E + alpha sum(d^2) / sum(d)^2`` over
    cells of depth ``d``; times the depth it is ``1 / share + alpha sum(d^2) / sum(d)``, where the last factor is taken
    from the context's control cells.
    """
    depth = [float(cells.depth[cells.rows(*group)].sum(dtype=np.float64)) for group in responses.groups]
    control_depth, unit = {}, {}
    for code, context in enumerate(cells.contexts):
        batches = np.unique(cells.groups.batch[cells.groups.context == code])
        share = np.exp(log_shares[batches].astype(np.float64)).sum(axis=0)
        share /= np.maximum(np.isfinite(log_shares[batches]).sum(axis=0), 1)
        controls = cells.depth[cells.rows(context, cells.control)].astype(np.float64)
        control_depth[context] = float(controls.sum())
        spread = dispersion * (controls**2).sum() / max(controls.sum(), 1.0)
        unit[context] = 1.0 / np.maximum(share, SMALLEST_SHARE) + spread
    return Evidence.from_responses(responses, np.array(depth), control_depth, unit)


@dataclass(frozen=True)
class NoiseProfile:
    """Where genes are noisy.

    Attributes:
        unit: [G] geometric mean of the contexts' units.
        kind: [G] int; genes of a kind are taken to be noisy in the same contexts.
        factor: context -> [kinds], what ``unit`` is times in the context.
    """

    unit: np.ndarray
    kind: np.ndarray
    factor: Mapping[str, np.ndarray]


def noise_profile(evidence: Evidence) -> NoiseProfile:
    """Sort the genes by how their noise differs between the contexts of the groups (k-means of log variances)."""
    contexts = sorted({context for context, _ in evidence.groups})
    rows = np.array([context for context, _ in evidence.groups])
    log_unit = np.log(np.stack([evidence.unit[context] for context in contexts]))
    measured = np.stack([evidence.measured[rows == context].any(axis=0) for context in contexts])
    mean = np.where(measured, log_unit, 0.0).sum(axis=0) / np.maximum(measured.sum(axis=0), 1)
    beyond = np.where(measured, log_unit - mean, 0.0)
    kinds = min(int(NOISE_KINDS * (GROUPS_OF_KINDS / len(rows)) ** 3), NOISE_KINDS, beyond.shape[1])
    centre, kind = np.zeros((1, len(contexts))), np.zeros(len(mean), np.int64)
    if kinds > 1 and np.abs(beyond).max() > ALIKE:
        distinct = len(np.unique(np.round(beyond, 3), axis=1).T)
        centre, kind = kmeans2(beyond.T, min(kinds, distinct), minit="++", seed=0)
    return NoiseProfile(np.exp(mean), kind, dict(zip(contexts, np.exp(centre.T), strict=True)))
