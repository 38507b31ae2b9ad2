"""Responses: what each perturbation did in each context, estimated from training cells, shrunken by its own noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vcc_fm.responses.profiles import BATCH_PRIOR
from vcc_fm.responses.shrinkage import shrink_sparse
from vcc_fm.splits.split import Split, assert_no_leak
from vcc_fm.store.cells import CellStore, evenly_spaced

PSEUDOCOUNT = 0.5
"""UMI added to both sides of a ratio, so that a gene without counts has a finite one."""
TARGETS_BESIDE = 2000
"""Other groups' effects on their own targets beside which a target gene is shrunken: enough for a distribution."""


@dataclass(frozen=True)
class Responses:
    """Log ratios of perturbed to expected control counts, one row a training (context, perturbation).

    All groups are gone through once; then an answer costs O(G) times the contexts that measured its perturbation.
    Each pool of rows is shrunken once, and its answer, which nobody may write into, kept: G x 4 bytes.

    Attributes:
        groups: (context, perturbation) of each row.
        ratio: [n, G] float32, natural log; 0 where a gene was not measured.
        precision: [n, G] float32, inverse variance of the ratio; 0 where a gene was not measured.
        own: perturbation -> positions of its target genes on the gene axis.
        shrink: what pooled ratios [k] and their variances [k] are worth, [k].
    """

    groups: list[tuple[str, str]]
    ratio: np.ndarray
    precision: np.ndarray
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    shrink: Callable[[np.ndarray, np.ndarray], np.ndarray] = shrink_sparse
    _pooled: dict[tuple[float, ...], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def elsewhere(
        self, context: str, perturbation: str, weights: Mapping[str, float] | None = None
    ) -> np.ndarray | None:
        """Shrunken log ratio [G] float32 of ``perturbation`` outside ``context``; None where it was not measured.

        The contexts' ratios are averaged by their precision, times ``weights`` of the contexts if there are any.
        Target genes are shrunken by what is known of all training groups' target genes, the other genes by each
        other: a knock-down that works is no rare accident.
        """
        rows = self._elsewhere(context, perturbation)
        return self._pool(rows, perturbation, None if weights is None else [weights[self.groups[i][0]] for i in rows])

    def here_or_elsewhere(self, context: str, perturbation: str) -> np.ndarray:
        """Shrunken log ratio [G] float32 of a training perturbation in ``context``, or in the others."""
        shrunken = self._pool(self._here_or_elsewhere(context, perturbation), perturbation)
        assert shrunken is not None
        return shrunken

    def target_elsewhere(self, context: str, perturbation: str, gene: int) -> float | None:
        """What :meth:`elsewhere` says of a target gene, at its position on the axis; a hundredth of the work."""
        rows = self._elsewhere(context, perturbation)
        return self._target(rows, perturbation, gene) if rows else None

    def target_here_or_elsewhere(self, context: str, perturbation: str, gene: int) -> float:
        """What :meth:`here_or_elsewhere` says of a target gene, at its position on the axis."""
        return self._target(self._here_or_elsewhere(context, perturbation), perturbation, gene)

    @cached_property
    def knock_down(self) -> float:
        """Mean log ratio of training perturbations at their own target genes, by precision; 0 where none has one."""
        ratio, variance = self._own_effects
        return float(np.average(ratio, weights=1 / variance)) if len(ratio) else 0.0

    def is_known(self, context: str, perturbation: str) -> bool:
        """Whether :meth:`elsewhere` has an answer."""
        return bool(self._elsewhere(context, perturbation))

    def additive(self, context: str, genes: list[str]) -> np.ndarray | None:
        """Sum of the shrunken log ratios [G] of the single perturbations of ``genes``, those that were measured.

        Each in ``context``, or in the other contexts where it was not measured there. None where none was measured.
        """
        singles = []
        for gene in genes:
            if gene in self._rows:
                singles.append(self.here_or_elsewhere(context, gene))
        return np.stack(singles).sum(axis=0) if singles else None

    def mean_response(self, context: str, without: str) -> np.ndarray:
        """Mean log ratio [G] over the training groups but those of ``without``; every group weighs the same.

        Over those of ``context``, or of all other contexts where it has none; 0 where no group measured a gene.
        """
        everywhere = self._rows.get(without, [])
        here = [i for i in everywhere if self.groups[i][0] == context]
        where, left_out = (context, here) if self._sizes[context] > len(here) else (None, everywhere)
        total, known = self._sums[where]
        known = known - (self.precision[left_out] > 0).sum(axis=0)
        total = total - self.ratio[left_out].sum(axis=0, dtype=np.float64)
        # Where no other group measured a gene, what subtracting leaves is rounding.
        return np.where(known > 0, total / np.maximum(known, 1), 0.0).astype(np.float32)

    def has_single(self, genes: list[str]) -> bool:
        """Whether :meth:`additive` has an answer."""
        return any(gene in self._rows for gene in genes)

    def _elsewhere(self, context: str, perturbation: str) -> list[int]:
        return [i for i in self._rows.get(perturbation, []) if self.groups[i][0] != context]

    def _here_or_elsewhere(self, context: str, perturbation: str) -> list[int]:
        everywhere = self._rows[perturbation]
        return [i for i in everywhere if self.groups[i][0] == context] or everywhere

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """Rows of each perturbation."""
        rows = dict[str, list[int]]()
        for row, (_, perturbation) in enumerate(self.groups):
            rows.setdefault(perturbation, []).append(row)
        return rows

    @cached_property
    def _sizes(self) -> Counter[str]:
        """Number of groups in each context."""
        return Counter(context for context, _ in self.groups)

    @cached_property
    def _sums(self) -> dict[str | None, tuple[np.ndarray, np.ndarray]]:
        """Sums of ratios [G] float64, and groups that measured a gene [G] int64: by context, and of all under None."""
        genes = self.ratio.shape[1]
        sums: dict[str | None, tuple[np.ndarray, np.ndarray]]
        sums = {context: (np.zeros(genes), np.zeros(genes, np.int64)) for context in self._sizes}
        # Row by row: no copy of [n, G].
        for (context, _), ratio, precision in zip(self.groups, self.ratio, self.precision, strict=True):
            total, known = sums[context]
            total += ratio
            known += precision > 0
        totals, knowns = ([one[part] for one in sums.values()] for part in (0, 1))
        sums[None] = np.sum(totals, axis=0), np.sum(knowns, axis=0)
        return sums

    @cached_property
    def _own_effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Ratios and variances [k] of all training groups at their own target genes, float64."""
        found = [
            (self.ratio[row, gene], 1.0 / self.precision[row, gene])
            for row, (_, perturbation) in enumerate(self.groups)
            for gene in self.own.get(perturbation, ())
            if self.precision[row, gene] > 0
        ]
        ratio, variance = np.array(found, np.float64).reshape(-1, 2).T
        return ratio, variance

    def _pool(self, rows: list[int], perturbation: str, weights: list[float] | None = None) -> np.ndarray | None:
        if not rows:
            return None
        key = (*rows, *(weights or ()))
        if key not in self._pooled:
            self._pooled[key] = self._shrunken(rows, perturbation, weights)
        return self._pooled[key]

    def _shrunken(self, rows: list[int], perturbation: str, weights: list[float] | None) -> np.ndarray:
        ratio, noise, known = self._mean(self.ratio[rows], self.precision[rows], weights)
        others = known.copy()
        others[self.own.get(perturbation, [])] = False
        own = known & ~others
        shrunken = np.zeros_like(ratio)
        shrunken[others] = self.shrink(ratio[others], noise[others])
        shrunken[own] = self._shrunken_own(ratio[own], noise[own])
        shrunken.setflags(write=False)
        return shrunken

    def _target(self, rows: list[int], perturbation: str, gene: int) -> float:
        own = np.unique(self.own[perturbation])
        at = np.ix_(np.array(rows), own)
        ratio, noise, known = self._mean(self.ratio[at], self.precision[at])
        ratio[known] = self._shrunken_own(ratio[known], noise[known])
        return float(ratio[np.searchsorted(own, gene)])

    @staticmethod
    def _mean(
        ratio: np.ndarray, precision: np.ndarray, weights: list[float] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean over rows [k, g], weighted by precision: ratio and its variance [g], and where there is any."""
        if weights is not None:
            precision = precision * np.array(weights, np.float32)[:, None]
        total = precision.sum(axis=0)
        known = total > 0
        noise = 1.0 / np.where(known, total, 1.0)
        return (ratio * precision).sum(axis=0) * noise, noise, known

    def _shrunken_own(self, ratio: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Shrunken effects on a perturbation's own target genes [k], beside those of other groups."""
        if not len(ratio):
            return ratio
        beside = evenly_spaced(np.arange(len(self._own_effects[0])), TARGETS_BESIDE)
        pairs = zip(self._own_effects, (ratio, noise), strict=True)
        return self.shrink(*(np.concatenate([others[beside], mine]) for others, mine in pairs))[-len(ratio) :]


def own_genes(labels: Iterable[str], separator: str, genes: list[str]) -> dict[str, np.ndarray]:
    """Perturbation -> positions of its target genes on the gene axis, int64."""
    axis = {symbol: position for position, symbol in enumerate(genes)}
    return {
        label: np.array([axis[gene] for gene in label.split(separator) if gene in axis], np.int64) for label in labels
    }


def estimate_responses(
    store: CellStore, split: Split, log_shares: np.ndarray, dispersion: np.ndarray, own: Mapping[str, np.ndarray]
) -> Responses:
    """Estimate the responses of all training groups of ``split``.

    For a group with counts ``O_g`` and expected counts ``E_g = sum over its cells of depth x control share of the
    cell's batch``, the ratio is ``log((O + 1/2) / (E + 1/2))``. Its variance by the delta method is
    ``(O + 1/2 + alpha_g sum_i mu_ig^2) / (O + 1/2)^2 + var(E) / (E + 1/2)^2``, with the negative-binomial dispersion
    ``alpha_g``; control cells are as noisy as others, so ``var(E)`` is that of :func:`control_log_shares`.

    Args:
        store: the cells.
        split: only its training groups are read.
        log_shares: [number of batches U, G] from :func:`control_log_shares`. Where a gene has a share in a batch
            that did not measure it, what is expected there is taken for observed.
        dispersion: [G] negative-binomial dispersion of control cells.
        own: perturbation -> positions of its target genes on the gene axis.
    """
    groups = split.groups("train")
    assert_no_leak(split, groups, store.control, "responses")
    depth_U, variance_UG = _controls(store, log_shares, dispersion)
    in_context = np.zeros((len(store.contexts), len(store.batches)), bool)
    in_context[store.groups.context, store.groups.batch] = True
    ratio = np.zeros((len(groups), len(store.genes)), np.float32)
    precision = np.zeros_like(ratio)
    for row, (context, perturbation) in enumerate(groups):
        cells = store.rows(context, perturbation)
        batches, depth = store.batch[cells], store.depth[cells].astype(np.float64)
        # Sums over cells of one batch factorise: expected counts need each batch's total depth, not each cell.
        total = np.bincount(batches, depth, len(store.batches))
        squares = np.bincount(batches, depth**2, len(store.batches))
        here = np.flatnonzero(total)
        share = np.exp(log_shares[here].astype(np.float64))
        expected = total[here] @ share + PSEUDOCOUNT
        # A batch that did not measure a gene adds the same to both sides of its ratio: nothing, where it has no share.
        observed = store.sums(cells) + total[here] @ (share * ~store.measured[here]) + PSEUDOCOUNT
        measured = (share > 0).any(axis=0)
        variance = (observed + dispersion * (squares[here] @ share**2) * (observed / expected) ** 2) / observed**2
        # The profile of a batch is its own controls and, as BATCH_PRIOR counts, those of its context.
        own_weight = total / (depth_U + BATCH_PRIOR)
        mates = in_context[store.contexts.index(context)]
        weight = own_weight + mates * (BATCH_PRIOR * own_weight.sum() / depth_U[mates].sum())
        variance += weight[mates] ** 2 @ variance_UG[mates] / expected**2
        ratio[row] = np.where(measured, np.log(observed / expected), 0.0)
        precision[row] = np.where(measured, 1.0 / variance, 0.0)
    return Responses(groups, ratio, precision, own)


def _controls(store: CellStore, log_shares: np.ndarray, dispersion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UMI of each batch's control cells [U], and the variance of their counts of each gene [U, G]."""
    depth = np.zeros(len(store.batches))
    variance = np.zeros(log_shares.shape, np.float32)
    groups = store.groups
    for i in np.flatnonzero(groups.perturbation == store.control_code):
        rows, batch = np.arange(groups.start[i], groups.end[i]), groups.batch[i]
        cells = store.depth[rows].astype(np.float64)
        depth[batch] = cells.sum()
        share = np.exp(log_shares[batch].astype(np.float64))
        variance[batch] = cells.sum() * share + dispersion * (cells**2).sum() * share**2
    return depth, variance
