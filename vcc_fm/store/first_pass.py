"""The first pass over the sources: each is read once, range of rows by range of rows, into chunks on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from rich.console import Console

from vcc_fm.ground.arrays import let_go
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, write_json
from vcc_fm.ground.work import WorkFolder
from vcc_fm.sources.alignment import Sources
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.quality import depth_of
from vcc_fm.sources.values import COUNT_LIMIT
from vcc_fm.store.cell_table import CellTable
from vcc_fm.store.chunks import Cells, Chunk, write_chunk
from vcc_fm.store.filters import SourceFilters
from vcc_fm.store.merge import Ranges

KEPT = "kept.safetensors"
"""What was decided from all chunks."""
CELL_VALUES = 4
"""Stored values that take as much memory as what is known of a cell besides."""


def forget_damaged(work: WorkFolder, numbers: Sequence[int]) -> None:
    """Remove chunks of some sources that a failing machine left damaged, or a run of another recipe: made again."""
    if work.state.is_main_process:
        for path in work.path.glob("chunk-*.safetensors"):
            if _rows_of(path)[0] in numbers and not Chunk.is_whole(path, work.fingerprint):
                path.unlink()
                (work.path / KEPT).unlink(missing_ok=True)
    work.state.wait_for_everyone()


def make_checksums(work: WorkFolder, sources: list[AnnDataSource], numbers: Sequence[int], console: Console) -> None:
    """SHA-256 of some sources, each in a file."""

    def make(piece: int, progress: Callable[[int], None]) -> None:
        write_json(_checksum_path(work, numbers[piece]), sources[numbers[piece]].sha256)

    sizes = [max(1, sources[number].bytes >> 20) for number in numbers]
    work.share(sizes, lambda n: _checksum_path(work, numbers[n]), make, "MB", "prepare: checksum", console)


def checksum(work: WorkFolder, number: int) -> str:
    """SHA-256 of a source, once it is made."""
    return str(read_json(_checksum_path(work, number), str))


def _checksum_path(work: WorkFolder, number: int) -> Path:
    return work.path / f"source-{number:04d}.json"


def make_chunks(
    work: WorkFolder,
    values: int,
    numbers: Sequence[int],
    aligned: Sources,
    filters: list[SourceFilters],
    table: CellTable,
    console: Console,
) -> list[list[Chunk]]:
    """Chunks of at most so many stored values of some sources; those that are there stay as they are.

    Returns:
        Per source, its chunks in the order of the file.

    Raises:
        UserError: a value is no count, or a cell is too deep.
    """
    ranges = _ranges(work, [aligned.opened[number] for number in numbers], numbers, values)
    pieces = [(of, start, stop) for of, rows in zip(numbers, ranges, strict=True) for start, stop in rows]

    def make(number: int, progress: Callable[[int], None]) -> None:
        of, start, stop = pieces[number]
        source = aligned.opened[of]
        cells = source.read(start, stop)
        positions, counts, dropped = filters[of].sufficient(cells)
        further, whole = filters[of].measure(positions, counts)
        counts = _on_axis(counts, aligned.columns[of], len(aligned.axis))
        depth = depth_of(counts)
        _check_depth(depth, source, positions)
        known = Cells(
            table.rank[table.first[of] + positions],
            depth.astype(np.int32),
            _barcodes(source, positions, f"{source.name}:" if len(aligned.opened) > 1 else ""),
            further,
        )
        path = _chunk_path(work.path, *pieces[number])
        write_chunk(path, known, counts, whole, cells.evidence, dropped, work.fingerprint)

    sizes = [stop - start for _, start, stop in pieces]
    work.share(sizes, lambda n: _chunk_path(work.path, *pieces[n]), make, "cells", "prepare: read", console)
    let_go(table.rank)
    for source in aligned.opened:
        source.let_go()
    return [
        [Chunk(_chunk_path(work.path, of, *rows)) for rows in mine] for of, mine in zip(numbers, ranges, strict=True)
    ]


def _ranges(work: WorkFolder, sources: list[AnnDataSource], numbers: Sequence[int], values: int) -> list[Ranges]:
    """Ranges of rows of each source: those of the chunks that are there, and what is left, cut to ``values`` each."""
    there = sorted(_rows_of(path) for path in work.path.glob("chunk-*.safetensors"))
    work.state.wait_for_everyone()  # all have looked before anybody adds to them
    rows = max(1, values // CELL_VALUES)
    found: list[Ranges] = []
    for number, source in zip(numbers, sources, strict=True):
        ranges: Ranges = []
        at = 0
        for of, start, stop in [*there, (number, source.rows_of_file, source.rows_of_file)]:
            if of == number:
                for first, last in source.ranges(values, at, start):
                    ranges += [(low, min(low + rows, last)) for low in range(first, last, rows)]
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


def _barcodes(source: AnnDataSource, positions: np.ndarray, prefix: str) -> np.ndarray:
    """Barcodes of cells at rising positions, behind the name of their source where there are several."""
    if not len(positions):
        return np.empty(0, object)
    first = int(positions[0])
    return prefix + source.labels.barcodes(first, int(positions[-1]) + 1)[positions - first]


def _check_depth(depth: np.ndarray, source: AnnDataSource, positions: np.ndarray) -> None:
    if depth.max(initial=0) >= COUNT_LIMIT:
        barcode = source.labels.barcode(positions[depth.argmax()])
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
