"""Read a store again, every byte of it, and say whether it is what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.sources.quality import depth_of
from vcc_fm.store.cells import CellStore
from vcc_fm.store.checksums import check_files
from vcc_fm.store.description import NAME
from vcc_fm.store.embeddings import EmbeddingStore

ROWS = 8192


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, whole or not."""
    return (folder / NAME).exists()


def verify(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Check a cell store or an embedding store against its own ``store.json``.

    The checksum tells a flipped byte or a file cut short; the rest tells a store that was written wrong.

    Args:
        folder: of the store.
        progress: told how many rows are done, of how many.

    Returns:
        Kind, and numbers of rows and shards.

    Raises:
        UserError: something is missing, damaged, or does not fit together; the message says what.
    """
    meta = read_json(folder / NAME)
    # Opening a store checks all but the content of its lists; here every file is read, whatever a note says.
    store = CellStore(folder) if "batches" in meta else EmbeddingStore(folder)
    check_files(folder, store.meta["shards"], again=True)
    check = _check_cells if isinstance(store, CellStore) else _check_vectors
    wrong = check(store, progress)  # type: ignore[arg-type]
    if wrong is not None:
        raise UserError(f"{folder}: {wrong}; remove it and run the stage that makes it again")
    rows = len(store) if isinstance(store, CellStore) else len(store.keys)
    kind = "cells" if "batches" in meta else meta["key"]
    return {"store": str(folder), "kind": kind, "rows": rows, "shards": len(meta["shards"])}


def _check_cells(store: CellStore, progress: Callable[[int, int], None]) -> str | None:
    """What does not fit in a cell store; None where all does."""
    groups, rows = store.groups, len(store)
    keys = np.column_stack([groups.context, groups.batch, groups.perturbation])
    if (np.lexsort(keys.T[::-1]) != np.arange(len(keys))).any() or len(np.unique(keys, axis=0)) < len(keys):
        return "its cells are not in order of context, batch and perturbation"
    if len(np.unique(keys[:, :2], axis=0)) > len(np.unique(keys[:, 1])):
        return "a technical batch is in several contexts"
    if len(set(store.barcodes)) != rows:
        return "barcodes repeat"
    for start in range(0, rows, ROWS):
        part = np.arange(start, min(start + ROWS, rows))
        counts = store.sparse(part)
        if not counts.has_canonical_format:
            return f"the genes of a cell from row {start} on are out of order, or one stands twice"
        if (counts.data <= 0).any():
            return f"a count of the cells from row {start} on is not above zero"
        if (depth_of(counts) != store.depth[part]).any():
            return f"the depth of a cell from row {start} on is not the sum of its counts"
        progress(int(part[-1]) + 1, rows)
    return None


def _check_vectors(store: EmbeddingStore, progress: Callable[[int, int], None]) -> str | None:
    """What does not fit in an embedding store; None where all does."""
    rows = len(store.keys)
    if len(set(store.keys)) != rows:
        return f"its {store.meta['key']}s repeat"
    for start in range(0, rows, ROWS):
        part = np.arange(start, min(start + ROWS, rows))
        vectors = store.take(part)
        if (np.isnan(vectors).all(axis=1) != store.missing[part]).any():
            return f"the rows without a vector from {start} on are not those that store.json names"
        if not np.isfinite(vectors[~store.missing[part]]).all():
            return f"a vector from row {start} on is not finite"
        progress(int(part[-1]) + 1, rows)
    return None
