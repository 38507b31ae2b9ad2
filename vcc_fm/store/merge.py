"""Chunks into the shards of a cell store: rows in order, some record batches at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa

from vcc_fm.ground.arrays import Arrays
from vcc_fm.store.chunks import Chunk
from vcc_fm.store.description import LABELS

BATCH_ROWS = 8192
BATCH_BYTES = 64 << 20
"""Of the genes and counts of a record batch."""
SHARD_BYTES = 512 << 20
"""Of the genes and counts of a shard; more where there would be over MOST_SHARDS of them."""
MOST_SHARDS = 512
"""Each is an open file to every reader. None of these depends on how much memory there is, and so no file does."""

CELL_BYTES = 200
"""Of memory for a cell that is put into its place, beside its genes and counts."""

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Rows:
    """The cells of a store in its order. Arrays are [N]."""

    rank: np.ndarray
    """int32 or int64, rising."""
    length: np.ndarray
    """int32, number of values."""
    depth: np.ndarray
    """int32, UMI."""
    start: np.ndarray
    """[groups + 1] int64, rows at which the groups begin: cells of one context, batch and perturbation."""
    codes: Arrays
    """context, batch, perturbation: [groups] int64."""


def cut(sizes: np.ndarray, most: int, most_items: int) -> Ranges:
    """Cut items ([n] sizes) into consecutive ranges of at most ``most`` in all, ``most_items``, or one item."""
    ranges, start = [], 0
    while start < len(sizes):
        ends = np.cumsum(sizes[start : start + most_items], dtype=np.int64)
        stop = start + max(int(np.searchsorted(ends, most, side="right")), 1)
        ranges.append((start, stop))
        start = stop
    return ranges


def value_bytes(features: datasets.Features) -> int:
    """Bytes of a gene and its count."""
    return sum(np.dtype(features[name].feature.dtype).itemsize for name in ("genes", "counts"))


def plan_shards(length: np.ndarray, features: datasets.Features) -> list[Ranges]:
    """The ranges of rows of each record batch of each shard, from the numbers of values of the cells ([N])."""
    size = value_bytes(features)
    batches = cut(length, BATCH_BYTES // size, BATCH_ROWS)
    bytes_of_batch = np.array([int(length[start:stop].sum(dtype=np.int64)) * size for start, stop in batches])
    total = int(bytes_of_batch.sum())
    most = SHARD_BYTES if total <= SHARD_BYTES * MOST_SHARDS else total // MOST_SHARDS + BATCH_BYTES
    return [batches[start:stop] for start, stop in cut(bytes_of_batch, most, len(batches))]


def shard_batches(
    batches: Ranges,
    rows: Rows,
    chunks: Sequence[tuple[Chunk, int, int]],
    features: datasets.Features,
    memory: int,
) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard.

    Args:
        batches: its ranges of rows.
        rows: of the whole store.
        chunks: in which the counts of these rows are, and the ranges of their cells that the shard is made of; one is
            open at a time.
        features: of the store.
        memory: for genes and counts, bytes; as many batches as fit are put together at a time, one at the least.
    """
    kinds = {name: np.dtype(features[name].feature.dtype) for name in ("genes", "counts")}
    size = value_bytes(features)
    values_of_batch = np.array([int(rows.length[start:stop].sum(dtype=np.int64)) for start, stop in batches])
    cells_of_batch = np.array([stop - start for start, stop in batches])
    for first, last in cut(values_of_batch * size + cells_of_batch * CELL_BYTES, memory, len(batches)):
        begin, end = batches[first][0], batches[last - 1][1]
        offsets = np.concatenate([[0], np.cumsum(rows.length[begin:end], dtype=np.int64)])
        values = {name: np.empty(offsets[-1], kind) for name, kind in kinds.items()}
        rank = rows.rank[begin:end].astype(np.int64)
        row_of = np.full(rank[-1] + 1 - rank[0], -1, np.int64)
        row_of[rank - rank[0]] = np.arange(end - begin)
        placed = [chunk.place(a, b, int(rank[0]), row_of, offsets, values) for chunk, a, b in chunks]
        order = np.argsort(np.concatenate([row for row, _ in placed]))
        barcodes = pa.concat_arrays([names for _, names in placed]).take(pa.array(order))
        for start, stop in batches[first:last]:
            bounds = offsets[start - begin : stop - begin + 1]
            inner = pa.array((bounds - bounds[0]).astype(np.int32))
            lists = [pa.ListArray.from_arrays(inner, pa.array(v[bounds[0] : bounds[-1]])) for v in values.values()]
            group = np.searchsorted(rows.start, np.arange(start, stop), side="right") - 1
            columns = [*lists, pa.array(rows.depth[start:stop])]
            columns += [pa.array(rows.codes[label][group]) for label in LABELS]
            # As objects once: the bytes of an array that was taken out of others depend on these.
            names = barcodes.slice(start - begin, stop - start).to_numpy(zero_copy_only=False)
            columns.append(pa.array(names, pa.string()))
            yield pa.RecordBatch.from_arrays(columns, schema=features.arrow_schema)
