"""Which cells a store keeps, once every source has been read, and what became of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.controls import require_controls
from vcc_fm.store.cell_table import CellTable
from vcc_fm.store.chunks import Chunk
from vcc_fm.store.description import LABELS
from vcc_fm.store.filters import SourceFilters
from vcc_fm.store.merge import Rows


class Kept:
    """The cells that stay, and what became of the others.

    Attributes:
        rows: in the order of the store.
        names: label -> those that stay.
        batch_source: number of the source of each batch.
        dropped: per source, reason -> number of cells that were left out after their labels had been read.
        knock_down: per source, the report of that filter; None where it was not asked for.
    """

    def __init__(
        self,
        table: CellTable,
        chunks: list[list[Chunk]],
        filters: list[SourceFilters],
        configs: list[SourceConfig],
        minimum_cells: int,
    ):
        """Decide, from the chunks of each source."""
        length, depth = np.full(len(table.rank), -1, np.int32), np.zeros(len(table.rank), np.int32)
        cell = np.argsort(table.rank)
        self.dropped: list[Counter[str]] = [Counter() for _ in configs]
        self.knock_down: list[dict[str, list[Any]] | None] = []
        for number, mine in enumerate(chunks):
            for chunk in mine:
                length[chunk.rank], depth[chunk.rank] = chunk.length, chunk.depth
                self.dropped[number].update(chunk.notes["dropped"])
            rank = np.concatenate([chunk.rank for chunk in mine])
            judged = filters[number].knocked_down(cell[rank] - table.first[number], mine)
            self.knock_down.append(None if judged is None else judged.report)
            if judged is not None:
                length[rank[~judged.keep]] = -1
                self.dropped[number].update(judged.dropped)
        cell = cell[length >= 0]  # what has been dropped so far counts for no perturbation
        few = self._few(table, cell, configs, minimum_cells)
        for number, left_out in enumerate(np.bincount(table.source(cell[few]), minlength=len(configs)).tolist()):
            if left_out:
                self.dropped[number][f"perturbation with fewer than {minimum_cells} cells"] = left_out
        cell = cell[~few]
        if not len(cell):
            raise UserError(f"no cell is left after the filters ({self._told()}); loosen them")
        rank = table.rank[cell]
        if not length[rank].any():
            raise UserError("no gene of any source is on the gene axis with a count above zero")
        self.names, codes = {}, {}
        for label in LABELS:
            present, codes[label] = np.unique(table.codes[label][cell], return_inverse=True)
            codes[label] = codes[label].astype(np.int32)
            self.names[label] = table.names[label][present].tolist()
        self.rows = Rows(rank, length[rank].astype(np.int64), depth[rank], codes, cell, table)
        _, first = np.unique(codes["batch"], return_index=True)
        self.batch_source = table.source(cell[first]).tolist()
        self._check_controls(table, configs[0].control)

    def _told(self) -> str:
        return "; ".join(f"{reason}: {n}" for drops in self.dropped for reason, n in sorted(drops.items()))

    def _check_controls(self, table: CellTable, control: str) -> None:
        """No filter took the control cells of a context away: a prediction starts from them."""
        had = _contexts(table.codes, table.names, control)
        kept = {self.names["context"][code] for code in np.unique(self.rows.codes["context"])}
        having = _contexts(self.rows.codes, self.names, control)
        # A context that never had any may be embedded; what predicts or scores will refuse it.
        require_controls(
            had & kept if having else kept, having, control, f"after the filters ({self._told()})", "loosen them"
        )

    @staticmethod
    def _few(table: CellTable, cell: np.ndarray, configs: list[SourceConfig], minimum_cells: int) -> np.ndarray:
        """Which cells ([n] places in the table) are of a perturbation with too few of them in its context."""
        context, perturbation = (table.codes[label][cell].astype(np.int64) for label in ("context", "perturbation"))
        _, group, size = np.unique(
            context * len(table.names["perturbation"]) + perturbation, return_inverse=True, return_counts=True
        )
        return (size[group] < minimum_cells) & (table.names["perturbation"] != configs[0].control)[perturbation]


def _contexts(
    codes: dict[str, np.ndarray], names: Mapping[str, Sequence[str] | np.ndarray], perturbation: str
) -> set[str]:
    """The contexts in which a perturbation has cells."""
    known = list(names["perturbation"])
    if perturbation not in known:
        return set()
    mine = codes["perturbation"] == known.index(perturbation)
    return {names["context"][code] for code in np.unique(codes["context"][mine])}
