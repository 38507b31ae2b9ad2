"""The perturbation moves the cell vector as it did elsewhere; SE's own gene decoder says what that does to genes.

A peer of ``other-contexts`` that meets the genes by way of the embedding: nothing in it is fitted but mean shifts of
vectors, and what they mean for genes comes from SE's pretraining.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from rich.console import Console

from vcc_fm.baselines.baseline import Baseline
from vcc_fm.baselines.embedding_responses import embedding_responses, mean_vector
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.encoders.cells.state_se import StateSeSettings
from vcc_fm.encoders.cells.state_se_decoder import StateSeGeneDecoder, read_depth
from vcc_fm.encoders.cells.state_se_tokens import match_genes
from vcc_fm.encoders.cells.state_se_weights import load_state_se
from vcc_fm.encoders.parallel import each_on_one_core
from vcc_fm.ground.hub import expanded
from vcc_fm.ground.progress import ProgressLines

CHUNK = 4096
"""Control cells whose counts are read at a time."""


class EmbeddingTransfer(Baseline):
    """Log ratios by way of the embedding, for the groups that it was prepared for.

    The mean vector of the context's control cells is decoded before and after a shift, both at unit length, with the
    controls' mean dataset vector and mean read depth. The shift is the shrunken one of the same perturbation in other
    contexts; the mean shift of training perturbations where it was seen in none. The log ratio is the difference of
    the two decoded log1p expressions, each at least 0; it is 0 for a gene of the axis that the checkpoint does not
    know.
    """

    cell_encoders = frozenset({"state-se"})

    def prepare(self, groups: Collection[tuple[str, str]], device: torch.device, console: Console) -> None:
        """Load the gene decoder of the checkpoint that embedded the cells, and decode what is asked for.

        Raises:
            UserError: the checkpoint cannot be had, or none of its genes is on the axis.
        """
        settings = self.data.cell_encoder
        assert isinstance(settings, StateSeSettings)
        checkpoint = load_state_se(expanded(settings.model), settings.revision, settings.heads)
        ids = match_genes(self.data.cells.genes, checkpoint.names, "data.genes", minimum_share=0.0).ids
        self._known = known = ids >= 0
        table = checkpoint.tensors["pe_embedding.weight"][torch.from_numpy(ids[known]).long()]

        def build(rows: torch.Tensor) -> StateSeGeneDecoder:
            return StateSeGeneDecoder.from_tensors(checkpoint.tensors, rows)

        (decoder,) = each_on_one_core(build, [table], table.device)
        self._decoder = decoder.to(device)
        console.print(
            f"embedding-transfer: {known.sum():,} of {len(known):,} genes decoded, the other {(~known).sum():,} stay "
            "at control",
            highlight=False,
            soft_wrap=True,
        )
        self._decode_all(groups, settings.scale_to, console)

    def _decode_all(self, groups: Collection[tuple[str, str]], scale_to: float | None, console: Console) -> None:
        """Decode every change that ``groups`` need, once."""
        self._change = {group: (group[0], shift.tobytes()) for group, shift in _shifts(self.data, groups).items()}
        width = self.data.cell_vectors.width
        at_rest = {context: (context, bytes(4 * width)) for context, _ in self._change.values()}
        # Each change once: what was seen nowhere else has one shift, and where noise explains all there is none.
        changes = sorted({*self._change.values(), *at_rest.values()})
        starts = {context: _Start.of(self.data, context, self._known, scale_to) for context in at_rest}
        progress = ProgressLines("embedding-transfer", "decoded vectors", console)
        expression: dict[tuple[str, bytes], np.ndarray] = {}
        work = each_on_one_core(lambda change: self._decode(starts[change[0]], change[1]), changes, self._device)
        for change, decoded in zip(changes, work, strict=True):
            expression[change] = decoded
            progress(len(expression), len(changes))
        self._ratio = {change: expression[change] - expression[at_rest[change[0]]] for change in changes}

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Log ratio [G] float32 of a group that it was prepared for."""
        return self._ratio[self._change[context, perturbation]]

    @property
    def _device(self) -> torch.device:
        return self._decoder.genes.device

    def _decode(self, start: _Start, shift: bytes) -> np.ndarray:
        """Expression [G] float32, log1p, at least 0, and 0 where the gene is not known.

        One vector a call: inside one matrix product, rows are rounded otherwise in other company, and a prediction
        would depend on the groups that fall to the same process. It costs a sixth more than many vectors a call.
        """
        # The shift is one of means; so is where it starts from, which is shorter than the unit vectors averaged.
        moved = start.mean + np.frombuffer(shift, np.float32)
        unit = (moved / np.linalg.norm(moved)).astype(np.float32)
        cell, dataset = (torch.from_numpy(one)[None].to(self._device) for one in (unit, start.dataset_vector))
        expression = np.zeros(len(self._known), np.float32)
        expression[self._known] = self._decoder.decode(cell, dataset, start.depth)[0].clamp_(min=0).cpu().numpy()
        return expression


@dataclass(frozen=True)
class _Start:
    """The control cells of a context: mean vector [E], mean dataset vector [10] float32, and mean read depth."""

    mean: np.ndarray
    dataset_vector: np.ndarray
    depth: float

    @classmethod
    def of(cls, data: Dataset, context: str, known: np.ndarray, scale_to: float | None) -> _Start:
        """The start of a context: all control cells that have a vector."""
        rows = data.context_controls[context]
        total = 0.0
        for first in range(0, len(rows), CHUNK):
            part = rows[first : first + CHUNK]
            counts = data.cells.sparse(part).astype(np.float32)
            if scale_to is not None:
                counts = sp.diags(scale_to / data.cells.depth[part]).astype(np.float32) @ counts
            total += float(read_depth(sp.csr_matrix(counts[:, known]).log1p()).sum())
        dataset_vector = mean_vector(data.cell_vectors, rows, "dataset_vector").astype(np.float32)
        return cls(mean_vector(data.cell_vectors, rows), dataset_vector, total / len(rows))


def _shifts(data: Dataset, asked: Collection[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
    """Shift [E] float32 of the mean vector of each group."""
    responses = embedding_responses(data)
    shifts: dict[tuple[str, str], np.ndarray] = {}
    for context, perturbation in asked:
        shift = responses.elsewhere(context, perturbation)
        if shift is None:
            shift = responses.mean_response(context, without=perturbation)
        shifts[context, perturbation] = shift
    return shifts
