"""A Hugging Face dataset folder with memory-mapped Arrow files.

``datasets.load_from_disk`` opens such a folder like any other. It is written here, record batch by record batch,
because a batch reader wants chunks of a known size and buffers that it can address directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vcc_fm.errors import UserError
from vcc_fm.store.folder import sha256_file, write_json


def shard_name(number: int, shards: int) -> str:
    """File name of a shard, as ``datasets`` gives it."""
    return f"data-{number:05d}-of-{shards:05d}.arrow"


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


class _Addresses:
    """Memory from one address to another as an array of int32 words; NumPy reads ``__array_interface__``."""

    def __init__(self, begin: int, end: int, maps: list[pa.MemoryMappedFile]):
        self._maps = maps  # the array keeps this object, and so the files stay mapped
        self.__array_interface__ = {
            "data": (begin, True),
            "shape": ((end - begin) // 4,),
            "typestr": "<i4",
            "version": 3,
        }


class MappedTable:
    """The record batches of a dataset folder, mapped into memory, none of it read yet."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]]):
        """Map the files that ``store.json`` lists.

        Raises:
            UserError: a file is missing, or its size is not the one in ``store.json``.
        """
        maps, spans = [], []
        self.batches: list[pa.RecordBatch] = []
        for shard in shards:
            path = folder / shard["file"]
            _check_size(path, shard["bytes"])
            mapped = pa.memory_map(str(path))
            stream = pa.ipc.open_stream(mapped)
            self.schema = stream.schema
            self.batches += stream
            mapped.seek(0)
            buffer = mapped.read_buffer()
            maps.append(mapped)
            spans.append((buffer.address, buffer.address + buffer.size))
        self._base = min(begin for begin, _ in spans)
        # What lies between two files is not ours: rows are looked up by their place, and no place is there.
        self._words = np.asarray(_Addresses(self._base, max(end for _, end in spans), maps))

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of lists: one array in which all its numbers lie, zero-copy, and where each list begins in it.

        The array spans all files; only the lists may be read. Half-precision numbers come as their bits, uint16, since
        compiled code does not know them.
        """
        kind = self.schema.field(name).type
        number = np.dtype(kind.value_type.to_pandas_dtype())
        starts = [np.empty(0, np.int64)]
        for batch in self.batches:
            column = batch.column(name)
            values = column.values.buffers()[1]
            first = (values.address - self._base) // number.itemsize if values.size else 0
            if pa.types.is_fixed_size_list(kind):
                starts.append(first + np.arange(len(column)) * kind.list_size)
            else:
                starts.append(first + column.offsets.to_numpy()[:-1].astype(np.int64))
        return self._words.view(np.uint16 if number == np.float16 else number), np.concatenate(starts)

    def column(self, name: str) -> np.ndarray:
        """A whole flat column as one NumPy array (copied, since it spans record batches)."""
        return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches])


def _check_size(path: Path, expected: int) -> None:
    again = f"remove {path.parent} and run the stage that makes it again"
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {again}") from None
    if found != expected:
        raise UserError(
            f"{path}: {found} bytes, but store.json says {expected}; it was cut short or replaced: {again}"
        )
