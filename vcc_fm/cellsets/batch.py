"""The batch: the one record that sampler, decoder and losses share.

Shape letters, here and wherever a name ends in them: B cell sets, S cells of a set, G genes of the axis, E width of a
cell embedding, P target genes of a perturbation (the longest of the batch; combinations have several), D width of the
decoder, V width of a protein vector, R gene rank, U batches (technical) of the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Batch:
    """B cell sets, ready for the decoder. Float fields are float32.

    Attributes:
        cells_BSE: embeddings of the control cells.
        cell_mask_BS: bool, False where a set is shorter than S; such a cell counts nowhere.
        control_depth_BS: depth of the control cells, UMI.
        log_share_BSG: log share of each gene in the control cells of the cell's batch; -inf where not measured.
        target_vector_BPV: protein vector of each target gene; zeros where it has none.
        target_code_BP: int64, learned vector of a target gene without a protein vector; 0 for all others.
        target_mask_BP: bool, False behind the last target of a set.
        target_gene_BP: int64, position of the target gene on the gene axis, -1 where it is not on it.
        context_code_B: int64, learned code of the context; 0 when unknown or hidden.
        batch_code_BS: int64, learned code of the technical batch; 0 when unknown or hidden.
        response_BG: log ratio of the same perturbation in other contexts; 0 where none is known.
        response_known_B: bool.
        noise_seed_B: int64, seed of the noise that the energy distance draws for a set.
        counts_BSG: measured counts, cell by cell of the same batch as the control; None when predicting.
    """

    cells_BSE: torch.Tensor
    cell_mask_BS: torch.Tensor
    control_depth_BS: torch.Tensor
    log_share_BSG: torch.Tensor
    target_vector_BPV: torch.Tensor
    target_code_BP: torch.Tensor
    target_mask_BP: torch.Tensor
    target_gene_BP: torch.Tensor
    context_code_B: torch.Tensor
    batch_code_BS: torch.Tensor
    response_BG: torch.Tensor
    response_known_B: torch.Tensor
    noise_seed_B: torch.Tensor
    counts_BSG: torch.Tensor | None = None

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; copies overlap with computation where the memory is pinned."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def __len__(self) -> int:
        return len(self.context_code_B)
