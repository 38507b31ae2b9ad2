"""A Hugging Face dataset folder with memory-mapped Arrow files.

``datasets.load_from_disk`` opens such a folder like any other. It is written here, record batch by record batch,
because a batch reader wants chunks of a known size and buffers that it can address directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vcc_fm.ground.errors import reading
from vcc_fm.ground.files import sha256_file, write_json
from vcc_fm.store.checksums import check_files
from vcc_fm.store.description import damaged, remade, shard_name

DATA_FILE = shard_name(0, 1)
"""The file of a store that has one."""


def write_shard(path: Path, features: datasets.Features, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
    """Write record batches (schema of ``features``) as one Arrow file.

    Returns:
        What ``store.json`` says of it: file, rows, bytes, sha256.
    """
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += len(batch)
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_description(
    folder: Path, features: datasets.Features, files: list[str], fingerprint: str, licence: str, citation: str
) -> None:
    """Write what makes a dataset folder of Arrow files."""
    datasets.DatasetInfo(features=features, license=licence, citation=citation).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


@dataclass(frozen=True)
class Lists:
    """A column of lists, zero-copy, in the files where it lies."""

    values: list[np.ndarray]
    """The numbers in which the lists of each file lie. Half-precision ones come as their bits, uint16, since compiled
    code does not know them."""
    start: np.ndarray
    """[N] int64, where each row's list begins in ``values`` of its file."""
    length: np.ndarray
    """[N] int64; no list reaches over the end of its array."""
    width: int
    """Length of every list, where the column's type says it; -1 elsewhere."""


class MappedTable:
    """The record batches of a dataset folder, mapped into memory; what is read of them is checked first."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]], types: dict[str, tuple[pa.DataType, ...]]):
        """Map the files that ``store.json`` lists.

        Args:
            folder: with the files.
            shards: as ``store.json`` lists them.
            types: column -> the types it may have; there may be further columns.

        Raises:
            UserError: a file is missing, is another than was written, or holds other columns.
        """
        check_files(folder, shards)
        self._paths = [folder / shard["file"] for shard in shards]
        self.schema: pa.Schema = None  # of every file
        self._files: list[pa.Buffer] = []
        self._batches: list[list[pa.RecordBatch]] = []
        for path, shard in zip(self._paths, shards, strict=True):
            with reading(path, "Arrow", remade(path)):
                mapped = pa.memory_map(str(path))
                stream = pa.ipc.open_stream(mapped)
                batches = list(stream)
                for batch in batches:
                    batch.validate()
                names = stream.schema.names
                mapped.seek(0)
                self._files.append(mapped.read_buffer())
            if self.schema not in (None, stream.schema):
                raise damaged(path, "has other columns than the file before")
            self.schema = stream.schema
            for name, known in types.items():
                if names.count(name) != 1 or self.schema.field(name).type not in known:
                    raise damaged(path, f"has no column {name} as this program writes it")
            if sum(map(len, batches)) != shard["rows"]:
                raise damaged(path, f"{sum(map(len, batches))} rows, but store.json says {shard['rows']}")
            self._batches.append(batches)
        self._places = np.empty(0, np.int64)
        self._first = np.cumsum([0, *(shard["rows"] for shard in shards)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def by_file(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Which of ``rows`` [n] lie in which file: number of the file, and places in ``rows`` [m] int64, rising.

        Compiled code compares the rows with the bounds of the table (``IndexError``): here that would take longer than
        to read them.
        """
        if len(self._files) == 1:
            places = self._places  # another thread may put a shorter one there
            if len(places) < len(rows):
                places = self._places = np.arange(len(rows))
            return [(0, places[: len(rows)])]
        file = np.searchsorted(self._first[1:-1], rows, side="right")
        order = np.argsort(file, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(file[order])) + 1)
        return [(int(file[part[0]]), part) for part in parts if len(part)]

    def lists(self, name: str) -> Lists:
        """A column of lists.

        Raises:
            UserError: its lists do not lie in the file, or not as this program writes them.
        """
        kind = self.schema.field(name).type
        number = np.dtype(kind.value_type.to_pandas_dtype())
        values, starts, lengths = [], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for path, file, batches in zip(self._paths, self._files, self._batches, strict=True):
            array = np.frombuffer(file, number, file.size // number.itemsize)
            values.append(array.view(np.uint16) if number == np.float16 else array)
            for batch in filter(len, batches):
                column = batch.column(name)
                if pa.types.is_fixed_size_list(kind):
                    ends = np.arange(len(column) + 1) * kind.list_size
                else:
                    ends = column.offsets.to_numpy().astype(np.int64)
                inside, length = column.values, np.diff(ends)
                begin = inside.buffers()[1].address - file.address if len(inside) else 0
                lies = 0 <= begin <= begin + len(inside) * number.itemsize <= file.size and not begin % number.itemsize
                fits = 0 <= ends[0] and ends[-1] <= len(inside) and length.min(initial=0) >= 0
                if column.null_count or inside.null_count or not (lies and fits):
                    raise damaged(path, f"the lists of column {name} do not lie where this program writes them")
                starts.append(begin // number.itemsize + ends[:-1])
                lengths.append(length)
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        return Lists(values, np.concatenate(starts), np.concatenate(lengths), width)

    def column(self, name: str) -> np.ndarray:
        """A whole flat column as one NumPy array (copied, since it spans record batches).

        Raises:
            UserError: it has gaps, or text that is none.
        """
        parts = []
        for path, batches in zip(self._paths, self._batches, strict=True):
            for batch in batches:
                column = batch.column(name)
                with reading(f"{path}: column {name}", "Arrow", remade(path)):
                    column.validate(full=True)
                if column.null_count:
                    raise damaged(path, f"column {name} has gaps")
                parts.append(column.to_numpy(zero_copy_only=False))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class Store:
    """What cell stores and embedding stores have in common.

    Attributes:
        folder: of the store.
        meta: the content of ``store.json``.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self.folder, self.meta = folder, meta

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        """Another process opens the folder anew: addresses of mapped files mean nothing there."""
        return type(self), (self.folder,)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the store was made from."""
        return self.meta["fingerprint"]
