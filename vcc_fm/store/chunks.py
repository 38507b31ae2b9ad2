"""Chunks: the counts of some cells of a source on disk, sorted by rank, until the store is written from all of them.

A chunk is a safetensors file of its own, whole or absent. It holds, for cells in order of rank, their ranks, numbers
of values and depths, and their genes and counts, one cell after the other, in two bytes each wherever they fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vcc_fm.ground.files import whole_file
from vcc_fm.sources.evidence import Evidence
from vcc_fm.store.cells import NARROW


def write_chunk(
    path: Path,
    rank: np.ndarray,
    counts: sp.csr_matrix,
    depth: np.ndarray,
    further: dict[str, np.ndarray],
    whole: dict[str, np.ndarray],
    evidence: Evidence,
    dropped: dict[str, int],
) -> None:
    """Write a chunk.

    Args:
        path: of the file.
        rank: [m] int64, distinct.
        counts: [m, G] int32 CSR with sorted indices, on the gene axis.
        depth: [m] int64, sum of each cell's counts.
        further: [m, ...] what else is kept of each cell, by name.
        whole: arrays of the chunk as a whole, by name.
        evidence: for the counts of these cells, and of those that were not proved.
        dropped: reason -> number of cells that a filter left out.
    """
    order = np.argsort(rank)
    counts = counts[order]
    wide = counts.data.max(initial=0) >= NARROW
    arrays = {
        "rank": rank[order],
        "length": np.diff(counts.indptr).astype(np.int32),
        "depth": depth[order],
        "genes": counts.indices.astype(np.uint16 if counts.shape[1] <= NARROW else np.int32),
        "counts": counts.data.astype(np.int32 if wide else np.uint16),
    }
    arrays |= {f"further.{name}": np.ascontiguousarray(values[order]) for name, values in further.items()}
    arrays |= {f"whole.{name}": np.ascontiguousarray(values) for name, values in whole.items()}
    # One number a cell is too much for the header of the file.
    state = evidence.state()
    arrays |= {f"evidence.{name}": value for name, value in state.items() if isinstance(value, np.ndarray)}
    said = {name: value for name, value in state.items() if not isinstance(value, np.ndarray)}
    notes = {"evidence": said, "dropped": dropped, "largest": int(counts.data.max(initial=0))}
    with whole_file(path) as partial:
        save_file(arrays, partial, metadata={"notes": json.dumps(notes)})


class Chunk:
    """A chunk on disk; opening reads its index, no counts.

    Attributes:
        rank: [m] int64, rising.
        length: [m] int32, number of values.
        depth: [m] int64, UMI over the gene axis.
        further: [m, ...] arrays by name.
        whole: arrays of the chunk as a whole.
        notes: ``dropped``: reason -> number of cells; ``largest``: count.
        evidence: its state.
    """

    def __init__(self, path: Path):
        self._path = path
        with safe_open(path, framework="numpy") as file:
            self.notes: dict[str, Any] = json.loads(file.metadata()["notes"])
            self.rank, self.length, self.depth = (file.get_tensor(name) for name in ("rank", "length", "depth"))
            self._start = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])
            self.further, self.whole, evidence = (
                {name.removeprefix(kind): file.get_tensor(name) for name in file.keys() if name.startswith(kind)}
                for kind in ("further.", "whole.", "evidence.")
            )
        self.evidence: dict[str, Any] = self.notes["evidence"] | evidence

    @staticmethod
    def is_whole(path: Path) -> bool:
        """Whether a file is as long as its header says, and has one."""
        try:
            with safe_open(path, framework="numpy"):
                return True
        except SafetensorError:
            return False

    def place(self, low: int, high: int, place: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> None:
        """Put the values of the cells of some ranks where they belong.

        Args:
            low: first rank.
            high: rank after the last.
            place: [high - low] int64, where in the target each cell's values begin; -1: it is left out.
            genes: target of the genes.
            counts: target of the counts.
        """
        a, b = np.searchsorted(self.rank, [low, high])
        begin, end = int(self._start[a]), int(self._start[b])
        if begin == end:
            return
        where = place[self.rank[a:b] - low]
        with safe_open(self._path, framework="numpy") as file:
            for name, target in (("genes", genes), ("counts", counts)):
                _place(file.get_slice(name)[begin:end], self._start[a : b + 1] - begin, where, target)


@numba.njit(cache=True, nogil=True)
def _place(values, start, place, target):  # type: ignore[no-untyped-def]
    """Copy list i of ``values`` (``start`` [m + 1]) to ``target[place[i]:]``, unless that is negative."""
    for i in range(place.shape[0]):
        n = start[i + 1] - start[i]
        if place[i] >= 0:
            source, into = values[start[i] : start[i + 1]], target[place[i] : place[i] + n]
            for k in range(n):
                into[k] = source[k]
