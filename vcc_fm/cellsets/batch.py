"""The batch: the one record that sampler, decoder and losses share.

Shape letters, here and wherever a name ends in them: B cell sets, S cells of a set, G genes of the axis, E width of a
cell embedding, P target genes of a perturbation (the longest of the batch; combinations have several), D width of the
decoder, V width of a protein vector, R gene rank, U batches (technical) of the store, N counts above zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass(frozen=True)
class SparseCounts:
    """Counts of B x S cells as they stand in the store: a twelfth of the dense bytes at 3,000 of 18,080 genes.

    Attributes:
        gene_N: position on the gene axis, uint16 or uint32.
        count_N: uint16 or uint32.
        start: [B * S + 1] int64, where each cell's counts begin.
        shape: (B, S, G).
    """

    gene_N: torch.Tensor
    count_N: torch.Tensor
    start: torch.Tensor
    shape: tuple[int, int, int]

    def dense(self) -> torch.Tensor:
        """[B, S, G] float32 on the same device."""
        sets, size, genes = self.shape
        cell_N = torch.repeat_interleave(
            torch.arange(sets * size, device=self.start.device), self.start.diff(), output_size=len(self.gene_N)
        )
        flat = torch.zeros(sets * size * genes, device=self.start.device)
        flat[cell_N * genes + self.gene_N.long()] = self.count_N.float()
        return flat.view(self.shape)


class Fed:
    """What the training loop asks of a batch: a frozen dataclass of tensors, the first [B, …], that counts tokens."""

    tokens: int
    """Number of tokens that the backbone sees, padding included."""

    def __len__(self) -> int:
        """Number of sets."""
        return len(next(iter(vars(self).values())))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(vars(self).values())).device

    @property
    def cells(self) -> torch.Tensor:
        """Number of cells to learn from or to predict, a scalar."""
        return torch.tensor(len(self), device=self.device)

    def to(self, device: torch.device) -> Any:
        """The batch on another device; copies overlap with computation where memory is pinned."""
        return _each(self, lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Any:
        """The batch in page-locked memory, so far as it is not on the device already."""
        return _each(self, lambda value: value if value.is_cuda or value.is_pinned() else value.pin_memory())

    def used_by(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory, once the batch is gone, until ``stream`` has done what it was told by then."""
        for value in vars(self).values():
            if isinstance(value, torch.Tensor):
                value.record_stream(stream)

    def light(self) -> Any:
        """The batch without what is most of it, once its losses are computed."""
        return self

    def not_finite(self) -> list[str]:
        """Names of the fields that hold NaN or infinity."""
        tensors = ((name, value) for name, value in vars(self).items() if isinstance(value, torch.Tensor))
        return [name for name, value in tensors if not torch.isfinite(value).all()]


@dataclass(frozen=True)
class Batch(Fed):
    """B cell sets, ready for the decoder. Float fields are float32.

    Attributes:
        cells_BSE: embeddings of the control cells.
        cell_mask_BS: bool, False where a set is shorter than S; such a cell counts nowhere.
        control_depth_BS: depth of the control cells, UMI.
        log_share_UG: log share of each gene in the control cells of a technical batch; -inf where not measured. The
            store's whole table, which all batches share and which is on the device from the start.
        measured_U: number of genes that the technical batch measured, float32.
        profile_BS: int64, the technical batch of a cell: its row in ``log_share_UG``.
        target_vector_BPV: protein vector of each target gene; zeros where it has none.
        target_code_BP: int64, learned vector of a target gene; 0 where it has none, or a hidden one.
        target_mask_BP: bool, False behind the last target of a set.
        target_gene_BP: int64, position of the target gene on the gene axis, -1 where it is not on it.
        context_code_B: int64, learned code of the context; 0 when unknown or hidden.
        batch_code_BS: int64, learned code of the technical batch; 0 when unknown or hidden.
        response_BG: log ratio that is expected of the perturbation, see ``Expected``; 0 where not asked for.
        deviation_BG: its posterior standard deviation, 0 at the target genes; 1 where not asked for.
        reliability_G: how well genes are measured, see ``MixedModel``; 1 where no response is asked for.
        power_B: expected square of the response, summed over all genes but the targets, each by its reliability.
        null_ratio_BG: what the likelihood expects of control cells over the control profile; see ``null_ratios``.
        noise_seed_B: int64, seed of the noise that the energy distance draws for a set.
        counts_BSG: measured counts, cell by cell of the same batch as the control; None when predicting, or before
            :meth:`to` where they travel sparse.
        sparse_counts: the same counts on their way to a device.
    """

    cells_BSE: torch.Tensor
    cell_mask_BS: torch.Tensor
    control_depth_BS: torch.Tensor
    log_share_UG: torch.Tensor
    measured_U: torch.Tensor
    profile_BS: torch.Tensor
    target_vector_BPV: torch.Tensor
    target_code_BP: torch.Tensor
    target_mask_BP: torch.Tensor
    target_gene_BP: torch.Tensor
    context_code_B: torch.Tensor
    batch_code_BS: torch.Tensor
    response_BG: torch.Tensor
    deviation_BG: torch.Tensor
    reliability_G: torch.Tensor
    power_B: torch.Tensor
    null_ratio_BG: torch.Tensor
    noise_seed_B: torch.Tensor
    counts_BSG: torch.Tensor | None = None
    sparse_counts: SparseCounts | None = None

    @property
    def log_share_BSG(self) -> torch.Tensor:
        """Log share of each gene in the control cells of each cell's batch; -inf where not measured."""
        return self.log_share_UG[self.profile_BS]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device, its counts dense; copies overlap with computation where memory is pinned."""
        moved = super().to(device)
        if moved.sparse_counts is None:
            return moved
        return replace(moved, counts_BSG=moved.sparse_counts.dense(), sparse_counts=None)

    def not_finite(self) -> list[str]:
        """Names of the fields that hold NaN or infinity; a log share of -inf says that a gene was not measured."""
        plain = ("cells_BSE", "control_depth_BS", "target_vector_BPV", "response_BG", "deviation_BG")
        values = {name: getattr(self, name) for name in plain} | {"log_share_BSG": self.log_share_BSG.exp()}
        return [name for name, value in values.items() if not torch.isfinite(value).all()]

    @property
    def cells(self) -> torch.Tensor:
        """See :class:`Fed`."""
        return self.cell_mask_BS.sum()

    @property
    def tokens(self) -> int:  # type: ignore[override]
        """See :class:`Fed`."""
        return len(self) * (2 + self.target_mask_BP.shape[1] + self.cell_mask_BS.shape[1])

    def light(self) -> Batch:
        """The batch without its counts, which are most of it."""
        return replace(self, counts_BSG=None)


def _each(record: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The record with every tensor in it changed."""
    changed: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, torch.Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, SparseCounts):
            changed[field.name] = _each(value, change)
    return replace(record, **changed)
