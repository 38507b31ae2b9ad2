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

from vcc_fm.store.arrow import DATA_FILE, Lists, MappedTable, Store, write_description, write_shard
from vcc_fm.store.description import NAME, VectorsDescription, damaged, read_store_json, write_store_json

SCHEMA = 3


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
            first = [pa.array(keys, pa.string()), fixed_lists(vectors.astype(dtype, copy=False))]
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
    write_store_json(folder, described | {"fingerprint": fingerprint} | meta)


def fixed_lists(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Vectors [n, width] as a column of Arrow."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def is_dataset_file(name: str) -> bool:
    """Whether a file in the folder of a store is the store's own, rather than one that its encoder left."""
    return name in {NAME, "state.json", "dataset_info.json", "LICENSE"} or name.endswith(".arrow")


@numba.njit(cache=True, nogil=True)
def _take(values, start, rows, places, out):  # type: ignore[no-untyped-def]
    """Copy the vectors of ``rows[places]``, which lie in ``values``, into ``out[places]`` [m, width]."""
    for i in places:
        if rows[i] < 0 or rows[i] >= start.shape[0]:
            raise IndexError("a row that the store does not have")
        target = out[i]
        source = values[start[rows[i]] : start[rows[i]] + target.shape[0]]
        for k in range(target.shape[0]):
            target[k] = source[k]


class EmbeddingStore(Store):
    """Read access to an embedding store; opening reads the keys and no vector.

    Attributes:
        keys: [N] str.
    """

    def __init__(self, folder: Path):
        """Open ``folder``.

        Raises:
            UserError: the folder is incomplete, of another schema, or not what was written.
        """
        super().__init__(folder, read_store_json(folder, SCHEMA, VectorsDescription, "embed it again"))
        vectors = tuple(pa.list_(number, self.meta["width"]) for number in (pa.float32(), pa.float16()))
        types: dict[str, tuple[pa.DataType, ...]] = {self.meta["key"]: (pa.string(),), "embedding": vectors}
        self._table = MappedTable(folder, self.meta["shards"], types)
        if len(self._table) != self.meta["rows"]:
            raise damaged(folder / NAME, f"{self.meta['rows']} vectors, but the files have {len(self._table)}")
        self.keys = self._table.column(self.meta["key"])
        self._columns: dict[str, Lists] = {}

    @property
    def dtype(self) -> Literal["float32", "float16"]:
        """Number type of the stored vectors."""
        return "float16" if self._table.schema.field("embedding").type.value_type == pa.float16() else "float32"

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
        missing[self.meta["missing"]] = True
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
        lists = self._columns[column]
        shape = len(rows), lists.width
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape:
            raise ValueError(f"vectors of shape {shape} do not fit into {out.shape}")
        halves = lists.values[0].dtype == np.uint16
        into = np.empty(shape, np.uint16) if halves else out
        for file, places in self._table.by_file(rows):
            _take(lists.values[file], lists.start, rows, places, into)
        if halves:
            out[:] = into.view(np.float16)
        return out
