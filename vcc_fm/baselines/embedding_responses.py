"""What each training perturbation did to the mean cell vector: :class:`Responses` on the axes of an embedding."""

from __future__ import annotations

import numpy as np

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.responses.responses import Responses
from vcc_fm.responses.shrinkage import shrink_vector
from vcc_fm.splits.split import assert_no_leak
from vcc_fm.store.embeddings import EmbeddingStore

CHUNK = 4096
"""Cells whose vectors are read at a time, 34 MB at 2,048 columns."""

ROUNDING = 1e-14
"""Smallest variance of a coordinate: that of rounding a unit vector to float32."""


def mean_vector(store: EmbeddingStore, rows: np.ndarray, column: str = "embedding") -> np.ndarray:
    """Mean of the vectors of ``rows`` [n > 0], [E] float64, read a chunk at a time."""
    return _sums(store, rows, column)[0] / len(rows)


def embedding_responses(data: Dataset) -> Responses:
    """Estimate the shift of the mean vector of all training groups.

    The shift of a group is the mean vector of its cells minus that of control cells in the same mixture of batches; a
    batch without controls borrows those of its context. With ``n`` cells in the group, ``w_b`` of them (a share) in
    batch ``b`` and ``n_b`` controls there, every coordinate has the variance ``s^2 (1 / n + sum_b w_b^2 / n_b)``;
    ``s^2`` is the variance of control cells around the mean of their batch, averaged over the coordinates.

    One variance for all coordinates makes of the shrinkage in :meth:`Responses.elsewhere` a factor on the whole shift,
    which keeps its direction, and a vector space has no preferred axes.

    Returns:
        ``ratio`` holds the shifts, [n, E] float32; training groups without any vector have no row.
    """
    store, vectors, split = data.cells, data.cell_vectors, data.split
    wanted = split.groups("train")
    assert_no_leak(split, wanted, store.control, "embedding responses")
    mean, controls, variance = _controls(data)
    groups, shifts, precision = [], [], []
    for context, perturbation in wanted:
        rows = data.with_vector(store.rows(context, perturbation))
        if not len(rows):
            continue
        share = np.bincount(store.batch[rows], minlength=len(store.batches)) / len(rows)
        groups.append((context, perturbation))
        shifts.append((mean_vector(vectors, rows) - share @ mean).astype(np.float32))
        precision.append(1.0 / (variance * (1.0 / len(rows) + (share**2 / controls).sum())))
    shape = len(groups), vectors.width
    # The same number for all coordinates is kept once.
    once = np.array(precision, np.float32).reshape(-1, 1)
    return Responses(
        groups, np.array(shifts, np.float32).reshape(shape), np.broadcast_to(once, shape), shrink=shrink_vector
    )


def _controls(data: Dataset) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean vector of each batch's control cells [U, E], how many it is of [U], and the variance of a coordinate."""
    store, vectors = data.cells, data.cell_vectors
    mean = np.zeros((len(store.batches), vectors.width))
    number = np.zeros(len(store.batches), np.int64)
    squares = 0.0
    for batch, rows in data.control_rows.items():
        total, norms = _sums(vectors, rows)
        mean[batch], number[batch] = total / len(rows), len(rows)
        squares += norms - total @ total / len(rows)
    free = max(1, number.sum() - np.count_nonzero(number))
    for code, context in enumerate(store.contexts):
        batches = np.unique(store.groups.batch[store.groups.context == code])
        pool = len(data.context_controls[context])
        bare = batches[number[batches] == 0]
        mean[bare] = number[batches] @ mean[batches] / pool
        number[bare] = pool
    return mean, number, max(ROUNDING, squares / (free * vectors.width))


def _sums(store: EmbeddingStore, rows: np.ndarray, column: str = "embedding") -> tuple[np.ndarray, float]:
    """Sum of vectors [E] and of their squared lengths, float64."""
    total, squares = np.zeros(1), 0.0
    for start in range(0, len(rows), CHUNK):
        part = store.take(rows[start : start + CHUNK], column).astype(np.float64)
        total = total + part.sum(axis=0)
        squares += float(np.square(part).sum())
    return total, squares
