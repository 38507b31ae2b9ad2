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

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.count_head import CountDistribution
from vcc_fm.decoder.graphs import Recorded
from vcc_fm.recipe.train import LossWeights

CELL_TARGET_SUM = 1e4
SMALLEST_MEAN = 1e-8
"""Mean of a count above zero at the least, so that it has a finite logarithm where the predicted share is zero."""
VALUES_AT_A_TIME = {"cpu": 2**20, "cuda": 2**27}
"""How many values of [B, S, G] the loss terms work on at a time: what a CPU's cache holds, what fills a GPU."""
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

    All see the model through one log ratio a set and gene, and have their gradient in closed form: what is kept for it
    has no cells. A few sets are worked on at a time, in what memory they need.

    Noise of the drawn cells comes from ``noise_N``; None: a table that is made at the first call.
    """
    if noise_N is None and "energy" in terms:
        noise_N = _noise_table(batch)
    assert batch.counts_BSG is not None
    with torch.no_grad():
        parts = [_terms_of(predicted, batch, part, terms, noise_N) for part in _parts(batch.counts_BSG)]
        value_BT, gradient_BTG = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    # Zeros, with a gradient.
    moved_BG = predicted.delta_BG - predicted.delta_BG.detach()
    loss_BT = value_BT + (gradient_BTG * moved_BG[:, None]).sum(-1)
    return dict(zip(terms, loss_BT.unbind(-1), strict=True))


def _terms_of(
    predicted: CountDistribution, batch: Batch, part: slice, terms: Collection[str], noise_N: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """T terms of some sets, [B, T], and their gradients by ``delta_BG``, [B, T, G].

    Each term has a slope by the log share of every cell and gene, and gives the sums of it over cells and over genes.
    Shares sum to one: a log share moves with the log ratio of its gene and against those of all, so that
    d / d delta_g = sum_s (slope_sg - share_sg sum_h slope_sh).
    """
    assert batch.counts_BSG is not None
    counts_BSG, mask_BS, dispersion_G = batch.counts_BSG[part], batch.cell_mask_BS[part], predicted.dispersion_G
    profile_BS, depth_BS1 = batch.profile_BS[part], counts_BSG.sum(-1, keepdim=True)
    share_BSG = torch.softmax(batch.log_share_UG[profile_BS].add_(predicted.delta_BG[part][:, None]), dim=-1)
    values_B = (batch.measured_U[profile_BS] * mask_BS).sum(1)
    genes_B = values_B / mask_BS.sum(1)
    found = {}
    if "likelihood" in terms or "delta" in terms:
        expected_BSG, total_B1 = share_BSG * depth_BS1, depth_BS1.sum(1)
    if "delta" in terms:
        expected_BG = expected_BSG.sum(1)
        error_B, slope_BG = _pseudobulk(expected_BG / total_B1, counts_BSG.sum(1) / total_B1)
        slope_BG = slope_BG / total_B1
        found["delta"] = error_B, slope_BG * expected_BG, (expected_BSG @ slope_BG[..., None])[..., 0], genes_B
    if "likelihood" in terms:
        nll_B, slope_BSG = _likelihood(counts_BSG, expected_BSG.mul_(batch.null_ratio_BG[part][:, None]), dispersion_G)
        found["likelihood"] = nll_B, slope_BSG.sum(1), slope_BSG.sum(2), values_B
    if "energy" in terms:
        assert noise_N is not None
        noise_BSG = _noise(noise_N, batch.noise_seed_B[part], share_BSG.shape)
        drawn_BSG, moves_BSG = _sample(share_BSG, dispersion_G, batch.control_depth_BS[part], noise_BSG)
        real_BSG = (counts_BSG * (CELL_TARGET_SUM / depth_BS1.clamp(min=1.0))).log1p_()
        energy_B, slope_BSG = _energy(drawn_BSG, real_BSG, mask_BS)
        slope_BSG = slope_BSG.mul_(moves_BSG)
        found["energy"] = energy_B, slope_BSG.sum(1), slope_BSG.sum(2), genes_B.sqrt()
    value_BT, by_gene_BTG, by_cell_BTS, size_BT = (
        torch.stack(each, 1) for each in zip(*(found[name] for name in terms), strict=True)
    )
    return value_BT / size_BT, (by_gene_BTG - by_cell_BTS @ share_BSG) / size_BT[..., None]


def _parts(like_BSG: torch.Tensor) -> list[slice]:
    """Sets to work on at a time."""
    sets, cells, genes = like_BSG.shape
    step = max(1, VALUES_AT_A_TIME.get(like_BSG.device.type, VALUES_AT_A_TIME["cpu"]) // (cells * genes))
    return [slice(start, start + step) for start in range(0, sets, step)]


def pays_to_look_for_zeros(device: torch.device) -> bool:
    """Whether ``lgamma`` of the counts above zero alone is faster; a GPU would wait to know how many these are."""
    return device.type == "cpu"


def _likelihood(
    counts_BSG: torch.Tensor, mean_BSG: torch.Tensor, dispersion_G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each set, nats [B], and its slope by the logarithm of each mean.

    With mean mu, dispersion alpha and count y the slope is (mu - y) / (1 + alpha mu). Dispersions have none: they are
    not trained. Where nothing is measured, mean and count are zero, and so are both.
    """
    nll_B = negative_binomial_nll(counts_BSG, mean_BSG, dispersion_G).sum((1, 2))
    return nll_B, (mean_BSG - counts_BSG).div_((dispersion_G * mean_BSG).add_(1.0))


def negative_binomial_nll(counts: torch.Tensor, mean: torch.Tensor, dispersion: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood, nats, of counts under NB(mean, variance = mean + dispersion x mean^2); same shape.

    A count above zero is taken to have a mean of at least :data:`SMALLEST_MEAN`; ``dispersion`` has the last dimension
    of ``counts``.

    With r = 1 / dispersion: -log p = r log(1 + mu / r) + y log((r + mu) / mu) + lgamma(r) + lgamma(y + 1)
    - lgamma(y + r), of which only the first term is not zero where y is.
    """
    nll, size_G = (dispersion * mean).log1p_().div_(dispersion), 1.0 / dispersion
    lgamma_G = torch.lgamma(size_G)
    if not pays_to_look_for_zeros(counts.device):
        return nll + torch.where(counts > 0, _of_counts(counts, mean, size_G, lgamma_G), 0.0)
    seen_N = counts.flatten().nonzero()[:, 0]
    gene_N = seen_N % len(dispersion)
    more_N = _of_counts(counts.flatten()[seen_N], mean.flatten()[seen_N], size_G[gene_N], lgamma_G[gene_N])
    nll.view(-1).index_add_(0, seen_N, more_N)
    return nll


def _of_counts(y: torch.Tensor, mu: torch.Tensor, r: torch.Tensor, lgamma_r: torch.Tensor) -> torch.Tensor:
    """All terms of the negative log-likelihood but the first, which are zero where a count is."""
    return y * (r / mu.clamp(min=SMALLEST_MEAN)).log1p() + lgamma_r + torch.lgamma(y + 1.0) - torch.lgamma(y + r)


def _pseudobulk(found_BG: torch.Tensor, wanted_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over genes of squared differences, [B], and its slope by each predicted value.

    A difference is in units of which the logarithm moves by 1 at what is predicted. There, because the logarithm of
    few counts is in the mean below that of their mean. The slope takes these units as fixed.
    """
    unit_BG = BULK_TARGET_SUM / (1.0 + BULK_TARGET_SUM * found_BG)
    error_BG = unit_BG * (found_BG - wanted_BG)
    return error_BG.square().sum(-1), 2.0 * unit_BG * error_BG


def _sample(
    share_BSG: torch.Tensor, dispersion_G: torch.Tensor, depth_BS: torch.Tensor, noise_BSG: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells drawn around the predicted shares at the control cells' depths, log1p CP10k; how log shares move them.

    With mean m, dispersion alpha and noise z a count is ``m + z r``, ``r = sqrt(m + alpha m^2)``, but at least 0; its
    slope by log m is ``m (1 + z (1/2 + alpha m) / r)``.
    """
    # In place where it can be: on a CPU a new array costs three times what it takes to fill one.
    scale_BS1 = CELL_TARGET_SUM / depth_BS[..., None]
    mean_BSG = depth_BS[..., None] * share_BSG
    over_BSG = dispersion_G * mean_BSG
    spread_BSG = (1.0 + over_BSG).mul_(mean_BSG).add_(1e-12).sqrt_()
    moves_BSG = over_BSG.add_(0.5).mul_(noise_BSG).div_(spread_BSG).add_(1.0).mul_(mean_BSG).mul_(scale_BS1)
    scaled_BSG = torch.addcmul(mean_BSG, spread_BSG, noise_BSG).relu_().mul_(scale_BS1)
    moves_BSG.mul_(scaled_BSG > 0).div_(scaled_BSG.add_(1.0))
    return scaled_BSG.log_(), moves_BSG


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


def _energy(x_BSG: torch.Tensor, y_BSG: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """2 E|x - y| - E|x - x'| - E|y - y'| over the real cells of each set, [B], and its slope by x, [B, S, G].

    Of drawn cells x and measured ones y; no cell is paired with itself. With P pairs of a drawn and a measured cell,
    and O of two different drawn ones:

        d / d x_i = 2 / P sum_j (x_i - y_j) / |x_i - y_j| - 2 / O sum_j (x_i - x_j) / |x_i - x_j|
    """
    weight_BSS = (mask_BS[:, :, None] & mask_BS[:, None, :]).to(x_BSG.dtype)
    other_BSS = weight_BSS * (1.0 - torch.eye(mask_BS.shape[1], device=mask_BS.device))
    between_BSS = weight_BSS / weight_BSS.sum((1, 2), keepdim=True)
    within_BSS = other_BSS / other_BSS.sum((1, 2), keepdim=True).clamp(min=1.0)
    x_y_BSS, x_x_BSS, y_y_BSS = (_distance(*pair) for pair in ((x_BSG, y_BSG), (x_BSG, x_BSG), (y_BSG, y_BSG)))
    # Where the floor holds a distance, nothing moves it.
    to_y_BSS = 2.0 * between_BSS / x_y_BSS * (x_y_BSS > SMALLEST_DISTANCE)
    to_x_BSS = 2.0 * within_BSS / x_x_BSS * (x_x_BSS > SMALLEST_DISTANCE)
    own_BSS = torch.diag_embed((to_y_BSS - to_x_BSS).sum(-1)) + to_x_BSS
    energy_B = (2.0 * between_BSS * x_y_BSS - within_BSS * (x_x_BSS + y_y_BSS)).sum((1, 2))
    return energy_B, torch.baddbmm(own_BSS @ x_BSG, to_y_BSS, y_BSG, alpha=-1.0)


def _distance(x_BSG: torch.Tensor, y_BSG: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [B, S, S]; a floor keeps the gradient of a root at zero finite."""
    # Squares are not taken from the products: torch 2.13 compiles what keeps both into wrong gradients.
    x_BS, y_BS = (torch.linalg.vector_norm(each, dim=-1).square() for each in (x_BSG, y_BSG))
    square_BSS = x_BS[:, :, None] + y_BS[:, None] - 2.0 * (x_BSG @ y_BSG.mT)
    return square_BSS.clamp(min=SMALLEST_DISTANCE**2).sqrt()
