"""Barcodes that repeat in a file, found without all of them in memory: by 64-bit hashes, then by the strings."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vcc_fm.sources.obs import Obs, ranges


def numbered(obs: Obs) -> tuple[np.ndarray, np.ndarray]:
    """Append -1, -2, … to what repeats; again, where that name is taken already.

    Returns:
        Rows of the file [k] int64, rising, that get another name, and what is appended to their barcodes [k] bytes.
    """
    hashes = np.empty(len(obs), np.uint64)
    for start, stop in ranges(len(obs)):
        hashes[start:stop] = _hashes(obs.barcodes(start, stop))
    hashes.sort()
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    while len(suspects):
        rows, barcodes = _rows_of(obs, suspects)
        unique, tried = _unique(barcodes)
        # A name that was made up may be the barcode of a cell that had it alone.
        taken = np.setdiff1d(np.intersect1d(_hashes(tried), hashes), suspects)
        if not len(taken):
            changed = (unique != barcodes).to_numpy()
            pairs = zip(unique[changed], barcodes[changed], strict=True)
            added = [name.removeprefix(barcode) for name, barcode in pairs]
            return rows[changed], np.array(added, dtype=bytes)
        suspects = np.union1d(suspects, taken)
    return np.empty(0, np.int64), np.empty(0, "S1")


def with_numbers(barcodes: np.ndarray, rows: np.ndarray, numbers: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Barcodes [n] of ``rows`` [n], rising, with what :func:`numbered` appends to some."""
    changed, added = numbers
    low, high = np.searchsorted(changed, [rows[0], rows[-1] + 1]) if len(rows) else (0, 0)
    mine = np.flatnonzero(np.isin(rows, changed[low:high]))
    if len(mine):
        barcodes = barcodes.copy()
        barcodes[mine] += np.char.decode(added[np.searchsorted(changed, rows[mine])]).astype(object)
    return barcodes


def _hashes(barcodes: np.ndarray) -> np.ndarray:
    return pd.util.hash_array(barcodes, categorize=False)


def _rows_of(obs: Obs, hashes: np.ndarray) -> tuple[np.ndarray, pd.Series]:
    """Rows and barcodes of the cells whose barcodes have some of these hashes (sorted)."""
    rows, found = [], []
    for start, stop in ranges(len(obs)):
        barcodes = obs.barcodes(start, stop)
        mine = np.flatnonzero(np.isin(_hashes(barcodes), hashes))
        rows.append(mine + start)
        found.append(barcodes[mine])
    return np.concatenate(rows), pd.Series(np.concatenate(found), dtype=object)


def _unique(barcodes: pd.Series) -> tuple[pd.Series, np.ndarray]:
    """Distinct names, and all names that were made up on the way to them."""
    unique, tried = barcodes, [np.empty(0, object)]
    while unique.duplicated().any():
        rank = unique.groupby(unique).cumcount()
        unique = unique.where(rank == 0, unique + "-" + rank.astype(str))
        tried.append(unique[rank > 0].to_numpy(object))
    return unique, np.concatenate(tried)
