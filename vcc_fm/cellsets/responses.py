"""Responses: what each perturbation did in each context, estimated from training cells, shrunken by its own noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vcc_fm.cellsets.split import Split, assert_no_leak
from vcc_fm.store.cells import CellStore

PSEUDOCOUNT = 0.5
"""UMI added to both sides of a ratio, so that a gene without counts has a finite one."""


@dataclass(frozen=True)
class Responses:
    """Log ratios of perturbed to expected control counts, one row a training (context, perturbation).

    Attributes:
        groups: (context, perturbation) of each row.
        ratio: [n, G] float32, natural log; 0 where a gene was not measured.
        precision: [n, G] float32, inverse variance of the ratio; 0 where a gene was not measured.
    """

    groups: list[tuple[str, str]]
    ratio: np.ndarray
    precision: np.ndarray

    def elsewhere(self, context: str, perturbation: str) -> np.ndarray | None:
        """Shrunken log ratio [G] float32 of ``perturbation`` outside ``context``; None where it was not measured.

        The contexts' ratios are averaged by their precision and shrunken towards zero under a normal prior whose
        variance is estimated over the genes (empirical Bayes for normal means: Efron & Morris 1973).
        """
        rows = [i for i, (c, p) in enumerate(self.groups) if p == perturbation and c != context]
        return self._pool(rows)

    def additive(self, context: str, genes: list[str]) -> np.ndarray | None:
        """Sum of the shrunken log ratios [G] of the single perturbations of ``genes``, those that were measured.

        Each in ``context``, or in the other contexts where it was not measured there. None where none was measured.
        """
        singles = []
        for gene in genes:
            rows = [i for i, (c, p) in enumerate(self.groups) if p == gene and c == context]
            single = self._pool(rows or [i for i, (_, p) in enumerate(self.groups) if p == gene])
            if single is not None:
                singles.append(single)
        return np.stack(singles).sum(axis=0) if singles else None

    def mean_response(self, context: str, without: str) -> np.ndarray:
        """Mean log ratio [G] over the training groups but those of ``without``; every group weighs the same.

        Over those of ``context``, or of all other contexts where it has none; 0 where no group measured a gene.
        """
        rows = [i for i, (c, p) in enumerate(self.groups) if c == context and p != without]
        rows = rows or [i for i, (_, p) in enumerate(self.groups) if p != without]
        known = (self.precision[rows] > 0).sum(axis=0)
        return self.ratio[rows].sum(axis=0) / np.maximum(known, 1).astype(np.float32)

    def _pool(self, rows: list[int]) -> np.ndarray | None:
        if not rows:
            return None
        precision = self.precision[rows].sum(axis=0)
        known = precision > 0
        ratio = np.zeros_like(precision)
        ratio[known] = (self.ratio[rows] * self.precision[rows]).sum(axis=0)[known] / precision[known]
        noise = np.zeros_like(precision)
        noise[known] = 1.0 / precision[known]
        signal = max(0.0, float(np.average(ratio[known] ** 2 - noise[known], weights=precision[known])))
        return (ratio * signal / (signal + noise)).astype(np.float32) if signal > 0 else np.zeros_like(ratio)


def estimate_responses(store: CellStore, split: Split, log_shares: np.ndarray, dispersion: np.ndarray) -> Responses:
    """Estimate the responses of all training groups of ``split``.

    For a group with counts ``O_g`` and expected counts ``E_g = sum over its cells of depth x control share of the
    cell's batch``, the ratio is ``log((O + 1/2) / (E + 1/2))``, and its variance by the delta method is
    ``(O + 1/2 + alpha_g sum_i mu_ig^2) / (O + 1/2)^2`` with the negative-binomial dispersion ``alpha_g``.

    Args:
        store: the cells.
        split: only its training groups are read.
        log_shares: [number of batches, G] from :func:`control_log_shares`.
        dispersion: [G] negative-binomial dispersion of control cells.
    """
    groups = split.groups("train")
    assert_no_leak(split, groups, store.control, "responses")
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
        observed = store.sums(cells) + PSEUDOCOUNT
        # A batch that did not measure a gene adds nothing to either side of its ratio.
        measured = store.measured[here].any(axis=0)
        variance = (observed + dispersion * (squares[here] @ share**2) * (observed / expected) ** 2) / observed**2
        ratio[row] = np.where(measured, np.log(observed / expected), 0.0)
        precision[row] = np.where(measured, 1.0 / variance, 0.0)
    return Responses(groups, ratio, precision)
