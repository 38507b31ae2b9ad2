"""Rows out of a matrix of an h5ad file or a zarr store (CSR, CSC or dense), a block of cells at a time."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import h5py
import numpy as np
import zarr
from filelock import FileLock

from vcc_fm.ground.arrays import BLOCK, made_once
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import whole_file
from vcc_fm.sources.turned import row_lengths, turn, turned_arrays
from vcc_fm.sources.zarr_array import ChunkReader, Rows, check_chunks

Stored: TypeAlias = h5py.Dataset | h5py.Group | zarr.Array | zarr.Group

_ENTRIES = 1 << 22  # stored values of a CSC matrix that are sorted at a time
_SAMPLE_ENTRIES = 4096  # stored values read of each column of a CSC sample


class Block(NamedTuple):
    """Some cells of a matrix, compressed by row, in the stored precision (float16 too, which scipy does not take)."""

    data: np.ndarray
    """[n] stored values."""
    indices: np.ndarray
    """[n] column of each value."""
    indptr: np.ndarray
    """[cells + 1] int64, where each cell starts."""

    def take(self, rows: np.ndarray) -> Block:
        """The cells at ``rows`` ([k] int64)."""
        if len(rows) == len(self.indptr) - 1:
            return self
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        return Block(self.data[entries], self.indices[entries], indptr)


class DenseMatrix:
    """A matrix stored as a plain array."""

    def __init__(self, stored: Rows, where: str) -> None:
        self.shape = stored.shape
        self._stored = stored
        self._where = where
        _check_kind(stored.dtype, where)

    def block(self, start: int, stop: int) -> Block:
        """Non-zero values of the rows from ``start`` to ``stop``."""
        with reading(self._where, "AnnData"):
            dense = _native(self._stored[start:stop])
        rows, columns = np.nonzero(dense)
        return Block(dense[rows, columns], columns, _starts(rows, stop - start))

    def ranges(self, values: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Rows ``start`` to ``stop`` in ranges of at most so many values, zeros among them, or of one row."""
        rows, stop = max(1, values // max(self.shape[1], 1)), self.shape[0] if stop is None else stop
        return [(first, min(first + rows, stop)) for first in range(start, stop, rows)]

    def sample(self, rows: np.ndarray) -> Block:
        """The cells at ``rows`` ([k] int64)."""
        return _join([self.block(row, row + 1) for row in rows.tolist()])


class CsrMatrix:
    """A matrix compressed by row, in the file or in memory-mapped arrays."""

    def __init__(self, data: Rows, indices: Rows, indptr: np.ndarray, shape: tuple[int, ...], where: str) -> None:
        self.shape = shape
        self._data, self._indices, self.indptr, self._where = data, indices, indptr, where

    def block(self, start: int, stop: int) -> Block:
        """Stored values of the rows from ``start`` to ``stop``."""
        low, high = int(self.indptr[start]), int(self.indptr[stop])
        with reading(self._where, "AnnData"):
            data, indices = _native(self._data[low:high]), self._indices[low:high]
        _check_range(indices, self.shape[1], self._where)
        return Block(data, indices, self.indptr[start : stop + 1] - low)

    def ranges(self, values: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Rows ``start`` to ``stop`` in ranges of at most so many stored values, or of one row."""
        return _ranges(self.indptr, values, start, self.shape[0] if stop is None else stop)

    def sample(self, rows: np.ndarray) -> Block:
        """The cells at ``rows`` ([k] int64)."""
        return _join([self.block(row, row + 1) for row in rows.tolist()])


class CscMatrix:
    """A matrix compressed by column; the first block turns it by row, in temporary files."""

    def __init__(
        self,
        data: Rows,
        indices: Rows,
        indptr: np.ndarray,
        shape: tuple[int, ...],
        where: str,
        stack: ExitStack,
        folder: Path | None,
    ) -> None:
        self.shape = shape
        self._data, self._indices, self._indptr, self._where = data, indices, indptr, where
        self._stack, self._folder = stack, folder

    def block(self, start: int, stop: int) -> Block:
        """Stored values of the rows from ``start`` to ``stop``."""
        return self._turned.block(start, stop)

    def ranges(self, values: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Rows ``start`` to ``stop`` in ranges of at most so many stored values, or of one row."""
        return self._turned.ranges(values, start, stop)

    def sample(self, rows: np.ndarray) -> Block:
        """Some of the values of the cells at ``rows`` ([k] int64), from up to 64 columns: turning costs too much."""
        filled = np.flatnonzero(np.diff(self._indptr))
        columns = filled[np.unique(np.linspace(0, len(filled) - 1, 64).astype(int))] if len(filled) else filled
        position = np.full(self.shape[0], -1)
        position[rows] = np.arange(len(rows))
        parts = []
        for column in columns.tolist():
            low, high = self._indptr[column], min(self._indptr[column + 1], self._indptr[column] + _SAMPLE_ENTRIES)
            data, cells = self._entries(int(low), int(high))
            kept = position[cells] >= 0
            parts.append((data[kept], position[cells[kept]], np.full(kept.sum(), column)))
        if not parts:
            return Block(np.zeros(0), np.zeros(0, int), np.zeros(len(rows) + 1, int))
        data, cells, of = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(cells, kind="stable")
        return Block(data[order], of[order], _starts(cells, len(rows)))

    def _entries(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        with reading(self._where, "AnnData"):
            data, cells = _native(self._data[low:high]), self._indices[low:high]
        _check_range(cells, self.shape[0], self._where)
        return data, cells

    @cached_property
    def _turned(self) -> CsrMatrix:
        folder = self._folder
        if folder is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vcc-fm-")))
        folder.mkdir(parents=True, exist_ok=True)
        # Of several processes that share a folder, one turns and the others wait.
        with FileLock(folder / "lock"):
            if not (folder / "starts.npy").exists():
                self._turn(folder)
        starts = np.load(folder / "starts.npy", mmap_mode="r").view(np.ndarray)
        data, columns = turned_arrays(folder, self._data.dtype.newbyteorder("="), self._data.shape[0])
        return CsrMatrix(data, columns, starts, self.shape, self._where)

    def _turn(self, folder: Path) -> None:
        n_values = self._data.shape[0]
        # Values, columns, and rows while it is being turned.
        needed, free = n_values * (self._data.dtype.itemsize + 12), shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{self._where}: stored by column; turning it by row takes {needed / 1e9:.1f} GB in {folder.parent}, "
                f"which has {free / 1e9:.1f} GB; "
                + ("set TMPDIR to a larger disk" if self._folder is None else "make room there")
                + ", or store the matrix as CSR"
            )
        lengths = row_lengths(self._entries, n_values, self.shape[0], _ENTRIES)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        dtype = self._data.dtype.newbyteorder("=")
        buckets = _ranges(starts, _ENTRIES, 0, self.shape[0])
        turn(self._entries, self._indptr, dtype, starts, buckets, _ENTRIES, folder)
        with whole_file(folder / "starts.npy") as partial, partial.open("wb") as file:  # says that the turn is done
            np.save(file, starts)


Matrix = DenseMatrix | CsrMatrix | CscMatrix


def open_matrix(stored: Stored, where: str, stack: ExitStack, folder: Path | None = None) -> Matrix:
    """Open a matrix for reading by row.

    Args:
        stored: the matrix in an open file, as anndata writes it.
        where: source, file and matrix, for messages.
        stack: closes the temporary files.
        folder: where a matrix by column is turned by row, and kept; None: in temporary files.

    Raises:
        UserError: the encoding is none of CSR, CSC and dense, the values are no real numbers, the index arrays
            contradict each other, or chunks of a zarr array are missing.
    """
    with reading(where, "AnnData"):
        return _open(stored, where, stack, folder)


def _open(stored: Stored, where: str, stack: ExitStack, folder: Path | None) -> Matrix:
    if isinstance(stored, h5py.Dataset | zarr.Array):
        return DenseMatrix(_by_rows(stored, where), where)
    encoding = str(stored.attrs.get("encoding-type", ""))
    if encoding not in {"csr_matrix", "csc_matrix"}:
        raise UserError(f"{where}: encoding {encoding!r} is not read; store the matrix as CSR, CSC or dense")
    shape = tuple(int(n) for n in stored.attrs.get("shape", ()))
    data, indices = (_by_rows(stored[part], f"{where}/{part}") for part in ("data", "indices"))
    # Without values all of indptr is 0, which a writer may leave out; with some, rows at its start would be empty.
    if isinstance(stored, zarr.Group) and data.shape[0]:
        check_chunks(stored["indptr"], f"{where}/indptr")
    if len(shape) != 2:
        raise UserError(f"{where}: cut short or damaged (no shape of the sparse matrix); get it again")
    _check_kind(data.dtype, where)
    by_row = encoding.startswith("csr")
    arrays, _ = made_once(
        folder / "indptr.safetensors" if folder is not None and by_row else None,
        lambda: ({"indptr": _checked_indptr(stored["indptr"], shape[0 if by_row else 1], data, indices, where)}, {}),
    )
    if by_row:
        return CsrMatrix(data, indices, arrays["indptr"], shape, where)
    return CscMatrix(data, indices, arrays["indptr"], shape, where, stack, folder)


def _by_rows(stored: h5py.Dataset | zarr.Array, where: str) -> Rows:
    """An array for reading by ranges of rows; one of zarr has all its chunks."""
    if isinstance(stored, h5py.Dataset):
        return stored
    check_chunks(stored, where)
    return ChunkReader(stored)


def whole_cells(matrix: Matrix, rows: np.ndarray) -> Block:
    """All values of the cells at ``rows`` ([k] int64); a matrix by column is turned for it."""
    return _join([matrix.block(row, row + 1) for row in rows.tolist()])


def _check_kind(dtype: np.dtype, where: str) -> None:
    if dtype.kind not in "iuf":
        raise UserError(f"{where}: holds values of type {dtype}; integers or floating-point numbers are expected")


def _checked_indptr(
    stored: h5py.Dataset | zarr.Array, major: int, data: Rows, indices: Rows, where: str
) -> np.ndarray:
    """Where each of ``major`` rows or columns begins, [major + 1] int64."""
    read = stored if isinstance(stored, h5py.Dataset) else ChunkReader(stored)
    entries, n_values, n_indices = read.shape[0], data.shape[0], indices.shape[0]
    if entries != major + 1:
        raise UserError(f"{where}: cut short or damaged (indptr has {entries} entries, {major + 1} are expected)")
    indptr = np.empty(entries, np.int64)
    blocks = [slice(start, min(start + BLOCK, entries)) for start in range(0, entries, BLOCK)]
    for block in blocks:
        indptr[block] = read[block]
    falls = any((np.diff(indptr[max(block.start - 1, 0) : block.stop]) < 0).any() for block in blocks)
    if indptr[0] != 0 or falls or not indptr[-1] == n_values == n_indices:
        raise UserError(
            f"{where}: cut short or damaged (indptr does not rise from 0 to the number of values: it ends at "
            f"{indptr[-1]}, with {n_values} values and {n_indices} indices)"
        )
    return indptr


def _check_range(indices: np.ndarray, limit: int, where: str) -> None:
    if indices.size and (indices.min() < 0 or indices.max() >= limit):
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise UserError(f"{where}: cut short or damaged (index {wrong} is outside of 0 to {limit - 1})")


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _ranges(indptr: np.ndarray, values: int, start: int, stop: int) -> list[tuple[int, int]]:
    ranges = []
    while start < stop:
        end = int(np.searchsorted(indptr, indptr[start] + values, side="right")) - 1
        ranges.append((start, min(max(end, start + 1), stop)))
        start = ranges[-1][1]
    return ranges


def _starts(rows: np.ndarray, n_rows: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])


def _join(blocks: list[Block]) -> Block:
    lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
    return Block(
        np.concatenate([block.data for block in blocks]),
        np.concatenate([block.indices for block in blocks]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
