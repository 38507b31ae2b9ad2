"""Negative-binomial dispersion of control cells, by moments."""

from __future__ import annotations

import numpy as np

from vcc_fm.store.cells import CellStore

SMALLEST, LARGEST = 1e-2, 10.0
PRIOR_CELLS = 20.0
"""Weight of the genes' common dispersion, in cells' worth of evidence on a gene with a mean of one count."""


def control_dispersion(store: CellStore, log_shares: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Dispersion alpha [G] float64 of ``variance = mu + alpha mu^2`` over all control cells.

    ``mu`` is a cell's depth times its batch's control share, so that depth and batch do not count as dispersion. By
    moments: ``alpha_g = sum((x - mu)^2 - mu) / sum(mu^2)``, each gene drawn towards the median of the well-measured
    genes by ``PRIOR_CELLS``, then kept within [1e-2, 10].
    """
    excess, squares = np.zeros(len(store.genes)), np.zeros(len(store.genes))
    rows = store.rows(perturbation=store.control)
    shares = np.exp(log_shares)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        mean = store.depth[part, None] * shares[store.batch[part]]
        residual = store.dense(part) - mean
        excess += (residual**2 - mean).sum(axis=0, dtype=np.float64)
        squares += (mean**2).sum(axis=0, dtype=np.float64)
    well_measured = squares > np.median(squares)
    common = np.median(excess[well_measured] / squares[well_measured]) if well_measured.any() else 0.3
    common = float(np.clip(common, SMALLEST, LARGEST))
    return np.clip((excess + PRIOR_CELLS * common) / (squares + PRIOR_CELLS), SMALLEST, LARGEST)
