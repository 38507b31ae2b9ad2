"""The count head: from hidden states to a negative-binomial distribution on the gene axis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.config import PerturbationDecoderConfig
from vcc_fm.recipe.decoder import GENE_AXES
from vcc_fm.responses.expected import LARGEST


class CountDistribution(NamedTuple):
    """Negative-binomial counts given a cell's depth: mean ``depth x share``, variance ``mean + dispersion x mean^2``.

    A tuple, because ZeRO-3 and FSDP look for tensors in what a module returns, and not in a dataclass.

    Attributes:
        delta_BG: natural log ratio to the control profile before the shares are made to sum to one.
        dispersion_G: negative-binomial dispersion alpha.
    """

    delta_BG: torch.Tensor
    dispersion_G: torch.Tensor

    def log_share_BSG(self, batch: Batch) -> torch.Tensor:
        """Natural log of each gene's expected share of a cell's counts; -inf where not measured."""
        return torch.log_softmax(batch.log_share_BSG + self.delta_BG[:, None], dim=-1)


class GeneFactors(nn.Module):
    """Factors ``f_g`` of the genes: free for genes seen in training, plus a linear function of the protein.

    A gene that was never seen so has a factor too. Of its scaled vector are kept coordinates on a few axes, the
    principal components over the genes. Factors of whole vectors were no better (docs/lab.md), and for 18,080 genes
    these are a third of a gigabyte in each checkpoint.

    What is asked for is never the factors but their products with a vector or two a set, formed from right to left.
    """

    axes_KV: torch.Tensor
    coordinates_GK: torch.Tensor

    def __init__(self, genes: int, protein_width: int, rank: int):
        super().__init__()
        axes = min(GENE_AXES, protein_width)
        self.free = nn.Parameter(torch.randn(genes, rank) / rank**0.5)
        self.projection = nn.Linear(axes, rank, bias=False)
        self.register_buffer("axes_KV", torch.zeros(axes, protein_width))
        self.register_buffer("coordinates_GK", torch.zeros(genes, axes))

    def forward(self, seen: torch.Tensor, to_genes: bool = False) -> torch.Tensor:
        """Responses [B, G] seen through the factors, [B, R]; or the other way, [B, R] spread over genes, [B, G]."""
        if to_genes:
            return seen @ self.free.T + (seen @ self.projection.weight) @ self.coordinates_GK.T
        return (seen @ self.free + self.projection(seen @ self.coordinates_GK)) / seen.shape[1] ** 0.5


class CountHead(nn.Module):
    """Log share = log control share + delta, normalised over the measured genes.

    Delta is the response that the training responses lead to expect, and what was learned beyond it, times the trust
    that validation puts in that. Learned are

    - a gate on the expected response,
    - ``f_g . z`` in units of its posterior standard deviation, with the gene factors of :class:`GeneFactors`: where
      the response is known, and at a perturbation that is inert, little can be added,
    - a shift of the target genes themselves (the knock-down, or the activation).

    They start at zero: an untrained head repeats the expected response. All cells of a set share one delta, since no
    control cell is known to have become any one of the measured cells.
    """

    log_dispersion: torch.Tensor

    def __init__(self, config: PerturbationDecoderConfig, width: int):
        super().__init__()
        # Of the control cells, not trained: a likelihood would raise it to cover what the mean gets wrong, and cells
        # drawn with it would hide effects from a rank test.
        self.register_buffer("log_dispersion", torch.zeros(len(config.genes)))
        self.set_term = nn.Linear(width, config.gene_rank)
        self.gates = nn.Linear(width, 2)
        for layer in (self.set_term, self.gates):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        set_state_BD: torch.Tensor,
        gene_factors: GeneFactors,
        batch: Batch,
        trust: float,
        effect_scale: float,
        in_size: bool = False,
    ) -> CountDistribution:
        """Distribution of the counts of B sets of S cells.

        Args:
            set_state_BD: hidden states of the set tokens.
            gene_factors: spread what was learned over the genes.
            batch: the sets.
            trust: factor on what was learned.
            effect_scale: factor on delta.
            in_size: whether each set's delta is brought to the size that its signal is expected to have, as
                :attr:`Expected.in_size` is; a loss wants the mean, which is smaller.
        """
        gate_B, self_B = self.gates(set_state_BD).unbind(-1)
        deviation_BG, response_BG = batch.deviation_BG, batch.response_BG
        learned_BG = deviation_BG * gene_factors(self.set_term(set_state_BD), to_genes=True)
        delta_BG = response_BG + trust * (gate_B[:, None] * response_BG + learned_BG)
        if in_size:
            there_BG = deviation_BG > 0
            known_B = (delta_BG.square() * there_BG) @ batch.reliability_G
            factor_B = (batch.power_B / known_B.clamp(min=1e-30)).sqrt().clamp(1.0, LARGEST)
            delta_BG = torch.where(there_BG, factor_B[:, None] * delta_BG, delta_BG)
        delta_BG = effect_scale * (delta_BG + trust * self_B[:, None] * self._own_genes(batch))
        return CountDistribution(delta_BG, self.log_dispersion.exp())

    def _own_genes(self, batch: Batch) -> torch.Tensor:
        """1 at the target genes of each set, [B, G]."""
        on_axis_BP = batch.target_gene_BP >= 0
        own_BG = torch.zeros_like(batch.response_BG)
        return own_BG.scatter_add(1, batch.target_gene_BP.clamp(min=0), on_axis_BP.to(own_BG.dtype)).clamp(max=1.0)
