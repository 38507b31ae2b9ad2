"""The quality filters of a source: of a cell while it is read, of a perturbation once all of its cells have been."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.anndata_source import AnnDataSource, SourceCells
from vcc_fm.sources.quality import ControlSums, KnockDown, TargetGenes, knocked_down, sufficient
from vcc_fm.store.chunks import ChunkIndex


class SourceFilters:
    """What a recipe asks of the cells of one source.

    Args:
        source: opened.
        config: of the source.
    """

    def __init__(self, source: AnnDataSource, config: SourceConfig):
        self._quality = config.quality
        self._targets = None
        if config.quality.knock_down is not None:
            self._codes, names = source.labels.codes, source.labels.names
            self._contexts = names["context"].tolist()
            labels = sorted(set(names["perturbation"]))
            self._label_of = np.array([labels.index(name) for name in names["perturbation"]])
            scale = config.quality.knock_down.scale
            self._targets = TargetGenes(labels, config.control, config.separator, source.genes, scale)

    @property
    def judge(self) -> bool:
        """Whether the recipe asks how far perturbations were knocked down."""
        return self._targets is not None

    def _of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of perturbation and context of some cells of the source."""
        return self._label_of[self._codes["perturbation"][positions]], self._codes["context"][positions]

    def sufficient(self, cells: SourceCells) -> tuple[np.ndarray, sp.csr_matrix, dict[str, int]]:
        """The cells of a chunk with enough depth and genes: positions and counts; reason -> number of the others."""
        keep, dropped = sufficient(cells.counts, self._quality)
        if keep.all():  # mostly: a copy of all counts for nothing
            return cells.positions, cells.counts, dropped
        return cells.positions[keep], cells.counts[keep], dropped

    def measure(self, positions: np.ndarray, counts: sp.csr_matrix) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What the knock-down filter needs of a chunk: arrays with one row a cell, and arrays of the chunk."""
        if self._targets is None:
            return {}, {}
        label, context = self._of(positions)
        control = label == self._targets.control
        sums = self._targets.control_sums(counts[control], context[control], len(self._contexts))
        return {"position": positions, "expression": self._targets.measure(counts, label)}, sums._asdict()

    def knocked_down(self, chunks: list[ChunkIndex]) -> KnockDown:
        """Judge the cells of all chunks of the source, where the recipe asks for it.

        Returns:
            ``keep`` in the order of the chunks.
        """
        assert self._targets is not None
        assert self._quality.knock_down is not None
        controls = ControlSums(
            *(np.sum([chunk.whole[name] for chunk in chunks], axis=0) for name in ControlSums._fields)
        )
        # Sums over a perturbation run in the order of the file, so that the cut into chunks changes no bit.
        positions, expression = (
            np.concatenate([chunk.cells.further[name] for chunk in chunks]) for name in ("position", "expression")
        )
        order = np.argsort(positions)
        judged = knocked_down(
            *self._of(positions[order]),
            expression[order],
            controls,
            self._targets,
            self._contexts,
            self._quality.knock_down,
        )
        keep = np.empty(len(order), bool)
        keep[order] = judged.keep
        return judged._replace(keep=keep)
