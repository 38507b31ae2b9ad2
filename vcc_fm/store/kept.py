"""Which cells a store keeps, once every source has been read, and what became of the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vcc_fm.ground.arrays import Arrays, made_once, places
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.alignment import Sources
from vcc_fm.sources.controls import require_controls
from vcc_fm.store.cell_table import CellTable
from vcc_fm.store.cells import cell_features
from vcc_fm.store.chunks import Chunk, ChunkIndex
from vcc_fm.store.description import LABELS
from vcc_fm.store.filters import SourceFilters
from vcc_fm.store.merge import Ranges, Rows, plan_shards


class Kept(NamedTuple):
    """The cells that stay, and what became of the others."""

    rows: Rows
    """Rows in the order of the store."""
    names: dict[str, list[str]]
    """Label -> those that stay."""
    batch_source: list[int]
    """Number of the source of each batch."""
    dropped: list[dict[str, int]]
    """Per source, reason -> number of cells that were left out; reasons of labels come first."""
    evidence: list[dict[str, Any]]
    """Per source, for the counts of all of its cells."""
    knock_down: list[dict[str, list[Any]] | None]
    """Per source, the report of that filter; None where it was not asked for."""
    largest: int
    """Count."""
    plan: list[Ranges]
    """Per shard, the ranges of rows of its record batches."""
    cuts: np.ndarray
    """[chunks, shards + 1] int64, the cell of each chunk at which each shard begins."""


def keep_cells(
    table: CellTable,
    chunks: list[list[Chunk]],
    filters: list[SourceFilters],
    aligned: Sources,
    configs: list[SourceConfig],
    minimum_cells: int,
    path: Path,
) -> Kept:
    """Decide from the chunks of each source, in one process; the others take what it found from the file ``path``.

    Raises:
        UserError: too few cells of a source are proved, no cell is left, or no control cell of a context.
    """

    def make() -> tuple[Arrays, dict[str, Any]]:
        decision = _Decision(table, configs)
        for number, mine in enumerate(chunks):
            decision.read(number, mine, filters[number], aligned)
        rows, said = decision.rows(minimum_cells)
        plan = plan_shards(rows.length, cell_features(len(aligned.axis), said["largest"], said["names"]))
        bounds = [*(int(rows.rank[batches[0][0]]) for batches in plan), len(table.rank)]
        cuts = [np.searchsorted(rank := chunk.rank(), np.array(bounds, rank.dtype)) for of in chunks for chunk in of]
        arrays = {"rank": rows.rank, "length": rows.length, "depth": rows.depth, "start": rows.start}
        return arrays | rows.codes | {"cuts": np.array(cuts)}, said | {"plan": plan}

    arrays, said = made_once(path, make)
    codes = {label: arrays[label] for label in LABELS}
    rows = Rows(arrays["rank"], arrays["length"], arrays["depth"], arrays["start"], codes)
    plan = [[(start, stop) for start, stop in batches] for batches in said.pop("plan")]
    return Kept(rows, plan=plan, cuts=arrays["cuts"], **said)


class _Decision:
    """What is known of the cells by rank, as one source after the other is read."""

    def __init__(self, table: CellTable, configs: list[SourceConfig]):
        self._table, self._control = table, configs[0].control
        self._length = np.full(len(table.rank), -1, np.int32)  # -1: dropped
        self._depth = np.zeros(len(table.rank), np.int32)
        self._dropped: list[Counter[str]] = [Counter() for _ in configs]
        self._first: list[dict[str, int]] = []
        self._evidence: list[dict[str, Any]] = []
        self._knock_down: list[dict[str, list[Any]] | None] = []
        self._largest = 0

    def read(self, number: int, chunks: list[Chunk], filters: SourceFilters, aligned: Sources) -> None:
        """Take in the chunks of a source."""
        source, states = aligned.opened[number], []
        judged_by: list[ChunkIndex] = []
        for chunk in chunks:
            index = chunk.index()
            self._length[index.cells.rank], self._depth[index.cells.rank] = index.length, index.cells.depth
            self._dropped[number].update(index.notes["dropped"])
            self._largest = max(self._largest, index.notes["largest"])
            states.append(index.notes["evidence"])
            if filters.judge:
                judged_by.append(index)
        source.conclude(states)
        self._evidence.append(source.evidence)
        self._first.append(source.dropped)
        if filters.judge:
            judged = filters.knocked_down(judged_by)
            rank = np.concatenate([index.cells.rank for index in judged_by])
            self._length[rank[~judged.keep]] = -1
            self._dropped[number].update(judged.dropped)
        self._knock_down.append(judged.report if filters.judge else None)

    def rows(self, minimum_cells: int) -> tuple[Rows, dict[str, Any]]:
        """The rows of the store, and what else :class:`Kept` has to say."""
        table = self._table
        cells = self._of_groups(places(self._length >= 0))
        few = self._few(cells, minimum_cells)
        for number, left_out in enumerate(
            np.bincount(table.batch_source[table.codes["batch"][few]], cells[few], len(self._dropped))
        ):
            if left_out:
                self._dropped[number][f"perturbation with fewer than {minimum_cells} cells"] = int(left_out)
        for group in np.flatnonzero(few).tolist():
            self._length[table.start[group] : table.start[group + 1]] = -1
        rank = places(self._length >= 0)
        if not len(rank):
            raise UserError(f"no cell is left after the filters ({self._told()}); loosen them")
        length = self._length[rank]
        del self._length  # of all cells: there is one of the rows now
        depth = self._depth[rank]
        del self._depth
        if not length.any():
            raise UserError("no gene of any source is on the gene axis with a count above zero")
        cells = self._of_groups(rank)
        self._check_controls(cells)
        stays = cells > 0
        names, codes = {}, {}
        for label in LABELS:
            present, codes[label] = np.unique(table.codes[label][stays], return_inverse=True)
            names[label] = [table.names[label][code] for code in present]
        batches = np.unique(table.codes["batch"][stays])
        said = {
            "names": names,
            "batch_source": table.batch_source[batches].tolist(),
            "dropped": [
                first | dict(sorted(further.items()))
                for first, further in zip(self._first, self._dropped, strict=True)
            ],
            "evidence": self._evidence,
            "knock_down": self._knock_down,
            "largest": self._largest,
        }
        return Rows(rank, length, depth, np.concatenate([[0], np.cumsum(cells[stays])]), codes), said

    def _of_groups(self, rank: np.ndarray) -> np.ndarray:
        """[groups] int64, how many of ``rank`` (rising) are in each group."""
        return np.diff(np.searchsorted(rank, self._table.start.astype(rank.dtype)))

    def _few(self, cells: np.ndarray, minimum_cells: int) -> np.ndarray:
        """Which groups are of a perturbation with too few cells in its context, [groups] bool."""
        context, perturbation = (self._table.codes[label] for label in ("context", "perturbation"))
        few = self._table.sizes(cells)[context, perturbation] < minimum_cells
        few &= np.array([name != self._control for name in self._table.names["perturbation"]])[perturbation]
        return few & (cells > 0)

    def _told(self) -> str:
        return "; ".join(f"{reason}: {n}" for drops in self._dropped for reason, n in sorted(drops.items()))

    def _check_controls(self, cells: np.ndarray) -> None:
        """No filter took the control cells of a context away: a prediction starts from them."""
        had, having = (self._contexts(n, self._control) for n in (np.diff(self._table.start), cells))
        kept = self._contexts(cells, None)
        # A context that never had any may be embedded; what predicts or scores will refuse it.
        require_controls(
            had & kept if having else kept,
            having,
            self._control,
            f"after the filters ({self._told()})",
            "loosen them",
        )

    def _contexts(self, cells: np.ndarray, perturbation: str | None) -> set[str]:
        """The contexts in which a perturbation, or any, has cells."""
        table = self._table
        if perturbation is not None:
            known = np.array([name == perturbation for name in table.names["perturbation"]])
            cells = cells * known[table.codes["perturbation"]]
        return {table.names["context"][code] for code in np.unique(table.codes["context"][cells > 0])}
