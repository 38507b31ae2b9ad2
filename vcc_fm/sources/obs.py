"""The table of cells of a file, read column by column and range of rows by range of rows.

A table of ten million cells is gigabytes of Python strings. Here a column is its distinct values, and a narrow integer
for each cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem

from vcc_fm.ground.arrays import narrow
from vcc_fm.ground.errors import reading
from vcc_fm.sources.anndata_file import File, check_columns, read_table
from vcc_fm.sources.zarr_array import ChunkReader, Rows

RANGE = 1 << 16
"""Rows that are read at a time."""
_NULLABLE: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "nullable-integer": lambda values, mask: pd.arrays.IntegerArray(values, mask),
    "nullable-boolean": lambda values, mask: pd.arrays.BooleanArray(values, mask),
    "nullable-string-array": lambda values, mask: pd.array(
        np.where(mask, np.array(pd.NA, object), values.astype(object)), dtype="string"
    ),
}
Range: TypeAlias = Callable[[int, int], Any]
"""The values from one row to another, as pandas takes them."""


class Column(NamedTuple):
    """A column of the table of cells.

    Attributes:
        name: of the column.
        codes: [N] int8, int16 or int32, place in ``objects``; -1 where nothing is stored.
        objects: [L] the distinct values as Python has them, in the order in which they come.
        dtype: of these.
        told: type of the column, for messages.
    """

    name: str
    codes: np.ndarray
    objects: list[Any]
    dtype: Any
    told: str

    @property
    def values(self) -> pd.Series:
        """[L] the distinct values."""
        return pd.Series(self.objects, dtype=self.dtype)

    def of_cells(self, of_values: np.ndarray, missing: bool) -> np.ndarray:
        """[N] bool from [L] bool; ``missing`` where nothing is stored."""
        return np.append(of_values, missing)[self.codes]


class Obs(Protocol):
    """A table of cells."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""

    def __len__(self) -> int:
        """Number of rows."""

    def read(self, column: str, start: int, stop: int) -> pd.Series:
        """A column from one row to another."""

    def barcodes(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] str (object), the index from one row to another."""


class FrameObs:
    """A table that is in memory."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self.columns = list(frame.columns)

    def __len__(self) -> int:
        return len(self._frame)

    def read(self, column: str, start: int, stop: int) -> pd.Series:
        """See :class:`Obs`."""
        return self._frame[column].iloc[start:stop]

    def barcodes(self, start: int, stop: int) -> np.ndarray:
        """See :class:`Obs`."""
        return self._frame.index[start:stop].astype(str).to_numpy(object)


class FileObs:
    """A table in an open file, as anndata has written it since 0.7.5."""

    def __init__(self, stored: h5py.Group | zarr.Group, where: str) -> None:
        self._stored, self._where = stored, f"{where}, obs"
        self.columns = [str(name) for name in stored.attrs["column-order"]]
        self._index = str(stored.attrs["_index"])
        self._ranges: dict[str, Range] = {}
        index = stored[self._index]
        self._rows = int((index if isinstance(index, h5py.Dataset | zarr.Array) else _part(index)).shape[0])

    def __len__(self) -> int:
        return self._rows

    def read(self, column: str, start: int, stop: int) -> pd.Series:
        """See :class:`Obs`; a UserError where the file is damaged."""
        with reading(self._where, "AnnData"):
            if column not in self._ranges:
                self._ranges[column] = _range_of(self._stored[column])
            return pd.Series(self._ranges[column](start, stop), name=column)

    def barcodes(self, start: int, stop: int) -> np.ndarray:
        """See :class:`Obs`; a UserError where the file is damaged."""
        return pd.Index(self.read(self._index, start, stop)).astype(str).to_numpy(object)


def open_obs(file: File, columns: set[str], where: str) -> Obs:
    """The table of cells of an open file.

    Args:
        file: open for reading, and as long as the table is used.
        columns: those whose values will be used, which a zarr store must hold whole.
        where: source and file, for messages.

    Raises:
        UserError: it is damaged, or written by a very old anndata.
    """
    stored = check_columns(file, "obs", columns, where)
    spec = stored.attrs.get("encoding-type"), stored.attrs.get("encoding-version")
    if isinstance(stored, h5py.Group | zarr.Group) and spec == ("dataframe", "0.2.0"):
        with reading(f"{where}, obs", "AnnData"):
            return FileObs(stored, where)
    return FrameObs(read_table(file, "obs", columns, where))


def ranges(rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``RANGE`` rows, which cover all."""
    return ((start, min(start + RANGE, rows)) for start in range(0, rows, RANGE))


def read_column(obs: Obs, name: str) -> Column:
    """A column as its distinct values and a number for each cell."""
    codes = np.empty(len(obs), np.int32)
    known: dict[Any, int] = {}
    piece = obs.read(name, 0, 0)
    for start, stop in ranges(len(obs)):
        piece = obs.read(name, start, stop)
        places, values = pd.factorize(piece)
        of = [known.setdefault(value, len(known)) for value in values.tolist()]
        codes[start:stop] = np.array([*of, -1], np.int32)[places]
    dtype = piece.dtype.categories.dtype if isinstance(piece.dtype, pd.CategoricalDtype) else piece.dtype
    return Column(name, codes.astype(narrow(len(known))), list(known), dtype, str(piece.dtype))


def _range_of(stored: h5py.Dataset | h5py.Group | zarr.Array | zarr.Group) -> Range:
    """How a column is read by ranges; one of an unusual encoding is read at once."""
    encoding = stored.attrs.get("encoding-type")
    if isinstance(stored, h5py.Dataset | zarr.Array) and encoding in ("array", "string-array"):
        rows = _rows(stored, encoding == "string-array")
        return lambda start, stop: rows[start:stop]
    if encoding == "categorical":
        codes = _range_of(stored["codes"])
        dtype = pd.CategoricalDtype(read_elem(stored["categories"]), bool(stored.attrs["ordered"]))
        return lambda start, stop: pd.Categorical.from_codes(codes(start, stop), dtype=dtype)
    if encoding in _NULLABLE:
        values, mask, make = _range_of(stored["values"]), _range_of(stored["mask"]), _NULLABLE[str(encoding)]
        return lambda start, stop: make(values(start, stop), mask(start, stop))
    whole = read_elem(stored)
    return lambda start, stop: whole[start:stop]


def _rows(stored: h5py.Dataset | zarr.Array, text: bool) -> Rows:
    if isinstance(stored, zarr.Array):
        return ChunkReader(stored)
    return stored.asstr() if text else stored


def _part(stored: h5py.Group | zarr.Group) -> h5py.Dataset | zarr.Array:
    """What has one entry a row."""
    return stored["codes"] if "codes" in stored else stored["values"]
