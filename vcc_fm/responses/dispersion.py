"""How control cells spread around their profile: negative-binomial dispersion, and what a likelihood makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np

from vcc_fm.store.cells import CHUNK, CellStore

SMALLEST, LARGEST = 1e-2, 10.0
PRIOR_CELLS = 20.0
"""Weight of the genes' common dispersion, in cells' worth of evidence on a gene with a mean of one count."""


def control_dispersion(store: CellStore, log_shares: np.ndarray) -> np.ndarray:
    """Dispersion alpha [G] float64 of ``variance = mu + alpha mu^2`` over all control cells.

    ``mu`` is a cell's depth times its batch's control share, so that depth and batch do not count as dispersion. By
    moments: ``alpha_g = sum((x - mu)^2 - mu) / sum(mu^2)``, each gene drawn towards the median of the well-measured
    genes by ``PRIOR_CELLS``, then kept within [1e-2, 10].
    """
    excess, squares, shares = np.zeros(len(store.genes)), np.zeros(len(store.genes)), np.exp(log_shares)
    for cells in _cells(store, store.rows(perturbation=store.control)):
        _add_moments(*cells, shares, excess, squares)
    well_measured = squares > np.median(squares)
    common = np.median(excess[well_measured] / squares[well_measured]) if well_measured.any() else 0.3
    common = float(np.clip(common, SMALLEST, LARGEST))
    return np.clip((excess + PRIOR_CELLS * common) / (squares + PRIOR_CELLS), SMALLEST, LARGEST)


NULL_PRIOR_COUNTS = 20.0
"""Weighted counts of evidence for a ratio of one."""


def null_ratios(store: CellStore, log_shares: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Ratio of the mean that the likelihood prefers for a context's control cells to their control profile.

    A profile weighs a cell by its UMI; a negative-binomial likelihood weighs its counts of a gene by ``1 / (1 + alpha
    mu)``, deep cells less. Where a gene's share follows depth the two differ, and a model trained by likelihood takes
    the difference for an effect that every perturbation has. One step of Fisher scoring from a ratio of one:
    ``sum(w x) / sum(w mu)``.

    Returns:
        [number of contexts, G] float32; 1 where the context did not measure a gene.
    """
    seen = np.full((len(store.contexts), len(store.genes)), NULL_PRIOR_COUNTS)
    expected, shares = seen.copy(), np.exp(log_shares)
    for code, context in enumerate(store.contexts):
        for cells in _cells(store, store.rows(context, store.control)):
            _add_weighted(*cells, shares, dispersion, seen[code], expected[code])
    return (seen / expected).astype(np.float32)


def _cells(store: CellStore, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Counts [n, G], depth [n] and batch [n] of cells, some at a time."""
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        yield store.dense(part), store.depth[part], store.batch[part]


# Compiled: as passes over arrays of cells by genes they took three to four times as long, in every process.


@numba.njit(cache=True, nogil=True)
def _add_moments(
    counts: np.ndarray,
    depth: np.ndarray,
    batch: np.ndarray,
    shares: np.ndarray,
    excess: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Add ``(x - mu)^2 - mu`` and ``mu^2`` of cells, whose depth times their batch's share is ``mu``."""
    for cell in range(len(counts)):
        for gene in range(counts.shape[1]):
            mean = depth[cell] * shares[batch[cell], gene]
            excess[gene] += (counts[cell, gene] - mean) ** 2 - mean
            squares[gene] += mean**2


@numba.njit(cache=True, nogil=True)
def _add_weighted(
    counts: np.ndarray,
    depth: np.ndarray,
    batch: np.ndarray,
    shares: np.ndarray,
    dispersion: np.ndarray,
    seen: np.ndarray,
    expected: np.ndarray,
) -> None:
    """Add counts and ``mu`` of cells, each weighted by ``1 / (1 + alpha mu)``."""
    for cell in range(len(counts)):
        for gene in range(counts.shape[1]):
            mean = depth[cell] * shares[batch[cell], gene]
            weight = 1.0 / (1.0 + dispersion[gene] * mean)
            seen[gene] += weight * counts[cell, gene]
            expected[gene] += weight * mean
