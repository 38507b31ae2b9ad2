"""How alike two perturbations are: by the target genes that they share, and by tables of vectors of these genes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg

from vcc_fm.store.cells import CellStore, evenly_spaced

COEXPRESSED_CELLS = 4000
"""Control cells from which co-expression is taken."""
CLIP = 10.0
"""Largest Pearson residual of a count, in standard deviations: one odd cell makes no component."""

Vectors = Mapping[str, np.ndarray]
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Kernels:
    """Coordinates of perturbations, whose products are kernels; those of its target genes, summed.

    Attributes:
        targets: perturbation -> its target genes.
        tables: vectors of genes, one table a kernel; a gene that a table lacks is like no other there.
    """

    targets: Callable[[str], Sequence[str]]
    tables: Sequence[Vectors] = ()

    def coordinates(self, weights: Sequence[Weights], genes: Sequence[str]) -> list[np.ndarray]:
        """Of perturbations given as weights of their target genes: [q, r] float64 each.

        The first is a constant (the root mean square weight), the second has an axis for each of ``genes``, then
        follows one a table.
        """
        place = {gene: i for i, gene in enumerate(genes)}
        own = np.zeros((len(weights), len(genes)))
        found = [np.array([[np.sqrt(np.mean([w**2 for w in one.values()]))] for one in weights]), own]
        for row, one in zip(own, weights, strict=True):
            for gene, weight in one.items():
                if gene in place:
                    row[place[gene]] = weight
        for table in self.tables:
            nothing = np.zeros(len(next(iter(table.values()))))
            found.append(np.stack([sum((w * table.get(g, nothing) for g, w in one.items()), nothing) for one in weights]))
        return found


def principal_features(vectors: Vectors, number: int) -> dict[str, np.ndarray]:
    """Leading principal components of vectors, scaled so that a gene's product with itself is 1 in the mean.

    Empty with fewer than three vectors, or where all are the same.
    """
    if len(vectors) < 3:
        return {}
    table = np.stack(list(vectors.values())).astype(np.float64)
    left, values, _ = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    scores = (left * values)[:, :number]
    scale = float(np.sqrt((scores**2).sum(axis=1).mean()))
    return dict(zip(vectors, scores / scale, strict=True)) if scale > 1e-12 else {}


def coexpression(cells: CellStore, log_shares: np.ndarray, dispersion: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Loadings of all genes on what varies most between control cells, [number] each.

    Counts become Pearson residuals ``(x - mu) / sqrt(mu + alpha mu^2)`` around depth times the control share of the
    cell's batch (Lause, Berens & Kobak 2021, Genome Biology 22:258), so that neither depth nor batch is a component.

    Args:
        cells: only control cells are read, at most ``COEXPRESSED_CELLS``.
        log_shares: [number of batches, G], see :func:`control_log_shares`.
        dispersion: [G] of control cells.
        number: of components; as many as there can be where cells or genes are fewer.
    """
    rows = evenly_spaced(cells.rows(perturbation=cells.control), COEXPRESSED_CELLS)
    mean = cells.depth[rows, None].astype(np.float32) * np.exp(log_shares)[cells.batch[rows]]
    deviation = np.sqrt(mean + dispersion.astype(np.float32) * mean**2)
    # A gene that the cell's batch did not measure has no mean, and no residual.
    residual = np.clip((cells.dense(rows) - mean) / np.maximum(deviation, 1e-6), -CLIP, CLIP).astype(np.float32)
    number = min(number, min(residual.shape) - 1)
    if number < 1:
        return {}
    start = np.ones(min(residual.shape), np.float32)  # else the solver draws one
    _, values, right = scipy.sparse.linalg.svds(residual, k=number, v0=start)
    largest_first = np.argsort(-values)
    return dict(zip(cells.genes, (right[largest_first].T * values[largest_first]), strict=True))
