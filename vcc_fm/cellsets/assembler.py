"""Sets of cells, read and stacked into batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vcc_fm.cellsets.batch import Batch, SparseCounts
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import CellSet
from vcc_fm.responses.expected import Expected, Expects


@dataclass(frozen=True)
class Vocabulary:
    """The labels for which a decoder has learned codes; code 0 is the unknown label.

    Attributes:
        contexts, batches: labels with a code of their own, code = position + 1.
        learned_targets: target genes that have a learned vector, code = position + 1.
    """

    contexts: tuple[str, ...]
    batches: tuple[str, ...]
    learned_targets: tuple[str, ...]


class Assembler:
    """Turns cell sets into a :class:`Batch`."""

    def __init__(
        self,
        data: Dataset,
        vocabulary: Vocabulary,
        set_size: int,
        response: bool,
        device: torch.device | None = None,
        sparse: bool | None = None,
        targets: int = 1,
        expected: Expects | None = None,
    ):
        """Look up what never changes between batches.

        Args:
            data: where cells are.
            vocabulary: labels with codes.
            set_size: S; shorter sets are padded.
            response: whether expected responses are given.
            device: where the batches go; the table of control profiles is put there now.
            sparse: whether counts travel sparse and become dense on the device; None: unless that is the CPU.
            targets: P at the least; shorter sets of target genes are padded.
            expected: tells expected responses; None: the dataset's.
        """
        self.data = data
        self.set_size = set_size
        self.response = response
        self._least_targets, self._expected = targets, expected
        device = torch.device("cpu") if device is None else device
        self.sparse = device.type != "cpu" if sparse is None else sparse
        self._log_share_UG = torch.from_numpy(data.log_shares).to(device)
        self._measured_U = torch.from_numpy(data.cells.measured.sum(axis=1, dtype=np.float32)).to(device)
        self._pinned = device.type == "cuda"
        self._protein = data.protein_rows
        self._context_code, batch_code, self._target_code = (
            {label: position + 1 for position, label in enumerate(labels)}
            for labels in (vocabulary.contexts, vocabulary.batches, vocabulary.learned_targets)
        )
        self._batch_code = np.array([batch_code.get(label, 0) for label in data.cells.batches], np.int64)

    def expected(self, one: CellSet) -> Expected | None:
        """What is expected of a set's response; None where that is not asked for.

        Of measured cells of a training group, as if the group had not been measured.
        """
        if not self.response:
            return None
        group, source = (one.context, one.perturbation), self._expected or self.data.expected
        if one.measured_rows is None or self.data.split.roles.get(group) != "train":
            return source.of(*group)
        return source.left_out(*group, one.hide_response)

    def assemble(self, sets: list[CellSet], buffer: np.ndarray | None = None) -> Batch:
        """Read and stack ``sets``; shorter ones are padded and masked.

        Args:
            sets: B of them.
            buffer: [B, S, G] float32, into which dense counts are written; new memory where it is None, which costs
                more than writing them.
        """
        store, shape = self.data.cells, (len(sets), self.set_size)
        rows, mask = np.concatenate([one.control_rows for one in sets]), self._mask(sets)
        # What is written whole is not zeroed before, which took a twentieth of the time.
        cells = self._new((*shape, self.data.cell_vectors.width), np.float32)
        # Padding is the first cell of its set, and keeps its batch: a profile of nothing but -inf would turn a softmax
        # into NaN.
        every = np.empty(shape, np.int64)
        every[:] = [[one.control_rows[0]] for one in sets]
        every[mask] = rows
        # In one piece: threads that take and leave the interpreter's lock for every set slow the training loop.
        self.data.cell_vectors.take(every.ravel(), out=cells.reshape(every.size, -1))
        cells[~mask] = 0
        depth = np.ones(shape, np.float32)
        depth[mask] = store.depth[rows]
        profile = store.batch[every].astype(np.int64)
        hidden = np.array([one.hide_codes for one in sets])
        context_code = np.array([self._context_code.get(one.context, 0) for one in sets])
        tensor = torch.from_numpy
        return Batch(
            cells_BSE=tensor(cells),
            cell_mask_BS=tensor(mask),
            control_depth_BS=tensor(depth),
            log_share_UG=self._log_share_UG,
            measured_U=self._measured_U,
            profile_BS=tensor(profile),
            context_code_B=tensor(np.where(hidden, 0, context_code)),
            batch_code_BS=tensor(np.where(mask & ~hidden[:, None], self._batch_code[profile], 0)),
            noise_seed_B=torch.tensor([one.noise_seed for one in sets]),
            counts_BSG=None if self.sparse else self._dense(sets, buffer),
            sparse_counts=self._sparse(sets) if self.sparse else None,
            **self._targets(sets),
            **self._responses(sets),
        )

    def buffer(self, sets: int) -> np.ndarray | None:
        """Memory for the dense counts of ``sets`` sets; None where counts travel sparse."""
        return None if self.sparse else np.empty((sets, self.set_size, len(self.data.cells.genes)), np.float32)

    def _mask(self, sets: list[CellSet]) -> np.ndarray:
        """[B, S] bool: where a set has a cell."""
        return np.arange(self.set_size) < np.array([len(one.control_rows) for one in sets])[:, None]

    def _targets(self, sets: list[CellSet]) -> dict[str, torch.Tensor]:
        """The fields of a batch on target genes."""
        targets, vectors = [self.data.targets(one.perturbation) for one in sets], self.data.protein_vectors.vectors
        shape = len(sets), max(self._least_targets, *map(len, targets))
        vector, code = np.zeros((*shape, vectors.shape[1]), np.float32), np.zeros(shape, np.int64)
        mask, gene = np.zeros(shape, bool), np.full(shape, -1, np.int64)
        for i, (one, symbols) in enumerate(zip(sets, targets, strict=True)):
            for j, symbol in enumerate(symbols):
                mask[i, j] = True
                gene[i, j] = self.data.axis.get(symbol, -1)
                if symbol in self._protein:
                    vector[i, j] = vectors[self._protein[symbol]]
                # Hidden where a protein vector is left, so that those are learned from, too.
                if not (one.hide_codes and symbol in self._protein):
                    code[i, j] = self._target_code.get(symbol, 0)
        fields = {"target_vector_BPV": vector, "target_code_BP": code, "target_mask_BP": mask, "target_gene_BP": gene}
        return {name: torch.from_numpy(values) for name, values in fields.items()}

    def _responses(self, sets: list[CellSet]) -> dict[str, torch.Tensor]:
        """The fields of a batch on responses."""
        found = [self.expected(one) for one in sets]
        shape = len(sets), len(self.data.cells.genes)
        response, deviation, null_ratio = (self._new(shape, np.float32) for _ in range(3))
        for row, one in enumerate(found):
            response[row], deviation[row] = (0.0, 1.0) if one is None else (one.mean, one.deviation)
        if sets[0].measured_rows is None:  # only a likelihood, of cells that were measured, asks for it
            null_ratio[:] = 1.0
        else:
            contexts = [self.data.cells.contexts.index(one.context) for one in sets]
            # Told to clip, numpy writes where it shall; told to raise, it writes a copy first.
            self.data.null_ratios.take(contexts, axis=0, out=null_ratio, mode="clip")
        return {
            "response_BG": torch.from_numpy(response),
            "deviation_BG": torch.from_numpy(deviation),
            "reliability_G": torch.ones(shape[1]) if found[0] is None else torch.from_numpy(found[0].reliability),
            "power_B": torch.tensor([0.0 if one is None else one.power for one in found]),
            "null_ratio_BG": torch.from_numpy(null_ratio),
        }

    def _dense(self, sets: list[CellSet], buffer: np.ndarray | None) -> torch.Tensor | None:
        """Counts of the measured cells, [B, S, G] float32; None where there are none to read."""
        if sets[0].measured_rows is None:
            return None
        store, size = self.data.cells, self.set_size
        counts = np.empty((len(sets), size, len(store.genes)), np.float32) if buffer is None else buffer
        for cells, one in zip(counts, sets, strict=True):
            assert one.measured_rows is not None
            n = len(one.measured_rows)
            store.dense(one.measured_rows, out=cells[:n])
            cells[n:] = 0
        return torch.from_numpy(counts)

    def _sparse(self, sets: list[CellSet]) -> SparseCounts | None:
        """The same counts, sparse."""
        if sets[0].measured_rows is None:
            return None
        rows = np.concatenate([one.measured_rows for one in sets if one.measured_rows is not None])
        genes, counts, start = self.data.cells.lists(rows, self._new)
        length = np.zeros((len(sets), self.set_size), np.int64)
        length[self._mask(sets)] = np.diff(start)
        return SparseCounts(
            torch.from_numpy(genes),
            torch.from_numpy(counts),
            torch.from_numpy(np.concatenate([[0], np.cumsum(length)])),
            (len(sets), self.set_size, len(self.data.cells.genes)),
        )

    def _new(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """Memory for a large field of a batch.

        What goes to a GPU is written where it can be copied from, into memory that torch keeps and gives again: fresh
        pages cost as much as what is written to them.
        """
        kind = getattr(torch, np.dtype(dtype).name)
        return torch.empty(shape, dtype=kind, pin_memory=self._pinned).numpy()
