"""The quality filters of a source: of a cell while it is read, of a perturbation once all of its cells have been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.anndata_source import AnnDataSource, SourceCells
from vcc_fm.sources.quality import ControlSums, KnockDown, TargetGenes, knocked_down, sufficient
from vcc_fm.store.chunks import Chunk


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
            self._label, labels = pd.factorize(source.cells["perturbation"], sort=True)
            self._context, self._contexts = pd.factorize(source.cells["context"], sort=True)
            scale = config.quality.knock_down.scale
            self._targets = TargetGenes(labels.tolist(), config.control, config.separator, source.genes, scale)

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
        label, context = self._label[positions], self._context[positions]
        control = label == self._targets.control
        sums = self._targets.control_sums(counts[control], context[control], len(self._contexts))
        return {"expression": self._targets.measure(counts, label)}, sums._asdict()

    def knocked_down(self, positions: np.ndarray, chunks: list[Chunk]) -> KnockDown | None:
        """Judge the cells of all chunks of the source; None where the recipe does not ask for it.

        Args:
            positions: [n] place in the source of each cell, chunk after chunk.
            chunks: of the source.

        Returns:
            ``keep`` in the order of ``positions``.
        """
        if self._targets is None:
            return None
        assert self._quality.knock_down is not None
        controls = ControlSums(
            *(np.sum([chunk.whole[name] for chunk in chunks], axis=0) for name in ControlSums._fields)
        )
        # Sums over a perturbation run in the order of the file, so that the cut into chunks changes no bit.
        order = np.argsort(positions)
        judged = knocked_down(
            self._label[positions[order]],
            self._context[positions[order]],
            np.concatenate([chunk.further["expression"] for chunk in chunks])[order],
            controls,
            self._targets,
            self._contexts.tolist(),
            self._quality.knock_down,
        )
        keep = np.empty(len(order), bool)
        keep[order] = judged.keep
        return judged._replace(keep=keep)
