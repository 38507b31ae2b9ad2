"""The three loss terms.

Each is computed per set and averaged over sets, so that the loss of a step does not depend on how its sets are spread
over micro-batches and devices.
"""

from __future__ import annotations

import torch
from torch import nn

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.count_head import CountDistribution
from vcc_fm.recipe.train import LossWeights

CELL_TARGET_SUM = 1e4
SMALLEST_MEAN = 1e-8
"""Added to every expected count, so that a gene that is not measured (a share of zero) has a finite logarithm."""
BULK_TARGET_SUM = 5e4
"""Depth to which a pseudobulk is scaled before log1p, as the VCC 2026 scorer does (cell-eval2, preset vcc2026)."""


class SetLosses:
    """What a phase minimises: the terms of a decoder on a batch, and their weights.

    Attributes:
        weights: name of a term -> its weight.
    """

    def __init__(self, weights: LossWeights):
        self.weights: dict[str, float] = weights.model_dump()

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """See :func:`set_losses`."""
        return set_losses(model(batch), batch)


def negative_binomial_nll(counts: torch.Tensor, mean: torch.Tensor, dispersion: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood, nats, of counts under NB(mean, variance = mean + dispersion x mean^2); same shape.

    The mean must be above zero.

    With r = 1 / dispersion: -log p = lgamma(r) + lgamma(y + 1) - lgamma(y + r) - r log(r / (r + mu))
    - y log(mu / (r + mu)).
    """
    r = 1.0 / dispersion
    log_total = torch.log(r + mean)
    return (
        torch.lgamma(r)
        + torch.lgamma(counts + 1.0)
        - torch.lgamma(counts + r)
        - r * (torch.log(r) - log_total)
        - counts * torch.log(mean)
        + counts * log_total
    )


def set_losses(predicted: CountDistribution, batch: Batch) -> dict[str, torch.Tensor]:
    """Loss terms of each set, [B] each, unweighted.

    - ``likelihood``: mean over real cells and measured genes of the negative log-likelihood of the measured counts,
      given each measured cell's own depth. The mean is the predicted share times what the likelihood makes of control
      cells (``null_ratio_BG``), so that no effect is the optimum where there is none.
    - ``energy``: energy distance (Szekely & Rizzo 2013) between predicted and measured cells in log1p CP10k, divided
      by the square root of the number of genes. Predicted cells are drawn from a normal distribution with the
      negative binomial's mean and variance, which lets the gradient through.
    - ``delta``: mean over genes of the squared difference of predicted and measured pseudobulk, log1p of counts per
      50,000. The control's pseudobulk cancels.
    """
    assert batch.counts_BSG is not None
    counts_BSG = batch.counts_BSG
    measured_BSG = torch.isfinite(batch.log_share_BSG) & batch.cell_mask_BS[..., None]
    share_BSG = torch.where(measured_BSG, predicted.log_share_BSG, -torch.inf).exp()
    depth_BS1 = counts_BSG.sum(-1, keepdim=True)

    mean_BSG = depth_BS1 * share_BSG * batch.null_ratio_BG[:, None] + SMALLEST_MEAN
    nll_BSG = negative_binomial_nll(counts_BSG, mean_BSG, predicted.dispersion_G)
    likelihood_B = (nll_BSG * measured_BSG).sum((1, 2)) / measured_BSG.sum((1, 2))

    genes_B = measured_BSG.any(1).sum(-1)
    bulk_real_BG = counts_BSG.sum(1) / depth_BS1.sum(1)
    bulk_BG = (depth_BS1 * share_BSG).sum(1) / depth_BS1.sum(1)
    error_BG = torch.log1p(BULK_TARGET_SUM * bulk_BG) - torch.log1p(BULK_TARGET_SUM * bulk_real_BG)
    delta_B = error_BG.square().sum(-1) / genes_B

    sample_BSG = _sample(share_BSG, predicted.dispersion_G, batch)
    real_BSG = torch.log1p(CELL_TARGET_SUM * counts_BSG / depth_BS1.clamp(min=1.0))
    energy_B = _energy(sample_BSG, real_BSG, batch.cell_mask_BS) / genes_B.sqrt()
    return {"likelihood": likelihood_B, "energy": energy_B, "delta": delta_B}


def _sample(share_BSG: torch.Tensor, dispersion_G: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cells drawn around the predicted shares at the control cells' depths, log1p CP10k, differentiable."""
    depth_BS1 = batch.control_depth_BS[..., None]
    mean_BSG = depth_BS1 * share_BSG
    noise_BSG = torch.stack([_noise(seed, mean_BSG[0]) for seed in batch.noise_seed_B.tolist()])
    drawn_BSG = mean_BSG + (mean_BSG + dispersion_G * mean_BSG.square() + 1e-12).sqrt() * noise_BSG
    return torch.log1p(CELL_TARGET_SUM * torch.relu(drawn_BSG) / depth_BS1)


def _noise(seed: int, like: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers that belong to a set, wherever in a batch and on whichever process it is."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _energy(x_BSG: torch.Tensor, y_BSG: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| over the real cells of each set, [B]; no cell is paired with itself."""
    weight_BSS = mask_BS[:, :, None] * mask_BS[:, None, :].float()
    other_BSS = weight_BSS * (1.0 - torch.eye(mask_BS.shape[1], device=mask_BS.device))
    pairs_B = weight_BSS.sum((1, 2))
    others_B = other_BSS.sum((1, 2)).clamp(min=1.0)
    between_B = (_distance(x_BSG, y_BSG) * weight_BSS).sum((1, 2)) / pairs_B
    within_x_B = (_distance(x_BSG, x_BSG) * other_BSS).sum((1, 2)) / others_B
    within_y_B = (_distance(y_BSG, y_BSG) * other_BSS).sum((1, 2)) / others_B
    return 2.0 * between_B - within_x_B - within_y_B


def _distance(x_BSG: torch.Tensor, y_BSG: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [B, S, S]; a floor keeps the gradient of a root at zero finite."""
    square_BSS = x_BSG.square().sum(-1)[:, :, None] + y_BSG.square().sum(-1)[:, None] - 2.0 * x_BSG @ y_BSG.mT
    return square_BSS.clamp(min=1e-4).sqrt()
