"""SE ("State Embedding"): a cell's vector is what a transformer makes of the genes that the cell expresses.

Abhinav K. Adduri et al., "Predicting cellular responses to perturbation across diverse contexts with State",
bioRxiv 2025.06.26.661135 (2025).

Network, weights and tokens have files of their own (``state_se_*.py``); here they are put together. On a CPU each cell
is computed by itself, on one core, so that neither its neighbours, nor the batch, nor the number of cores or processes
change a bit of its vector. On a GPU cells are computed in batches, whose size may change last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcc_fm.encoders import arc_terms
from vcc_fm.encoders.cells.state_se_model import StateSe, build_state_se
from vcc_fm.encoders.cells.state_se_tokens import GeneMap, Tokenizer, Tokens, match_genes
from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint
from vcc_fm.encoders.parallel import each_on_one_core
from vcc_fm.encoders.proteins.encoder import JSON


@dataclass(frozen=True)
class SeSettings:
    """What of an embedding the user decides.

    Attributes:
        mode: ``exact`` or ``compat``, see :class:`Tokenizer`.
        pad_length: length of the sequence, CLS included; SE-600M was trained with 2,048.
        target_sum: depth to which counts are scaled before log1p, UMI; None leaves them (``exact`` only).
        seed: of ties at the cut and silent genes.
    """

    mode: Literal["exact", "compat"] = "exact"
    pad_length: int = 2048
    target_sum: float | None = None
    seed: int = 0


class StateSeEncoder:
    """A checkpoint of SE, ready for cells with given genes.

    Args:
        checkpoint: The loaded weights.
        columns: [G] gene symbols of the cells' matrix.
        settings: What the user decides.
        dtype: ``float32`` or ``bfloat16`` for linear layers and attention.
        device: Where the network is.
        batch_cells: Cells that a GPU computes at a time.

    Raises:
        UserError: No gene is known to the checkpoint, or a symbol repeats (``exact``).
    """

    def __init__(
        self,
        checkpoint: SeCheckpoint,
        columns: Sequence[str],
        settings: SeSettings | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_cells: int = 16,
    ) -> None:
        self.checkpoint = checkpoint
        self.settings = SeSettings() if settings is None else settings
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_cells = batch_cells
        self.genes = match_genes(columns, checkpoint.names, "genes", minimum_share=0.0)
        # Only these genes can become tokens: a panel of 500 needs no table of 19,790.
        present = self.genes.present
        self._position = np.full(len(checkpoint.names), -1, np.int64)
        self._position[present] = np.arange(len(present))

        def build(genes: Tensor) -> StateSe:
            return build_state_se(checkpoint.geometry, checkpoint.tensors, genes, dtype, self.device)

        # The gene tokens, which are matrix products too, on one core as well.
        (self._network,) = each_on_one_core(build, [torch.from_numpy(present).long()], self.device)

    @property
    def width(self) -> int:
        """Length of a cell's vector."""
        return self.checkpoint.geometry.output

    @property
    def dataset_width(self) -> int:
        """Length of a data set vector."""
        return self.checkpoint.geometry.dataset_width

    def describe(self) -> dict[str, JSON]:
        """Encoder name, checkpoint, parameters, licence and citation: what ``store.json`` records."""
        return {
            "encoder": "state-se",
            "checkpoint": self.checkpoint.describe(),
            "parameters": {
                "mode": self.settings.mode,
                "pad_length": self.settings.pad_length,
                "target_sum": self.settings.target_sum,
                "seed": self.settings.seed,
                "dtype": str(self.dtype).removeprefix("torch."),
                "device": self.device.type,
            },
            "licence": arc_terms.SE,
            "citation": arc_terms.CITATION,
        }

    def tokenizer(self, measured: NDArray[np.bool_] | None = None, where: str = "cells") -> Tokenizer:
        """The tokenizer of cells in which only some of the columns were measured.

        A gene that was not measured is no silent gene: it cannot fill a sequence up.

        Args:
            measured: [G] bool; None is all.
            where: the cells, as messages name them.

        Raises:
            UserError: See :class:`Tokenizer`.
        """
        ids = self.genes.ids if measured is None else np.where(measured, self.genes.ids, -1).astype(np.int32)
        settings = self.settings
        genes = GeneMap(where, self.genes.columns, ids)
        return Tokenizer(genes, settings.pad_length, settings.mode, settings.target_sum, settings.seed)

    def encode(self, rows: sp.csr_matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embed cells in which all columns were measured.

        Args:
            rows: [n, G] counts; in mode ``compat`` counts or their log1p, as each row looks.

        Returns:
            Cell vectors [n, width] of unit length, and data set vectors [n, dataset_width], both float32; NaN for
            cells that express no gene of the checkpoint.

        Raises:
            UserError: A value is negative, not finite, or no count.
        """
        return self.embed(self.tokenizer().tokenize(rows))

    def embed(
        self, tokens: Tokens, progress: Callable[[int], None] = lambda cells: None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embed tokenised cells: see :meth:`encode`; ``progress`` is told how many cells are done."""
        vectors = np.full((len(tokens.length), self.width + self.dataset_width), np.nan, np.float32)
        cells = np.flatnonzero(~tokens.empty)
        # Where a cell's numbers begin in memory changes last digits on a CPU: a cell alone begins where each one does.
        size = 1 if self.device.type == "cpu" else self.batch_cells
        batches = [cells[start : start + size] for start in range(0, len(cells), size)]
        parts, done = [], 0
        for part in each_on_one_core(lambda batch: self._forward(tokens, batch), batches, self.device):
            parts.append(part)
            done += len(part)
            progress(done)
        if parts:
            # Fetched once: a GPU works on while the next batches are put together.
            vectors[cells] = torch.cat(parts).cpu().numpy()
        return vectors[:, : self.width], vectors[:, self.width :]

    @torch.inference_mode()
    def _forward(self, tokens: Tokens, cells: NDArray[np.int64]) -> Tensor:
        """[b, width + dataset_width] float32 on the device."""
        length = int(tokens.length[cells].max())
        times = tokens.multiplicity[cells, :length]
        bias = None
        if (times != 1).any():
            with np.errstate(divide="ignore"):
                bias = torch.from_numpy(np.log(times, dtype=np.float32)).to(self.device)
        # Behind a shorter cell's tokens stands gene 0, which its bias of -inf hides; any valid position will do there.
        position = np.maximum(self._position[tokens.ids[cells, :length]], 0)
        cell, dataset = self._network(
            torch.from_numpy(position).to(self.device),
            torch.from_numpy(tokens.values[cells, :length]).to(self.device),
            torch.from_numpy(tokens.cls_value[cells]).to(self.device),
            bias,
        )
        return torch.cat([cell, dataset], dim=1)
