"""An h5ad of integer counts, written a piece at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset, write_elem

from vcc_fm.ground.files import whole_file

BLOCK = 1 << 20
"""Values that are written at a time; pieces are gathered until there are as many."""
CHUNK = 1 << 16
"""Values of a compressed chunk of the file."""
ROWS = 4096
"""Cells that are read at a time when files are joined."""


class CountsFile:
    """Appends cells to an h5ad (CSR) that appears under its name when it is whole.

    Memory holds a block of counts, and the labels and offsets of all cells: what a piece costs does not depend on how
    many came before it.
    """

    def __init__(
        self, path: Path, genes: list[str], uns: dict[str, Any], values: type = np.int32, compressed: bool = True
    ):
        """Open a file for writing.

        Args:
            path: of the file.
            genes: the gene axis.
            uns: says what the cells are.
            values: type of the values.
            compressed: whether the file is; not where something compresses it as a whole.
        """
        self._genes, self._uns = genes, uns
        self._packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1} if compressed else {}
        options = {"shape": (0,), "maxshape": (None,), "chunks": (CHUNK,), **self._packed}
        types = {"data": values, "indices": np.int32}
        # A disk that refuses the first bytes leaves nothing either.
        with ExitStack() as stack:
            self._file = h5py.File(stack.enter_context(whole_file(path)), "w")
            stack.callback(self._file.close)
            matrix = self._file.create_group("X")
            self._arrays = {name: matrix.create_dataset(name, dtype=types[name], **options) for name in types}
            self._stack = stack.pop_all()
        self._waiting: list[sp.csr_matrix] = []
        self._lengths: list[np.ndarray] = []
        self._labels: list[pd.DataFrame] = []

    def append(self, counts: sp.csr_matrix, labels: pd.DataFrame) -> None:
        """Add cells: ``counts`` [n, G], ``labels`` [n] rows of obs columns."""
        self._waiting.append(counts)
        self._lengths.append(np.diff(counts.indptr))
        self._labels.append(labels)
        if sum(piece.nnz for piece in self._waiting) >= BLOCK:
            self._write()

    def _write(self) -> None:
        """Write the pieces that wait."""
        for name, array in self._arrays.items():
            values = np.concatenate([np.zeros(0, array.dtype), *(getattr(piece, name) for piece in self._waiting)])
            array.resize(len(array) + len(values), axis=0)
            if len(values):
                array[-len(values) :] = values
        self._waiting = []

    def __enter__(self) -> CountsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._stack.callback(self._finish)
        self._stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        """Write what belongs to all cells together."""
        self._write()
        # Offsets of 64 bits: a large file has more values than 32 bits can address.
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([[], *self._lengths]), dtype=np.int64)])
        self._file["X"].create_dataset("indptr", data=offsets, **self._packed)
        shape = (len(offsets) - 1, len(self._genes))
        self._file["X"].attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        obs = pd.concat(self._labels, ignore_index=True)
        obs.index = obs.index.astype(str)
        for column in obs.columns:
            obs[column] = obs[column].astype("category")
        write_elem(self._file, "obs", obs)
        write_elem(self._file, "var", pd.DataFrame(index=pd.Index(self._genes, name="symbol")))
        write_elem(self._file, "uns", self._uns)
        for name in ("obsm", "varm", "obsp", "varp", "layers"):
            write_elem(self._file, name, {})
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def join_counts_files(parts: list[Path], path: Path) -> None:
    """Write the cells of ``parts``, in their order, into one file; all have the same genes and ``uns``."""
    with h5py.File(parts[0]) as first:
        genes, uns = read_elem(first["var"]).index.tolist(), read_elem(first["uns"])
    with CountsFile(path, genes, uns) as whole:
        for part in parts:
            with h5py.File(part) as file:
                counts, labels = sparse_dataset(file["X"]), read_elem(file["obs"])
                for start in range(0, len(labels), ROWS):
                    whole.append(counts[start : start + ROWS], labels.iloc[start : start + ROWS])
