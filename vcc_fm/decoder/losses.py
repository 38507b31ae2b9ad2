"""The three loss terms.

Each is computed per set and averaged over sets, so that the loss of a step does not depend on how its sets are spread
over micro-batches and devices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.count_head import CountDistribution
from vcc_fm.decoder.graphs import Recorded
from vcc_fm.recipe.train import LossWeights

CELL_TARGET_SUM = 1e4
SMALLEST_MEAN = 1e-8
"""Added to every expected count, so that a gene that is not measured (a share of zero) has a finite logarithm."""
VALUES_AT_A_TIME = {"cpu": 2**20, "cuda": 2**27}
"""How many values of [B, S, G] a loss term works on at a time: what a CPU's cache holds, what fills a GPU."""
SMALLEST_DISTANCE = 1e-2
"""Of two cells, in the energy distance."""
NOISE_SETS = 8
"""Length of the table of noise, in sets."""
BULK_TARGET_SUM = 5e4
"""Depth to which a pseudobulk is scaled before log1p, as the VCC 2026 scorer does (cell-eval2, preset vcc2026)."""


class SetLosses:
    """What a phase minimises: the terms of a decoder on a batch, and their weights.

    Args:
        weights: of the terms.

    Attributes:
        weights: name of a term -> its weight; a term of weight 0 is not computed.
    """

    def __init__(self, weights: LossWeights):
        self.weights: dict[str, float] = {name: weight for name, weight in weights.model_dump().items() if weight > 0}
        self._terms: Callable[..., dict[str, torch.Tensor]] = set_losses
        self._of_model: Callable[..., dict[str, torch.Tensor]] = _of_model

    def compile(self) -> None:
        """Let torch compile the terms, for a GPU."""
        self._terms = torch.compile(set_losses)

    def record(self) -> None:
        """Let torch compile the terms together with the model, and record them, see :class:`Recorded`."""
        self._of_model = Recorded(_of_model)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """See :func:`set_losses`."""
        # Made outside of what is compiled: a generator cannot be made in it.
        noise_N = _noise_table(batch) if "energy" in self.weights else None
        return self._of_model(model, batch, self._terms, tuple(self.weights), noise_N)


def _of_model(
    model: nn.Module, batch: Batch, terms: Callable[..., dict[str, torch.Tensor]], *more: Any
) -> dict[str, torch.Tensor]:
    return terms(model(batch), batch, *more)


def set_losses(
    predicted: CountDistribution,
    batch: Batch,
    terms: Collection[str] = tuple(LossWeights.model_fields),
    noise_N: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Loss terms of each set, [B] each, unweighted; only those named in ``terms``.

    - ``likelihood``: mean over real cells and measured genes of the negative log-likelihood of the measured counts,
      given each measured cell's own depth. The mean is the predicted share times what the likelihood makes of control
      cells (``null_ratio_BG``), so that no effect is the optimum where there is none.
    - ``energy``: energy distance (Szekely & Rizzo 2013) between predicted and measured cells in log1p CP10k, divided
      by the square root of the number of genes. Predicted cells are drawn from a normal distribution with the
      negative binomial's mean and variance, which lets the gradient through.
    - ``delta``: mean over genes of the squared difference of predicted and measured pseudobulk, counts per 50,000, in
      units of which log1p of the predicted one moves by 1. The control's pseudobulk cancels. The right mean is the
      optimum however few counts a set holds.

    Noise of the drawn cells comes from ``noise_N``; None: a table that is made at the first call.
    """
    assert batch.counts_BSG is not None
    counts_BSG = batch.counts_BSG
    measured_BSG = torch.isfinite(batch.log_share_UG)[batch.profile_BS] & batch.cell_mask_BS[..., None]
    depth_BS1 = counts_BSG.sum(-1, keepdim=True)
    genes_B = measured_BSG.any(1).sum(-1)
    losses: dict[str, torch.Tensor] = {}
    if "likelihood" in terms or "delta" in terms:
        nll_B, expected_BG = _Likelihood.apply(
            predicted.log_share_BSG,
            counts_BSG,
            depth_BS1 * batch.cell_mask_BS[..., None],
            measured_BSG,
            batch.null_ratio_BG,
            predicted.dispersion_G,
        )
        losses["likelihood"] = nll_B / measured_BSG.sum((1, 2))
        total_B1 = depth_BS1.sum(1)
        found_BG, wanted_BG = expected_BG / total_B1, counts_BSG.sum(1) / total_B1
        # The logarithm's slope at what is predicted: that of few counts is, in the mean, below the mean's logarithm.
        slope_BG = BULK_TARGET_SUM / (1.0 + BULK_TARGET_SUM * found_BG.detach())
        error_BG = slope_BG * (found_BG - wanted_BG)
        losses["delta"] = error_BG.square().sum(-1) / genes_B
    if "energy" in terms:
        table = _noise_table(batch) if noise_N is None else noise_N

        def energy(log_share_BSG: torch.Tensor, part: slice) -> torch.Tensor:
            share_BSG = torch.where(measured_BSG[part], log_share_BSG, -torch.inf).exp()
            noise_BSG = _noise(table, batch.noise_seed_B[part], share_BSG.shape)
            sample_BSG = _sample(share_BSG, predicted.dispersion_G, batch.control_depth_BS[part], noise_BSG)
            real_BSG = torch.log1p(CELL_TARGET_SUM * counts_BSG[part] / depth_BS1[part].clamp(min=1.0))
            return _Energy.apply(sample_BSG, real_BSG, batch.cell_mask_BS[part])

        at_once = len(parts := _parts(counts_BSG)) == 1
        log_share_BSG = predicted.log_share_BSG
        energy_B = energy(log_share_BSG, parts[0]) if at_once else _SetBySet.apply(log_share_BSG, energy)
        losses["energy"] = energy_B / genes_B.sqrt()
    return {name: losses[name] for name in terms}


class _Likelihood(torch.autograd.Function):
    """Negative log-likelihood of each set, and the counts that it expects of each gene, from log shares.

    The gradient is in closed form, so that of all arrays [B, S, G] only the log shares are kept for it. With
    mean mu = depth x share x ratio + floor, dispersion alpha and count y:

        d nll / d log share = (mu - y) / (1 + alpha mu) x (mu - floor) / mu
        d expected / d log share = depth x share

    A gene that was not measured has a log share of -inf, and so no gradient. Dispersions have none: they are not
    trained. A few sets are worked on at a time, in what memory they need.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_share_BSG: torch.Tensor,
        counts_BSG: torch.Tensor,
        depth_BS1: torch.Tensor,
        measured_BSG: torch.Tensor,
        ratio_BG: torch.Tensor,
        dispersion_G: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over cells: of the negative log-likelihood, nats [B]; of the expected counts [B, G]."""
        ctx.save_for_backward(log_share_BSG, counts_BSG, depth_BS1, ratio_BG, dispersion_G)
        nll, expected = [], []
        for part in _parts(log_share_BSG):
            expected_BSG = log_share_BSG[part].exp().mul_(depth_BS1[part])
            expected.append(expected_BSG.sum(1))
            mean_BSG = expected_BSG.mul_(ratio_BG[part][:, None]).add_(SMALLEST_MEAN)
            nll_BSG = negative_binomial_nll(counts_BSG[part], mean_BSG, dispersion_G)
            nll.append(nll_BSG.mul_(measured_BSG[part]).sum((1, 2)))
        return torch.cat(nll), torch.cat(expected)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, nll_B: torch.Tensor, expected_BG: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the log shares."""
        log_share_BSG, counts_BSG, depth_BS1, ratio_BG, dispersion_G = ctx.saved_tensors
        gradient_BSG = torch.empty_like(log_share_BSG)
        for part in _parts(log_share_BSG):
            expected_BSG = log_share_BSG[part].exp().mul_(depth_BS1[part])
            plain_BSG = expected_BSG * ratio_BG[part][:, None]
            mean_BSG = plain_BSG + SMALLEST_MEAN
            slope_BSG = (mean_BSG - counts_BSG[part]).mul_(plain_BSG.mul_(nll_B[part][:, None, None]))
            slope_BSG.div_(torch.addcmul(mean_BSG, mean_BSG, mean_BSG * dispersion_G))
            torch.addcmul(slope_BSG, expected_BSG, expected_BG[part][:, None], out=gradient_BSG[part])
        return gradient_BSG, None, None, None, None, None


class _SetBySet(torch.autograd.Function):
    """A term of each set [B] and its gradient, a few sets at a time: of what leads to it only the gradient is kept."""

    @staticmethod
    def forward(
        ctx: Any, log_share_BSG: torch.Tensor, term: Callable[[torch.Tensor, slice], torch.Tensor]
    ) -> torch.Tensor:
        """``term`` of log shares and of which sets they are."""
        trains = ctx.needs_input_grad[0]
        gradient_BSG = torch.empty_like(log_share_BSG) if trains else None
        found = []
        for part in _parts(log_share_BSG):
            with torch.set_grad_enabled(trains):
                here_BSG = log_share_BSG[part].detach().requires_grad_(trains)
                found_B = term(here_BSG, part)
                if gradient_BSG is not None:
                    (gradient_BSG[part],) = torch.autograd.grad(found_B.sum(), here_BSG)
            found.append(found_B.detach())
        ctx.save_for_backward(gradient_BSG)
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_B: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of the log shares."""
        (gradient_BSG,) = ctx.saved_tensors
        return gradient_BSG * upstream_B[:, None, None], None


def _parts(like_BSG: torch.Tensor) -> list[slice]:
    """Sets to work on at a time."""
    sets, cells, genes = like_BSG.shape
    step = max(1, VALUES_AT_A_TIME.get(like_BSG.device.type, VALUES_AT_A_TIME["cpu"]) // (cells * genes))
    return [slice(start, start + step) for start in range(0, sets, step)]


def pays_to_look_for_zeros(device: torch.device) -> bool:
    """Whether ``lgamma`` of the counts above zero alone is faster; a GPU would wait to know how many these are."""
    return device.type == "cpu"


def negative_binomial_nll(counts: torch.Tensor, mean: torch.Tensor, dispersion: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood, nats, of counts under NB(mean, variance = mean + dispersion x mean^2); same shape.

    The mean must be above zero; ``dispersion`` has the last dimension of ``counts``.

    With r = 1 / dispersion: -log p = r log(1 + mu / r) + y log((r + mu) / mu) + lgamma(r) + lgamma(y + 1)
    - lgamma(y + r), of which only the first term is not zero where y is.
    """
    nll, size_G = torch.log1p(dispersion * mean).div_(dispersion), 1.0 / dispersion
    lgamma_G = torch.lgamma(size_G)
    if not pays_to_look_for_zeros(counts.device):
        return nll + torch.where(counts > 0, _of_counts(counts, mean, size_G, lgamma_G), 0.0)
    seen_N = counts.flatten().nonzero()[:, 0]
    gene_N = seen_N % len(dispersion)
    more_N = _of_counts(counts.flatten()[seen_N], mean.flatten()[seen_N], size_G[gene_N], lgamma_G[gene_N])
    return nll.flatten().index_add(0, seen_N, more_N).view_as(nll)


def _of_counts(y: torch.Tensor, mu: torch.Tensor, r: torch.Tensor, lgamma_r: torch.Tensor) -> torch.Tensor:
    """All terms of the negative log-likelihood but the first, which are zero where a count is."""
    return y * ((r + mu) / mu).log() + lgamma_r + torch.lgamma(y + 1.0) - torch.lgamma(y + r)


def _sample(
    share_BSG: torch.Tensor, dispersion_G: torch.Tensor, depth_BS: torch.Tensor, noise_BSG: torch.Tensor
) -> torch.Tensor:
    """Cells drawn around the predicted shares at the control cells' depths, log1p CP10k, differentiable."""
    depth_BS1 = depth_BS[..., None]
    mean_BSG = depth_BS1 * share_BSG
    drawn_BSG = mean_BSG + (mean_BSG + dispersion_G * mean_BSG.square() + 1e-12).sqrt() * noise_BSG
    return torch.log1p(CELL_TARGET_SUM * torch.relu(drawn_BSG) / depth_BS1)


def _noise_table(batch: Batch) -> torch.Tensor:
    """Standard normal numbers, as many as :data:`NOISE_SETS` sets of the batch have values."""
    assert batch.counts_BSG is not None
    return _table(NOISE_SETS * batch.counts_BSG[0].numel(), batch.counts_BSG.device)


@lru_cache(maxsize=1)
def _table(length: int, device: torch.device) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(0)).to(device)


def _noise(table: torch.Tensor, seed_B: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Noise [B, S, G] that belongs to a set, wherever in a batch and on whichever device or process it is.

    A run of one table, from a place that the set's seed says: a generator a set takes longer than all else of the
    energy distance on a GPU, and tens of milliseconds a step on a CPU.
    """
    size = shape[1:].numel()
    return table.unfold(0, size, 1)[seed_B % (len(table) - size + 1)].view(shape)


class _Energy(torch.autograd.Function):
    """2 E|x - y| - E|x - x'| - E|y - y'| over the real cells of each set, [B]; no cell is paired with itself.

    The gradient of x in closed form takes two products where torch's takes three, and no array of cells by genes
    beside x, y and itself. With P pairs of a drawn and a measured cell, and O of two different drawn ones:

        d / d x_i = 2 / P sum_j (x_i - y_j) / |x_i - y_j| - 2 / O sum_j (x_i - x_j) / |x_i - x_j|
    """

    @staticmethod
    def forward(ctx: Any, x_BSG: torch.Tensor, y_BSG: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Of drawn cells x and measured ones y, [B, S, G] each; ``mask_BS`` says which are real."""
        weight_BSS = (mask_BS[:, :, None] & mask_BS[:, None, :]).to(x_BSG.dtype)
        other_BSS = weight_BSS * (1.0 - torch.eye(mask_BS.shape[1], device=mask_BS.device))
        between_BSS = weight_BSS / weight_BSS.sum((1, 2), keepdim=True)
        within_BSS = other_BSS / other_BSS.sum((1, 2), keepdim=True).clamp(min=1.0)
        x_y_BSS, x_x_BSS, y_y_BSS = (_distance(*pair) for pair in ((x_BSG, y_BSG), (x_BSG, x_BSG), (y_BSG, y_BSG)))
        # Where the floor holds a distance, nothing moves it.
        to_y_BSS = 2.0 * between_BSS / x_y_BSS * (x_y_BSS > SMALLEST_DISTANCE)
        to_x_BSS = 2.0 * within_BSS / x_x_BSS * (x_x_BSS > SMALLEST_DISTANCE)
        ctx.save_for_backward(x_BSG, y_BSG, to_x_BSS, to_y_BSS)
        return (2.0 * between_BSS * x_y_BSS - within_BSS * (x_x_BSS + y_y_BSS)).sum((1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_B: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the drawn cells."""
        x_BSG, y_BSG, to_x_BSS, to_y_BSS = ctx.saved_tensors
        to_x_BSS, to_y_BSS = (each * upstream_B[:, None, None] for each in (to_x_BSS, to_y_BSS))
        own_BSS = torch.diag_embed((to_y_BSS - to_x_BSS).sum(-1)) + to_x_BSS
        return torch.baddbmm(own_BSS @ x_BSG, to_y_BSS, y_BSG, alpha=-1.0), None, None


def _distance(x_BSG: torch.Tensor, y_BSG: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [B, S, S]; a floor keeps the gradient of a root at zero finite."""
    # Squares are not taken from the products: torch 2.13 compiles what keeps both into wrong gradients.
    x_BS, y_BS = (torch.linalg.vector_norm(each, dim=-1).square() for each in (x_BSG, y_BSG))
    square_BSS = x_BS[:, :, None] + y_BS[:, None] - 2.0 * x_BSG @ y_BSG.mT
    return square_BSS.clamp(min=SMALLEST_DISTANCE**2).sqrt()
