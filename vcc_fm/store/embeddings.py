"""The embedding store: one vector a key (a cell's barcode, a protein's symbol), plus ``store.json``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numba
import numpy as np
import pyarrow as pa

from vcc_fm.errors import UserError
from vcc_fm.store.arrow import DATA_FILE, MappedTable, write_description, write_shard
from vcc_fm.store.folder import read_json, write_json

SCHEMA = 2


def write_embeddings(
    folder: Path,
    key: str,
    chunks: Iterable[tuple[Any, ...]],
    width: int,
    fingerprint: str,
    meta: dict[str, Any],
    further: datasets.Features | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write (keys [n] str, vectors [n, width] float32, further columns) chunks into ``folder``.

    The caller renames it.

    Args:
        folder: where the dataset and ``store.json`` go.
        key: name of the key column, ``barcode`` or ``symbol``.
        chunks: keys, vectors (NaN where a key has none), then one Arrow array for each of ``further``, in the order
            in which they shall stand.
        width: length of a vector.
        fingerprint: of everything the vectors depend on.
        meta: encoder, checkpoint, parameters, ``licence`` and ``citation``, kept in ``store.json``.
        further: what else a row holds.
        dtype: of the stored vectors.
    """
    # datasets 5 stores a fixed-size list as such, so that the vectors lie in one buffer without offsets.
    features = datasets.Features(
        {
            key: datasets.Value("string"),
            "embedding": datasets.List(datasets.Value(dtype), length=width),
            **(further or {}),
        }
    )
    rows = 0
    missing: list[int] = []

    def batches() -> Iterable[pa.RecordBatch]:
        nonlocal rows
        for keys, vectors, *columns in chunks:
            missing.extend((rows + np.flatnonzero(np.isnan(vectors[:, 0]))).tolist())
            rows += len(keys)
            flat = pa.array(np.ascontiguousarray(vectors, dtype).ravel())
            first = [pa.array(keys, pa.string()), pa.FixedSizeListArray.from_arrays(flat, width)]
            yield pa.RecordBatch.from_arrays([*first, *columns], schema=features.arrow_schema)

    shard = write_shard(folder / DATA_FILE, features, batches())
    write_description(folder, features, [DATA_FILE], fingerprint, meta["licence"], meta["citation"])
    described = {
        "schema": SCHEMA,
        "key": key,
        "rows": rows,
        "width": width,
        "shards": [shard],
        "missing": missing,
    }
    write_json(folder / "store.json", described | {"fingerprint": fingerprint} | meta)


@numba.njit(cache=True, nogil=True)
def _take(values, start, rows, out):  # type: ignore[no-untyped-def]
    """Copy the vectors of ``rows`` into ``out`` [n, width]."""
    for i in range(rows.shape[0]):
        target = out[i]
        source = values[start[rows[i]] : start[rows[i]] + target.shape[0]]
        for k in range(target.shape[0]):
            target[k] = source[k]


class EmbeddingStore:
    """Read access to an embedding store; opening reads the keys and no vector.

    Attributes:
        meta: the content of ``store.json``.
        keys: [N] str.
    """

    def __init__(self, folder: Path):
        """Open ``folder``.

        Raises:
            UserError: the folder is incomplete, of another schema, or its data file has another size than recorded.
        """
        self.folder = folder
        self.meta: dict[str, Any] = read_json(folder / "store.json")
        if self.meta["schema"] != SCHEMA:
            raise UserError(
                f"{folder}: store schema {self.meta['schema']}, this program reads {SCHEMA}; embed it again"
            )
        self._table = MappedTable(folder, self.meta["shards"])
        self.keys = self._table.column(self.meta["key"])
        self._columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __reduce__(self) -> tuple[type[EmbeddingStore], tuple[Path]]:
        """Another process opens the folder anew: addresses of mapped files mean nothing there."""
        return EmbeddingStore, (self.folder,)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the store was made from."""
        return self.meta["fingerprint"]

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.meta["width"]

    @cached_property
    def vectors(self) -> np.ndarray:
        """All vectors, [N, width] float32, in memory."""
        return self.take(np.arange(len(self.keys)))

    @cached_property
    def missing(self) -> np.ndarray:
        """[N] bool: keys without a vector; theirs is NaN."""
        missing = np.zeros(len(self.keys), bool)
        missing[self.meta.get("missing", [])] = True
        return missing

    def take(self, rows: np.ndarray, column: str = "embedding", out: np.ndarray | None = None) -> np.ndarray:
        """The vectors of ``rows`` [n], [n, width of the column] float32, read from the mapped file.

        Args:
            rows: int64.
            column: ``embedding``, or another column of vectors (``dataset_vector`` of an SE encoder).
            out: where they go, if given.
        """
        if column not in self._columns:
            self._columns[column] = self._table.lists(column)
        values, starts = self._columns[column]
        if out is None:
            out = np.empty((len(rows), self._table.schema.field(column).type.list_size), np.float32)
        if values.dtype == np.uint16:
            halves = np.empty(out.shape, np.uint16)
            _take(values, starts, rows, halves)
            out[:] = halves.view(np.float16)
        else:
            _take(values, starts, rows, out)
        return out
