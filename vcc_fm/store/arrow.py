"""A Hugging Face dataset folder with one memory-mapped Arrow file.

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
from vcc_fm.store.folder import write_json

DATA_FILE = "data-00000-of-00001.arrow"


def write_dataset(
    folder: Path,
    features: datasets.Features,
    batches: Iterable[pa.RecordBatch],
    fingerprint: str,
    licence: str,
    citation: str,
) -> int:
    """Write record batches (schema of ``features``) as a dataset folder; return the size of the data file, bytes."""
    path = folder / DATA_FILE
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    datasets.DatasetInfo(features=features, license=licence, citation=citation).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": DATA_FILE}],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
    return path.stat().st_size


class MappedTable:
    """The record batches of a dataset folder, mapped into memory, none of it read yet."""

    def __init__(self, folder: Path, expected_bytes: int):
        """Map the data file.

        Raises:
            UserError: the file is missing, or its size is not the one in ``store.json``.
        """
        path = folder / DATA_FILE
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise UserError(f"{path}: missing; remove {folder} and run the stage that makes it again") from None
        if found != expected_bytes:
            raise UserError(
                f"{path}: {found} bytes, but store.json says {expected_bytes}; it was cut short or replaced: "
                f"remove {folder} and run the stage that makes it again"
            )
        self._map = pa.memory_map(str(path))
        stream = pa.ipc.open_stream(self._map)
        self.schema = stream.schema
        self.batches = list(stream)
        self._map.seek(0)
        whole = found - found % 4
        self.words = np.frombuffer(self._map.read_buffer(whole), np.int32)
        """The whole file as int32 words [bytes // 4], zero-copy."""
        self._base = self.words.__array_interface__["data"][0]

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of lists: the whole file as an array of their numbers, zero-copy, and where each list begins in it.

        Half-precision numbers come as their bits, uint16, since compiled code does not know them.
        """
        kind = self.schema.field(name).type
        number = np.dtype(kind.value_type.to_pandas_dtype())
        starts = [np.empty(0, np.int64)]
        for batch in self.batches:
            column = batch.column(name)
            first = (column.values.buffers()[1].address - self._base) // number.itemsize
            if pa.types.is_fixed_size_list(kind):
                starts.append(first + np.arange(len(column)) * kind.list_size)
            else:
                starts.append(first + column.offsets.to_numpy()[:-1].astype(np.int64))
        return self.words.view(np.uint16 if number == np.float16 else number), np.concatenate(starts)

    def column(self, name: str) -> np.ndarray:
        """A whole flat column as one NumPy array (copied, since it spans record batches)."""
        return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches])
