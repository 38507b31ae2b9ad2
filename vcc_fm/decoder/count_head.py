"""The count head: from hidden states to a negative-binomial distribution on the gene axis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.config import PerturbationDecoderConfig


class CountDistribution(NamedTuple):
    """Negative-binomial counts given a cell's depth: mean ``depth x share``, variance ``mean + dispersion x mean^2``.

    A tuple, because ZeRO-3 and FSDP look for tensors in what a module returns, and not in a dataclass.

    Attributes:
        log_share_BSG: natural log of each gene's expected share of a cell's counts; -inf where not measured.
        delta_BSG: natural log ratio to the control profile before the shares are made to sum to one.
        dispersion_G: negative-binomial dispersion alpha.
    """

    log_share_BSG: torch.Tensor
    delta_BSG: torch.Tensor
    dispersion_G: torch.Tensor


class GeneFactors(nn.Module):
    """Factors ``f_g`` of the genes: free for genes seen in training, plus a linear function of the protein vector.

    A gene that was never seen so has a factor too. A module of its own, because two others use the factors: where
    parameters are sharded they exist only within the ``forward`` of the module that owns them.
    """

    vector_GV: torch.Tensor

    def __init__(self, genes: int, protein_width: int, rank: int):
        super().__init__()
        self.free = nn.Parameter(torch.randn(genes, rank) / rank**0.5)
        self.projection = nn.Linear(protein_width, rank, bias=False)
        self.register_buffer("vector_GV", torch.zeros(genes, protein_width))

    def forward(self, response_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors [G, R], and responses seen through them, [B, R]."""
        factors_GR = self.free + self.projection(self.vector_GV)
        return factors_GR, response_BG @ factors_GR / response_BG.shape[1] ** 0.5


class CountHead(nn.Module):
    """Log share = log control share + delta, normalised over the measured genes.

    Delta is a sum of

    - what the same perturbation did in other contexts, times a gate (one without evidence to the contrary),
    - the mean response of the training perturbations, times an amplitude (one where no response is known, else zero),
    - set- and cell-level terms ``f_g . z``, with the gene factors of :class:`GeneFactors`,
    - a shift of the target genes themselves (the knock-down, or the activation).

    Every term but the first starts at zero: an untrained head repeats the other contexts' response.
    """

    log_dispersion: torch.Tensor

    def __init__(self, config: PerturbationDecoderConfig, width: int):
        super().__init__()
        genes, rank = len(config.genes), config.gene_rank
        self.mean_response = nn.Parameter(torch.zeros(genes))
        # Of the control cells, not trained: a likelihood would raise it to cover what the mean gets wrong, and cells
        # drawn with it would hide effects from a rank test.
        self.register_buffer("log_dispersion", torch.zeros(genes))
        self.set_term = nn.Linear(width, rank)
        self.cell_term = nn.Linear(width, rank, bias=False)
        self.gates = nn.Linear(width, 3)
        for layer in (self.set_term, self.cell_term, self.gates):
            nn.init.zeros_(layer.weight)
        for layer in (self.set_term, self.gates):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        set_state_BD: torch.Tensor,
        cell_state_BSD: torch.Tensor,
        factors_GR: torch.Tensor,
        batch: Batch,
        effect_scale: float,
        trained_on_responses: bool = True,
    ) -> CountDistribution:
        """Distribution of the counts of B sets of S cells.

        Args:
            set_state_BD: hidden states of the set tokens.
            cell_state_BSD: hidden states of the control cells.
            factors_GR: gene factors.
            batch: the sets.
            effect_scale: factor on delta.
            trained_on_responses: False where no training set had a known response: what was learned is then a guess at
                the whole effect and must not be added to a known one.
        """
        gate_B, amplitude_B, self_B = self.gates(set_state_BD).unbind(-1)
        z_BSR = self.set_term(set_state_BD)[:, None] + self.cell_term(cell_state_BSD)
        known_B = batch.response_known_B.to(gate_B.dtype)
        if not trained_on_responses:
            unknown_B = 1.0 - known_B
            gate_B, amplitude_B, self_B = gate_B * unknown_B, amplitude_B * unknown_B, self_B * unknown_B
            z_BSR = z_BSR * unknown_B[:, None, None]
        delta_BG = (known_B * (1.0 + gate_B))[:, None] * batch.response_BG
        delta_BG = delta_BG + (1.0 - known_B + amplitude_B)[:, None] * self.mean_response
        delta_BG = delta_BG + self._own_genes(batch) * self_B[:, None]
        delta_BSG = effect_scale * (delta_BG[:, None] + z_BSR @ factors_GR.T)
        log_share_BSG = torch.log_softmax(batch.log_share_BSG + delta_BSG, dim=-1)
        return CountDistribution(log_share_BSG, delta_BSG, self.log_dispersion.exp())

    def _own_genes(self, batch: Batch) -> torch.Tensor:
        """1 at the target genes of each set, [B, G]."""
        on_axis_BP = batch.target_gene_BP >= 0
        own_BG = torch.zeros_like(batch.response_BG)
        return own_BG.scatter_add(1, batch.target_gene_BP.clamp(min=0), on_axis_BP.to(own_BG.dtype)).clamp(max=1.0)
