"""The embedding store: one float32 vector a key (a cell's barcode, a protein's symbol), plus ``store.json``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vcc_fm.errors import UserError
from vcc_fm.store.arrow import MappedTable, write_dataset
from vcc_fm.store.folder import read_json, sha256_file, write_json

SCHEMA = 1


def write_embeddings(
    folder: Path,
    key: str,
    chunks: Iterable[tuple[Any, ...]],
    width: int,
    fingerprint: str,
    meta: dict[str, Any],
    further: datasets.Features | None = None,
) -> None:
    """Write (keys [n] str, vectors [n, width] float32, further columns) chunks into ``folder``.

    The caller renames it.

    Args:
        folder: where the dataset and ``store.json`` go.
        key: name of the key column, ``barcode`` or ``symbol``.
        chunks: keys, vectors, then one Arrow array for each of ``further``, in the order in which they shall stand.
        width: length of a vector.
        fingerprint: of everything the vectors depend on.
        meta: encoder, checkpoint, parameters, ``licence`` and ``citation``, kept in ``store.json``.
        further: what else a row holds.
    """
    # datasets 5 stores a fixed-size list as such, so that the vectors lie in one buffer without offsets.
    features = datasets.Features(
        {
            key: datasets.Value("string"),
            "embedding": datasets.List(datasets.Value("float32"), length=width),
            **(further or {}),
        }
    )
    rows = 0

    def batches() -> Iterable[pa.RecordBatch]:
        nonlocal rows
        for keys, vectors, *columns in chunks:
            rows += len(keys)
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
            first = [pa.array(keys, pa.string()), pa.FixedSizeListArray.from_arrays(flat, width)]
            yield pa.RecordBatch.from_arrays([*first, *columns], schema=features.arrow_schema)

    size = write_dataset(folder, features, batches(), fingerprint, meta["licence"], meta["citation"])
    data_sha256 = sha256_file(folder / "data-00000-of-00001.arrow")
    described = {"schema": SCHEMA, "key": key, "rows": rows, "width": width, "bytes": size, "sha256": data_sha256}
    write_json(folder / "store.json", described | {"fingerprint": fingerprint} | meta)


class EmbeddingStore:
    """Read access to an embedding store.

    Attributes:
        meta: the content of ``store.json``.
        vectors: [N, width] float32, zero-copy where the store is one record batch.
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
        self._table = MappedTable(folder, self.meta["bytes"])
        self.keys = self._table.column(self.meta["key"])
        parts = [
            batch.column("embedding").flatten().to_numpy().reshape(-1, self.meta["width"])
            for batch in self._table.batches
        ]
        self.vectors = parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the store was made from."""
        return self.meta["fingerprint"]

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.meta["width"]
