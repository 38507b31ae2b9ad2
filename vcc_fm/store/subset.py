"""Some cells of a cell store, as a cell store of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from vcc_fm.ground.files import fingerprint
from vcc_fm.store.arrow import DATA_FILE, write_description, write_shard
from vcc_fm.store.cells import CellStore, cell_features
from vcc_fm.store.description import LABELS, write_store_json


def write_subset(cells: CellStore, rows: np.ndarray, folder: Path) -> None:
    """Write ``rows`` [n] of a store, in their order there, into ``folder``; labels, axis and sources stay."""
    rows = np.sort(rows)
    genes, counts, start = cells.lists(rows)
    names = {label: cells.meta[LABELS[label]] for label in LABELS}
    features = cell_features(len(cells.genes), int(counts.max(initial=0)), names)
    schema, offsets = features.arrow_schema, pa.array(start, pa.int32())
    codes = (cells.context, cells.batch, cells.perturbation)
    columns = {
        "genes": pa.ListArray.from_arrays(offsets, pa.array(genes).cast(schema.field("genes").type.value_type)),
        "counts": pa.ListArray.from_arrays(offsets, pa.array(counts).cast(schema.field("counts").type.value_type)),
        "depth": pa.array(cells.depth[rows]),
        "barcode": pa.array(cells.barcodes[rows], pa.string()),
        **{label: pa.array(code[rows].astype(np.int64)) for label, code in zip(LABELS, codes, strict=True)},
    }
    batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    shard = write_shard(folder / DATA_FILE, features, [batch])
    made_from = fingerprint([cells.fingerprint, rows.tolist()])
    write_description(folder, features, [DATA_FILE], made_from, "", "")
    write_store_json(folder, cells.meta | {"cells": len(rows), "shards": [shard], "fingerprint": made_from})
