"""Arrays of a zarr store: whether all their chunks are there, and reading them by ranges of rows.

A zarr array reads as its fill value, mostly 0, wherever a chunk file is missing, and no list says which chunks there
should be: a store that lost a part opens and reads like a whole one. A writer may leave a chunk out on purpose when it
holds nothing but the fill value (zarr 3 does by default, zarr 2 did not), so that a missing chunk proves nothing by
itself; nor can it be told to be harmless. Arrays that hold values are therefore read only where every chunk, or every
shard, is in the store. Inside of a shard, which is one file, chunks that its index marks as left out are all fill
value by the word of their writer, and are read so.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, ZipStore

from vcc_fm.ground.errors import UserError

_KEPT_BYTES = 1 << 28
_CHUNK = re.compile(r"(?:c[/.])?(\d+(?:[/.]\d+)*)")
"""Key of a chunk in its array: ``c/0/1`` in format 3; ``0.1`` or ``0/1`` in format 2."""


class Rows(Protocol):
    """An array that is read by ranges of its first axis: of HDF5, of zarr, or mapped into memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""

    @property
    def dtype(self) -> np.dtype:
        """Type of its values."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """The values of some rows."""


class ChunkReader:
    """A zarr array read by ranges of rows, each chunk decoded once where ranges follow each other.

    zarr decodes every chunk that a range touches and keeps none; ranges smaller than a chunk would decode it again and
    again. The last chunk of a range is kept for the next one, unless its rows fill more than 256 MiB.
    """

    def __init__(self, array: zarr.Array) -> None:
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype = array.dtype
        self._array = array
        self._step = array.chunks[0]
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        self._keeps = self._step * row <= _KEPT_BYTES
        self._kept: tuple[int, np.ndarray] = (0, np.empty((0, *self.shape[1:]), self.dtype))

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """The values of the rows from ``rows.start`` to ``rows.stop``, which lie in the array."""
        low, high = rows.start, rows.stop
        if not self._keeps:
            return self._array[low:high]
        first, kept = self._kept
        start = low
        parts = []
        if first <= low < first + len(kept):
            parts.append(kept[low - first : high - first])
            start = min(high, first + len(kept))
        if start < high:
            aligned = start // self._step * self._step
            end = min(-(-high // self._step) * self._step, self.shape[0])
            values = self._array[aligned:end]
            parts.append(values[start - aligned : high - aligned])
            last = (end - 1) // self._step * self._step
            self._kept = (last, values[last - aligned :].copy())  # a view would keep the whole range in memory
        return np.concatenate(parts) if parts else kept[:0]


def check_chunks(array: zarr.Array, where: str) -> None:
    """Refuse an array that misses chunks (or shards, where it has them), or has one that Blosc would read too far.

    Other codecs refuse what is cut short when it is read; a zip has checksums, and so has the index of a shard.

    Args:
        array: in an open store.
        where: source, file and array, for messages.

    Raises:
        UserError: at least one is not in the store, or is cut short.
    """
    unit = array.shards or array.chunks
    grid = [-(-size // step) for size, step in zip(array.shape, unit, strict=True)]
    needed = math.prod(grid)
    present = {
        place: name
        for place, name in _stored(array)
        if len(place) == len(grid) and all(at < end for at, end in zip(place, grid, strict=True))
    }
    if len(present) < needed:
        raise UserError(
            f"{where}: {needed - len(present)} of {needed} {'shards' if array.shards else 'chunks'} are not in the "
            "store: lost, or left out by a writer as all zero, which cannot be told apart.\nGet it again; where it is "
            "known to be whole, write it anew with anndata, as h5ad, or as zarr after "
            "zarr.config.set({'array.write_empty_chunks': True})"
        )
    blosc = bool(array.compressors) and isinstance(array.compressors[-1], BloscCodec | numcodecs.Blosc)
    if blosc and not array.shards and isinstance(array.store, LocalStore):
        folder = array.store.root / array.path
        cut = sum(_is_cut(folder / name) for name in present.values())
        if cut:
            raise UserError(f"{where}: {cut} of {needed} chunks are cut short or damaged; get it again")


def check_table(table: zarr.Group, columns: set[str], where: str) -> None:
    """Refuse a table of an AnnData store whose index, or one of ``columns``, misses chunks; others are not looked at.

    Two parts of a column are let pass: codes of a category that is the only one (a zero is what they hold, or a
    missing label), and the mask of a nullable column (which is empty wherever nothing is missing).

    Args:
        table: obs or var, as anndata writes it.
        columns: names of columns whose values count; those that the table does not have are no matter here.
        where: source, file and table, for messages.

    Raises:
        UserError: as :func:`check_chunks`.
    """
    for name in sorted({str(table.attrs["_index"]), *columns}):
        if name in table:
            _check_column(table[name], f"{where}/{name}")


def _check_column(stored: zarr.Array | zarr.Group, where: str) -> None:
    if isinstance(stored, zarr.Array):
        check_chunks(stored, where)
        return
    for name, part in stored.members():
        if name != "mask" and not (name == "codes" and _length(stored["categories"]) == 1):
            _check_column(part, f"{where}/{name}")


def _length(stored: zarr.Array | zarr.Group) -> int:
    """Entries of an array, or of a nullable one."""
    return (stored if isinstance(stored, zarr.Array) else stored["values"]).shape[0]


def _stored(array: zarr.Array) -> Iterator[tuple[tuple[int, ...], str]]:
    """Chunks (or shards) in the store: place in the grid, and name. zarr's own count takes their number squared."""
    for name in _files(array):
        key = _CHUNK.fullmatch(name)
        if key is not None:
            yield tuple(int(number) for number in re.split("[/.]", key[1])), name


def _files(array: zarr.Array) -> Iterator[str]:
    """Paths of the files of an array, relative to it."""
    store = array.store
    if isinstance(store, ZipStore):
        inside = f"{array.path}/"
        with zipfile.ZipFile(store.path) as archive:
            yield from (name.removeprefix(inside) for name in archive.namelist() if name.startswith(inside))
    else:
        assert isinstance(store, LocalStore)
        top = store.root / array.path
        for folder, _, names in os.walk(top):
            below = Path(folder).relative_to(top)
            yield from ((below / name).as_posix() for name in names)


def _is_cut(chunk: Path) -> bool:
    """Whether a Blosc chunk has another size than its header says (bytes 12 to 15, little-endian, header included)."""
    with chunk.open("rb") as file:
        header = file.read(16)
        return int.from_bytes(header[12:16], "little") != os.fstat(file.fileno()).st_size
