"""A matrix compressed by column turned by row, on disk, in memory that does not grow with it.

Two passes over the values. The first deals them out to buckets, which are ranges of rows and lie one after another in
the files to be; the second sorts each bucket. Both write runs, not single values: a disk is not good at these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Entries = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""Values and rows of the entries from one place to another."""


class FileArray:
    """A flat array in a file, read a slice at a time; it is never mapped, so that what was read does not stay."""

    def __init__(self, path: Path, dtype: np.dtype, size: int):
        """Take a file of ``size`` numbers; it is made where there is none."""
        self.path, self.dtype, self.shape = path, dtype, (size,)
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(size * dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice) -> np.ndarray:
        start, stop, _ = key.indices(len(self))
        return np.fromfile(self.path, self.dtype, max(stop - start, 0), offset=start * self.dtype.itemsize)

    def write(self, runs: list[tuple[int, np.ndarray]]) -> None:
        """Write arrays at places."""
        with self.path.open("r+b") as file:
            for place, values in runs:
                file.seek(place * self.dtype.itemsize)
                file.write(values.astype(self.dtype, copy=False).tobytes())


def row_lengths(entries: Entries, size: int, rows: int, portion: int) -> np.ndarray:
    """Number of entries in each row, [rows] int64."""
    lengths = np.zeros(rows, np.int64)
    for low in range(0, size, portion):
        lengths += np.bincount(entries(low, min(low + portion, size))[1], minlength=rows)
    return lengths


def turn(
    entries: Entries,
    indptr: np.ndarray,
    dtype: np.dtype,
    by_row: np.ndarray,
    buckets: list[tuple[int, int]],
    portion: int,
    folder: Path,
) -> None:
    """Turn a matrix into the arrays of :func:`turned_arrays`.

    Args:
        entries: of the matrix, column after column.
        indptr: [columns + 1] int64, where each column begins.
        dtype: of the values.
        by_row: [rows + 1] int64, where each row shall begin.
        buckets: ranges of rows, which cover all.
        portion: entries dealt out at a time.
        folder: for the files.
    """
    size = int(indptr[-1])
    data, columns = turned_arrays(folder, dtype, size)
    rows = FileArray(folder / "rows", np.dtype(np.int64), size)
    first_row = np.array([start for start, _ in buckets], np.int64)
    free = by_row[first_row]
    for low in range(0, size, portion):
        high = min(low + portion, size)
        values, row = entries(low, high)
        column = np.searchsorted(indptr, np.arange(low, high), side="right") - 1
        bucket = np.searchsorted(first_row, row, side="right") - 1
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=len(buckets)))
        starts = np.concatenate([[0], ends[:-1]])
        filled = np.flatnonzero(ends > starts).tolist()
        for file, numbers in ((data, values[order]), (columns, column[order]), (rows, row[order])):
            file.write([(int(free[b]), numbers[starts[b] : ends[b]]) for b in filled])
        free += ends - starts
    for start, stop in buckets:
        part = slice(int(by_row[start]), int(by_row[stop]))
        order = np.argsort(rows[part], kind="stable")
        for file in (data, columns):
            file.write([(part.start, file[part][order])])
    rows.path.unlink()


def turned_arrays(folder: Path, dtype: np.dtype, size: int) -> tuple[FileArray, FileArray]:
    """Values and columns of a turned matrix, row after row, columns rising in each."""
    return FileArray(folder / "data", dtype, size), FileArray(folder / "columns", np.dtype(np.int32), size)
