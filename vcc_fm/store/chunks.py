"""Chunks: the counts of some cells of a source on disk, sorted by rank, until the store is written from all of them.

A chunk is a safetensors file of its own, whole or absent. It holds, for cells in order of rank, their ranks, depths
and barcodes, where their values begin, and their genes and counts, one cell after the other, in two bytes each
wherever they fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vcc_fm.ground.files import whole_file
from vcc_fm.sources.evidence import Evidence
from vcc_fm.store.cells import NARROW


class Cells(NamedTuple):
    """What is known of the cells of a chunk beside their counts. Arrays are [m]."""

    rank: np.ndarray
    """int32 or int64, distinct; rising in a chunk that was read."""
    depth: np.ndarray
    """int32, UMI over the gene axis."""
    barcode: np.ndarray
    """str (object); empty in a chunk that was read."""
    further: dict[str, np.ndarray]
    """[m, ...] what else is kept of each cell, by name."""


def write_chunk(
    path: Path,
    cells: Cells,
    counts: sp.csr_matrix,
    whole: dict[str, np.ndarray],
    evidence: Evidence,
    dropped: dict[str, int],
    owner: str,
) -> None:
    """Write a chunk.

    Args:
        path: of the file.
        cells: of the chunk.
        counts: [m, G] int32 CSR with sorted indices, on the gene axis.
        whole: arrays of the chunk as a whole, by name.
        evidence: for the counts of these cells, and of those that were not proved.
        dropped: reason -> number of cells that a filter left out.
        owner: fingerprint of everything that the chunk depends on.
    """
    order = np.argsort(cells.rank)
    counts = counts[order]
    wide = counts.data.max(initial=0) >= NARROW
    ends, text = _text(cells.barcode[order])
    arrays = {
        "rank": cells.rank[order],
        "start": counts.indptr.astype(np.int64),
        "depth": cells.depth[order],
        "text": text,
        "text_start": ends,
        "genes": counts.indices.astype(np.uint16 if counts.shape[1] <= NARROW else np.int32),
        "counts": counts.data.astype(np.int32 if wide else np.uint16),
    }
    arrays |= {f"further.{name}": np.ascontiguousarray(values[order]) for name, values in cells.further.items()}
    arrays |= {f"whole.{name}": np.ascontiguousarray(values) for name, values in whole.items()}
    # One number a cell is too much for the header of the file.
    state = evidence.state()
    arrays |= {f"evidence.{name}": value for name, value in state.items() if isinstance(value, np.ndarray)}
    said = {name: value for name, value in state.items() if not isinstance(value, np.ndarray)}
    notes = {"evidence": said, "dropped": dropped, "largest": int(counts.data.max(initial=0))}
    with whole_file(path) as partial:
        save_file(arrays, partial, metadata={"notes": json.dumps(notes), "owner": owner})


def _text(barcodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each barcode begins [m + 1] int64, and their UTF-8 bytes one after the other."""
    encoded = [barcode.encode() for barcode in barcodes]
    ends = np.concatenate([[0], np.cumsum([len(one) for one in encoded], dtype=np.int64)])
    return ends.astype(np.int64), np.frombuffer(b"".join(encoded), np.uint8)


class ChunkIndex(NamedTuple):
    """All of a chunk but its counts and barcodes."""

    cells: Cells
    length: np.ndarray
    """[m] int64, number of values."""
    whole: dict[str, np.ndarray]
    """Arrays of the chunk as a whole."""
    notes: dict[str, Any]
    """``dropped``: reason -> number of cells; ``largest``: count; ``evidence``: its state."""


class Chunk:
    """A chunk on disk; it is open only while something is read of it."""

    def __init__(self, path: Path):
        self._path = path

    @staticmethod
    def is_whole(path: Path, owner: str) -> bool:
        """Whether a file is as long as its header says, has one, and belongs to ``owner``."""
        try:
            with safe_open(path, framework="numpy") as file:
                return bool(file.metadata()["owner"] == owner)
        except SafetensorError:
            return False

    def rank(self) -> np.ndarray:
        """[m] int32 or int64, rising."""
        with safe_open(self._path, framework="numpy") as file:
            return np.asarray(file.get_tensor("rank"))

    def index(self) -> ChunkIndex:
        """Read the index."""
        with safe_open(self._path, framework="numpy") as file:
            notes = json.loads(file.metadata()["notes"])
            rank, depth, start = (file.get_tensor(name) for name in ("rank", "depth", "start"))
            further, whole, evidence = (
                {name.removeprefix(kind): file.get_tensor(name) for name in file.keys() if name.startswith(kind)}
                for kind in ("further.", "whole.", "evidence.")
            )
        notes["evidence"] |= evidence
        return ChunkIndex(Cells(rank, depth, np.empty(0, object), further), np.diff(start), whole, notes)

    def place(
        self, first: int, last: int, low: int, row_of: np.ndarray, offsets: np.ndarray, values: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, pa.StringArray]:
        """Put the values of some cells where they belong.

        Args:
            first: cell of the chunk.
            last: cell after the last; the ranks of those between may begin before ``low`` and end after ``row_of``.
            low: rank of the first entry of ``row_of``.
            row_of: [ranks] int64, row of the target of each rank; -1: it is left out.
            offsets: [rows + 1] int64, where in the target each row's values begin.
            values: targets of the genes and of the counts.

        Returns:
            Rows [k] that were filled, and their barcodes.
        """
        with safe_open(self._path, framework="numpy") as file:
            rank = file.get_slice("rank")[first:last].astype(np.int64) - low
            first, last = (first + int(place) for place in np.searchsorted(rank, [0, len(row_of)]))
            row = row_of[rank[(rank >= 0) & (rank < len(row_of))]]
            if not len(row):
                return row, pa.array([], pa.string())
            start = file.get_slice("start")[first : last + 1]
            if start[-1] > start[0]:
                where = np.where(row >= 0, offsets[row], -1)
                for name, target in values.items():
                    _place(file.get_slice(name)[int(start[0]) : int(start[-1])], start - start[0], where, target)
            ends = file.get_slice("text_start")[first : last + 1]
            text = file.get_slice("text")[int(ends[0]) : int(ends[-1])] if ends[-1] > ends[0] else b""
        buffers = (pa.py_buffer(part) for part in ((ends - ends[0]).astype(np.int32), text))
        barcodes = pa.StringArray.from_buffers(len(row), *buffers)
        return row[row >= 0], barcodes.filter(pa.array(row >= 0))


@numba.njit(cache=True, nogil=True)
def _place(values, start, place, target):  # type: ignore[no-untyped-def]
    """Copy list i of ``values`` (``start`` [m + 1]) to ``target[place[i]:]``, unless that is negative."""
    for i in range(place.shape[0]):
        n = start[i + 1] - start[i]
        if place[i] >= 0:
            source, into = values[start[i] : start[i + 1]], target[place[i] : place[i] + n]
            for k in range(n):
                into[k] = source[k]
