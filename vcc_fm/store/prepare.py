"""From checked sources to a cell store: align the genes, order the cells, write them, in bounded memory.

Two passes, and both are shared by all processes that take part. The first reads each source once, range of rows by
range of rows, and leaves chunks on disk: verified counts, sorted by the place that a cell will have. The second puts
the shards together from them. What is done survives an interruption. Memory holds the labels of all cells, and of the
counts as much as ``data.memory_mb`` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import scipy.sparse as sp
from accelerate import PartialState
from rich.console import Console

from vcc_fm.errors import UserError
from vcc_fm.recipe import DataConfig, SourceConfig, fingerprint
from vcc_fm.sources.alignment import Sources, open_sources
from vcc_fm.store.arrow import shard_name, write_description, write_shard
from vcc_fm.store.cell_table import LABELS, CellTable, cell_table
from vcc_fm.store.cells import SCHEMA, cell_features
from vcc_fm.store.chunks import Chunk, write_chunk
from vcc_fm.store.filters import SourceFilters
from vcc_fm.store.folder import read_json, whole_folder, write_json
from vcc_fm.store.merge import Rows, plan_shards, shard_batches
from vcc_fm.store.work import WorkFolder

READING_BYTES = 100  # a stored value at the peak of reading a chunk: as stored, checked in float64, sorted, as saved
WRITING_SHARE = 2  # of the memory for a shard's counts: they, and as much again of a chunk's


def write_cell_store(
    final: Path,
    data: DataConfig,
    configs: list[SourceConfig],
    seed: int,
    fingerprint_: str,
    simulated: bool,
    state: PartialState,
    console: Console,
) -> None:
    """Write the cell store of ``configs`` as the folder ``final``, whole or not at all.

    Args:
        final: where the dataset and ``store.json`` go.
        data: gene axis rule, minimum cells, memory.
        configs: the sources, simulated ones included.
        seed: of the order inside groups.
        fingerprint_: of everything the store depends on.
        simulated: whether the cells are simulated; kept in ``store.json``.
        state: who takes part.
        console: where progress goes.

    Raises:
        UserError: a source is refused, sources disagree on the control label, or no cell is left.
    """
    memory = data.memory_mb << 20
    with open_sources(data, configs) as aligned:
        sources, axis = aligned.opened, aligned.axis
        table = cell_table(sources, configs, seed)
        values = memory // READING_BYTES
        work = WorkFolder(final, fingerprint([fingerprint_, values]), state)
        ranges = [(n, *rows) for n, source in enumerate(sources) for rows in source.ranges(values)]
        filters = [SourceFilters(source, config) for source, config in zip(sources, configs, strict=True)]
        chunks = _chunks(work, ranges, aligned, filters, table, console)
        by_source = [[c for c, (of, _, _) in zip(chunks, ranges, strict=True) if of == n] for n in range(len(sources))]
        for source, mine in zip(sources, by_source, strict=True):
            source.conclude(chunk.notes["evidence"] for chunk in mine)
        kept = _Kept(table, by_source, filters, configs, data.minimum_cells)
        features = cell_features(len(axis), max(chunk.notes["largest"] for chunk in chunks))
        plan = plan_shards(kept.rows.length, features)
        _shards(work, plan, kept.rows, chunks, features, memory // WRITING_SHARE, console)
        if state.is_main_process:
            meta = {
                "schema": SCHEMA,
                "fingerprint": fingerprint_,
                "cells": len(kept.rows.rank),
                "simulated": simulated,
                "order_seed": seed,
                "genes": axis.tolist(),
                "control": configs[0].control,
                **{f"{name}s" if name != "batch" else "batches": kept.names[name] for name in LABELS},
                "batch_source": kept.batch_source,
                "groups": kept.groups,
                "sources": [_provenance(aligned, number, config, kept) for number, config in enumerate(configs)],
                "relabelled_controls": sorted({c.control for c in configs if c.control != configs[0].control}),
            }
            _assemble(final, work.path, len(plan), features, meta)
            work.remove()
        state.wait_for_everyone()


def _chunks(
    work: WorkFolder,
    ranges: list[tuple[int, int, int]],
    aligned: Sources,
    filters: list[SourceFilters],
    table: CellTable,
    console: Console,
) -> list[Chunk]:
    """First pass: a chunk of each range of rows of each source."""

    def path(number: int) -> Path:
        return work.path / f"chunk-{number:06d}.safetensors"

    def make(number: int, progress: Callable[[int], None]) -> None:
        of, start, stop = ranges[number]
        cells = aligned.opened[of].read(start, stop)
        positions, counts, dropped = filters[of].sufficient(cells)
        further, whole = filters[of].measure(positions, counts)
        rank = table.rank[table.first[of] + positions]
        notes = {"evidence": cells.evidence.state(), "dropped": dropped}
        write_chunk(
            path(number), rank, _on_axis(counts, aligned.columns[of], len(aligned.axis)), further, whole, notes
        )

    sizes = [stop - start for _, start, stop in ranges]
    # A matrix by column is turned as a whole before it is read: by one process, not by all.
    turns = [of if aligned.opened[of].by_column else number for number, (of, _, _) in enumerate(ranges)]
    work.share(sizes, path, make, "cells", "prepare: read", console, turns)
    return [Chunk(path(number)) for number in range(len(ranges))]


def _on_axis(counts: sp.csr_matrix, columns: np.ndarray, width: int) -> sp.csr_matrix:
    """The same cells with their genes renamed to axis positions; genes that are not on the axis are left out."""
    mapped, data, indptr = columns[counts.indices], counts.data, counts.indptr
    if (columns < 0).any():
        on = mapped >= 0
        indptr = np.concatenate([[0], np.cumsum(on)])[indptr]
        mapped, data = mapped[on], data[on]
    moved = sp.csr_matrix((data, mapped, indptr), shape=(counts.shape[0], width))
    moved.sort_indices()
    return moved


class _Kept:
    """The cells that stay, and what became of the others.

    Attributes:
        rows: in the order of the store.
        names: label -> those that stay.
        batch_source: number of the source of each batch.
        groups: [context, batch, perturbation, start, end] of each run of rows.
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
        for number, left_out in enumerate(np.bincount(table.source[cell[few]], minlength=len(configs)).tolist()):
            if left_out:
                self.dropped[number][f"perturbation with fewer than {minimum_cells} cells"] = left_out
        cell = cell[~few]
        if not len(cell):
            raise UserError("no cell is left after the filters (keep, quality, minimum_cells); loosen them")
        rank = table.rank[cell]
        if not length[rank].any():
            raise UserError("no gene of any source is on the gene axis with a count above zero")
        self.names, codes = {}, {}
        for label in LABELS:
            present, codes[label] = np.unique(table.codes[label][cell], return_inverse=True)
            codes[label] = codes[label].astype(np.int32)
            self.names[label] = table.names[label][present].tolist()
        self.rows = Rows(rank, length[rank].astype(np.int64), depth[rank], codes, table.barcode[cell])
        _, first = np.unique(codes["batch"], return_index=True)
        self.batch_source = table.source[cell[first]].tolist()
        self.groups = _groups(np.column_stack([codes[label] for label in LABELS]))

    @staticmethod
    def _few(table: CellTable, cell: np.ndarray, configs: list[SourceConfig], minimum_cells: int) -> np.ndarray:
        """Which cells ([n] places in the table) are of a perturbation with too few of them in its context."""
        context, perturbation = (table.codes[label][cell].astype(np.int64) for label in ("context", "perturbation"))
        _, group, size = np.unique(
            context * len(table.names["perturbation"]) + perturbation, return_inverse=True, return_counts=True
        )
        return (size[group] < minimum_cells) & (table.names["perturbation"][perturbation] != configs[0].control)


def _groups(codes: np.ndarray) -> list[list[int]]:
    """[context, batch, perturbation, start, end] of each run of rows ([N, 3])."""
    starts = np.flatnonzero(np.r_[True, (np.diff(codes, axis=0) != 0).any(axis=1)])
    return np.column_stack([codes[starts], starts, np.r_[starts[1:], len(codes)]]).tolist()


def _shards(
    work: WorkFolder,
    plan: list[list[tuple[int, int]]],
    rows: Rows,
    chunks: list[Chunk],
    features: datasets.Features,
    memory: int,
    console: Console,
) -> None:
    """Second pass: the shards, each with a note beside it of what it is."""

    def path(number: int) -> Path:
        return work.path / f"{shard_name(number, len(plan))}.json"

    def make(number: int, progress: Callable[[int], None]) -> None:
        partial = work.path / f"{shard_name(number, len(plan))}.partial"
        start = plan[number][0][0]

        def batches() -> Any:
            for (_, stop), batch in zip(
                plan[number], shard_batches(plan[number], rows, chunks, features, memory), strict=True
            ):
                yield batch
                progress(stop - start)

        note = write_shard(partial, features, batches())
        final = partial.with_suffix("")
        partial.replace(final)
        write_json(path(number), note | {"file": final.name})

    sizes = [batches[-1][1] - batches[0][0] for batches in plan]
    work.share(sizes, path, make, "cells", "prepare: write", console)


def _assemble(final: Path, work: Path, shards: int, features: datasets.Features, meta: dict[str, Any]) -> None:
    """Move the shards where they belong and describe them."""
    names = [shard_name(number, shards) for number in range(shards)]
    with whole_folder(final) as partial:
        notes = [read_json(work / f"{name}.json") for name in names]
        for name in names:
            # The note goes first: a shard without one is written again.
            (work / f"{name}.json").unlink()
            (work / name).rename(partial / name)
        write_description(partial, features, names, meta["fingerprint"], "", "")
        write_json(partial / "store.json", meta | {"shards": notes})


def _provenance(aligned: Sources, number: int, config: SourceConfig, kept: _Kept) -> dict[str, Any]:
    source = aligned.opened[number]
    return {
        "name": source.name,
        "file": Path(config.path).name,
        "sha256": source.sha256,
        "matrix": config.matrix,
        "values": source.evidence,
        "genes": len(source.genes),
        "genes_off_axis": int((aligned.columns[number] < 0).sum()),
        "missing_genes": np.flatnonzero(~aligned.measured[number]).tolist(),
        "cells": len(source.cells),
        "dropped": source.dropped | kept.dropped[number],
        "repairs": source.repairs,
        "knock_down": kept.knock_down[number],
    }
