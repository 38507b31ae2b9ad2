"""Chunks into the shards of a cell store: rows in order, some record batches at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

from vcc_fm.store.cell_table import CellTable
from vcc_fm.store.chunks import Chunk
from vcc_fm.store.description import LABELS

BATCH_ROWS = 8192
BATCH_BYTES = 64 << 20
"""Of the genes and counts of a record batch."""
SHARD_BYTES = 512 << 20
"""Of the genes and counts of a shard; more where there would be over MOST_SHARDS of them."""
MOST_SHARDS = 512
"""Each is an open file to every reader. None of these depends on how much memory there is, and so no file does."""

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Rows:
    """The cells of a store in its order. Arrays are [N]."""

    rank: np.ndarray
    """int64, rising."""
    length: np.ndarray
    """int64, number of values."""
    depth: np.ndarray
    """int32, UMI."""
    codes: dict[str, np.ndarray]
    """context, batch, perturbation: int32."""
    cell: np.ndarray
    """int64, place in ``table``."""
    table: CellTable
    """Of all labelled cells."""


def cut(sizes: np.ndarray, most: int, most_items: int) -> Ranges:
    """Cut items ([n] int64 sizes) into consecutive ranges of at most ``most`` in all, ``most_items``, or one item."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    ranges, start = [], 0
    while start < len(sizes):
        stop = int(np.searchsorted(ends, ends[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), start + most_items, len(sizes))
        ranges.append((start, stop))
        start = stop
    return ranges


def value_bytes(features: datasets.Features) -> int:
    """Bytes of a gene and its count."""
    return sum(np.dtype(features[name].feature.dtype).itemsize for name in ("genes", "counts"))


def plan_shards(length: np.ndarray, features: datasets.Features) -> list[Ranges]:
    """The ranges of rows of each record batch of each shard, from the numbers of values of the cells ([N])."""
    size = value_bytes(features)
    batches = cut(length * size, BATCH_BYTES, BATCH_ROWS)
    bytes_of_batch = np.array([length[start:stop].sum() * size for start, stop in batches])
    total = int(bytes_of_batch.sum())
    most = SHARD_BYTES if total <= SHARD_BYTES * MOST_SHARDS else total // MOST_SHARDS + BATCH_BYTES
    return [batches[start:stop] for start, stop in cut(bytes_of_batch, most, len(batches))]


def shard_batches(
    batches: Ranges, rows: Rows, chunks: list[Chunk], features: datasets.Features, memory: int
) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard.

    Args:
        batches: its ranges of rows.
        rows: of the whole store.
        chunks: in which the counts of these rows, and of others, are.
        features: of the store.
        memory: for genes and counts, bytes; as many batches as fit are put together at a time, one at the least.
    """
    kinds = [np.dtype(features[name].feature.dtype) for name in ("genes", "counts")]
    size = value_bytes(features)
    bytes_of_batch = np.array([rows.length[start:stop].sum() * size for start, stop in batches])
    for first, last in cut(bytes_of_batch, memory, len(batches)):
        begin, end = batches[first][0], batches[last - 1][1]
        offsets = np.concatenate([[0], np.cumsum(rows.length[begin:end])])
        genes, counts = (np.empty(offsets[-1], kind) for kind in kinds)
        low, high = int(rows.rank[begin]), int(rows.rank[end - 1]) + 1
        place = np.full(high - low, -1, np.int64)
        place[rows.rank[begin:end] - low] = offsets[:-1]
        for chunk in chunks:
            chunk.place(low, high, place, genes, counts)
        for start, stop in batches[first:last]:
            bounds = offsets[start - begin : stop - begin + 1]
            inner = pa.array((bounds - bounds[0]).astype(np.int32))
            lists = [pa.ListArray.from_arrays(inner, pa.array(v[bounds[0] : bounds[-1]])) for v in (genes, counts)]
            columns = [*lists, pa.array(rows.depth[start:stop])]
            columns += [pa.array(rows.codes[label][start:stop].astype(np.int64)) for label in LABELS]
            columns.append(pa.array(rows.table.barcodes(rows.cell[start:stop]), pa.string()))
            yield pa.RecordBatch.from_arrays(columns, schema=features.arrow_schema)
