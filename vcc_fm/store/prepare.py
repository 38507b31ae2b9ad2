"""From checked sources to a cell store: align the genes, order the cells, write them, in bounded memory.

Two passes, and both are shared by all processes that take part. The first reads each source once, range of rows by
range of rows, and leaves chunks on disk: verified counts, sorted by the place that a cell will have. The second puts
the shards together from them. What is done survives an interruption. Memory holds the labels of all cells, and of the
counts as much as ``data.memory_mb`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import scipy.sparse as sp
from accelerate import PartialState
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import fingerprint, read_json, whole_file, whole_folder, write_json
from vcc_fm.ground.paths import expand
from vcc_fm.ground.work import WorkFolder, remove_work
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.sources.alignment import Sources, open_sources
from vcc_fm.sources.anndata_file import changed_at
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.quality import depth_of
from vcc_fm.sources.values import COUNT_LIMIT
from vcc_fm.store.arrow import write_description, write_shard
from vcc_fm.store.cell_table import CellTable, cell_table
from vcc_fm.store.cells import SCHEMA, CellStore, cell_features
from vcc_fm.store.checksums import written
from vcc_fm.store.chunks import Chunk, write_chunk
from vcc_fm.store.description import LABELS, shard_name, write_store_json
from vcc_fm.store.filters import SourceFilters
from vcc_fm.store.kept import Kept
from vcc_fm.store.merge import Ranges, Rows, plan_shards, shard_batches

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
    if _is_whole(final, fingerprint_):
        # A run that was stopped after the last rename: its pieces are all that is left to do.
        _clear(final, state)
        return
    memory = data.memory_mb << 20
    # Should a source change between two runs, nothing that was read before may be mixed with it.
    changed = [changed_at(expand(config.path)) for config in configs]
    work = WorkFolder(final, fingerprint([fingerprint_, changed]), state)
    _forget_damaged(work)
    with open_sources(data, configs, work.path) as aligned:
        table = cell_table(aligned.opened, configs, seed)
        filters = [SourceFilters(source, config) for source, config in zip(aligned.opened, configs, strict=True)]
        checksums = _checksums(work, aligned.opened, console)
        by_source = _chunks(work, memory // READING_BYTES, aligned, filters, table, console)
        kept = Kept(table, by_source, filters, configs, data.minimum_cells)
        everything = [chunk for chunks in by_source for chunk in chunks]
        features = cell_features(len(aligned.axis), max(chunk.notes["largest"] for chunk in everything), kept.names)
        plan = plan_shards(kept.rows.length, features)
        _shards(work, plan, kept.rows, everything, features, memory // WRITING_SHARE, console)
        if state.is_main_process:
            meta = {
                "schema": SCHEMA,
                "fingerprint": fingerprint_,
                "cells": len(kept.rows.rank),
                "simulated": simulated,
                "order_seed": seed,
                "genes": aligned.axis.tolist(),
                "control": configs[0].control,
                **{names: kept.names[label] for label, names in LABELS.items()},
                "batch_source": kept.batch_source,
                "sources": _provenance(aligned, configs, kept, checksums),
                "relabelled_controls": sorted({c.control for c in configs if c.control != configs[0].control}),
            }
            _assemble(final, work.path, len(plan), features, meta)
    _clear(final, state)


def _is_whole(final: Path, fingerprint_: str) -> bool:
    """Whether a store of this fingerprint is there, undamaged."""
    try:
        return CellStore(final).fingerprint == fingerprint_
    except UserError:
        return False


def _clear(final: Path, state: PartialState) -> None:
    """Take the pieces away, when all are past them."""
    state.wait_for_everyone()
    if state.is_main_process:
        remove_work(final)


def _forget_damaged(work: WorkFolder) -> None:
    """Remove chunks and notes of shards that a failing machine left damaged: they are made again."""
    if work.state.is_main_process:
        for path in work.path.glob("chunk-*.safetensors"):
            if not Chunk.is_whole(path):
                path.unlink()
        for note in work.path.glob("data-*.json"):
            shard = note.with_suffix("")
            if not shard.exists() or shard.stat().st_size != read_json(note)["bytes"]:
                note.unlink()
    work.state.wait_for_everyone()


def _ranges(work: WorkFolder, sources: list[AnnDataSource], values: int) -> list[Ranges]:
    """Ranges of rows of each source: those of the chunks that are there, and what is left, cut to ``values`` each."""
    there = sorted(_rows_of(path) for path in work.path.glob("chunk-*.safetensors"))
    work.state.wait_for_everyone()  # all have looked before anybody adds to them
    found: list[Ranges] = []
    for number, source in enumerate(sources):
        ranges: Ranges = []
        at = 0
        for of, start, stop in [*there, (number, source.rows_of_file, source.rows_of_file)]:
            if of == number:
                ranges += source.ranges(values, at, start)
                ranges += [(start, stop)] if stop > start else []
                at = stop
        found.append(ranges)
    return found


def _chunk_path(work: Path, source: int, start: int, stop: int) -> Path:
    return work / f"chunk-{source:04d}-{start:012d}-{stop:012d}.safetensors"


def _rows_of(path: Path) -> tuple[int, int, int]:
    """Source, first row, and row after the last of a chunk, by its name."""
    source, start, stop = (int(part) for part in path.stem.split("-")[1:])
    return source, start, stop


def _checksums(work: WorkFolder, sources: list[AnnDataSource], console: Console) -> list[str]:
    """SHA-256 of each source, each in a file."""
    files = [work.path / f"source-{number:04d}.json" for number in range(len(sources))]

    def make(number: int, progress: Callable[[int], None]) -> None:
        write_json(files[number], sources[number].sha256)

    sizes = [max(1, source.bytes >> 20) for source in sources]
    work.share(sizes, lambda number: files[number], make, "MB", "prepare: checksum", console)
    return [read_json(file, str) for file in files]


def _chunks(
    work: WorkFolder,
    values: int,
    aligned: Sources,
    filters: list[SourceFilters],
    table: CellTable,
    console: Console,
) -> list[list[Chunk]]:
    """First pass: chunks of at most so many stored values of each source, and what they say of it together."""
    ranges = _ranges(work, aligned.opened, values)
    pieces = [(of, start, stop) for of, rows in enumerate(ranges) for start, stop in rows]

    def make(number: int, progress: Callable[[int], None]) -> None:
        of, start, stop = pieces[number]
        cells = aligned.opened[of].read(start, stop)
        positions, counts, dropped = filters[of].sufficient(cells)
        further, whole = filters[of].measure(positions, counts)
        counts = _on_axis(counts, aligned.columns[of], len(aligned.axis))
        depth = depth_of(counts)
        _check_depth(depth, aligned.opened[of], positions)
        rank = table.rank[table.first[of] + positions]
        path = _chunk_path(work.path, *pieces[number])
        write_chunk(path, rank, counts, depth, further, whole, cells.evidence, dropped)

    sizes = [stop - start for _, start, stop in pieces]
    work.share(sizes, lambda n: _chunk_path(work.path, *pieces[n]), make, "cells", "prepare: read", console)
    chunks = [[Chunk(_chunk_path(work.path, of, *rows)) for rows in mine] for of, mine in enumerate(ranges)]
    for source, mine in zip(aligned.opened, chunks, strict=True):
        source.conclude(chunk.evidence for chunk in mine)
    return chunks


def _check_depth(depth: np.ndarray, source: AnnDataSource, positions: np.ndarray) -> None:
    if depth.max(initial=0) >= COUNT_LIMIT:
        barcode = source.cells["barcode"].iloc[positions[depth.argmax()]]
        raise UserError(
            f"source {source.name!r}: the counts of cell {barcode!r} add up to {depth.max():,}; no cell is so deep"
        )


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
        final, start = work.path / shard_name(number, len(plan)), plan[number][0][0]

        def batches() -> Any:
            for (_, stop), batch in zip(
                plan[number], shard_batches(plan[number], rows, chunks, features, memory), strict=True
            ):
                yield batch
                progress(stop - start)

        with whole_file(final) as partial:
            note = write_shard(partial, features, batches())
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
        write_store_json(partial, meta | {"shards": notes})
    written(final, notes)


def _provenance(
    aligned: Sources, configs: list[SourceConfig], kept: Kept, checksums: list[str]
) -> list[dict[str, Any]]:
    """What ``store.json`` says of each source."""
    return [
        {
            "name": source.name,
            "file": Path(config.path).name,
            "sha256": checksums[number],
            "matrix": config.matrix,
            "values": source.evidence,
            "genes": len(source.genes),
            "genes_off_axis": int((aligned.columns[number] < 0).sum()),
            "missing_genes": np.flatnonzero(~aligned.measured[number]).tolist(),
            "cells": len(source.cells),
            "dropped": source.dropped | dict(sorted(kept.dropped[number].items())),
            "repairs": source.repairs,
            "knock_down": kept.knock_down[number],
        }
        for number, (source, config) in enumerate(zip(aligned.opened, configs, strict=True))
    ]
