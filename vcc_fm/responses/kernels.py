"""How alike two perturbations are: by the target genes that they share, and by tables of vectors of these genes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg

from vcc_fm.responses.evidence import Evidence
from vcc_fm.store.cells import CellStore, evenly_spaced

COEXPRESSED_CELLS = 4000
"""Control cells from which co-expression is taken."""
CLIP = 10.0
"""Largest residual in standard deviations of its noise: one odd cell, or perturbation, makes no component."""

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

    def axes(self, labels: Sequence[str]) -> list[list[str]]:
        """Names of what has an axis of its own: target genes, then combinations if there are any."""
        genes = sorted({gene for label in labels for gene in self.targets(label)})
        together = sorted({_combination(self.targets(label)) for label in labels} - {""})
        return [genes, together] if together else [genes]

    def coordinates(self, weights: Sequence[Weights], axes: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Coordinates of perturbations that are given as weights of their target genes: [q, r] float64 each.

        First a constant (the root mean square weight), then those on ``axes``, then one a table.
        """
        size = _size(weights)
        found = [size[:, None], *(np.zeros((len(weights), len(names))) for names in axes)]
        places = [{name: i for i, name in enumerate(names)} for names in axes]
        for row, one in enumerate(weights):
            for gene, weight in one.items():
                if gene in places[0]:
                    found[1][row, places[0][gene]] = weight
            if len(axes) > 1 and (together := _combination(one)) in places[1]:
                found[2][row, places[1][together]] = size[row]
        return found + self._on_tables(weights)

    def squares(self, weights: Sequence[Weights], axes: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Squared lengths of the :meth:`coordinates` [q], as if each perturbation had axes of its own."""
        genes = np.array([sum(w**2 for w in one.values()) for one in weights])
        together = np.array([float(len(one) > 1) for one in weights]) * _size(weights) ** 2
        own = [genes, together] if len(axes) > 1 else [genes]
        return [_size(weights) ** 2, *own, *(np.square(one).sum(axis=1) for one in self._on_tables(weights))]

    def _on_tables(self, weights: Sequence[Weights]) -> list[np.ndarray]:
        found = []
        for table in self.tables:
            nothing = np.zeros(len(next(iter(table.values()))))
            summed = [sum((w * table.get(gene, nothing) for gene, w in one.items()), nothing) for one in weights]
            found.append(np.stack(summed))
        return found


def _size(weights: Sequence[Weights]) -> np.ndarray:
    return np.array([np.sqrt(np.mean(np.square(list(one.values())))) for one in weights])


def _combination(genes: Iterable[str]) -> str:
    """A name for several target genes in whatever order; empty for one."""
    found = sorted(genes)
    return "\n".join(found) if len(found) > 1 else ""


def principal_features(vectors: Vectors, number: int) -> dict[str, np.ndarray]:
    """Leading principal components of vectors, scaled so that a gene's product with itself is 1 in the mean.

    Empty with fewer than three vectors, or where all are the same.
    """
    if len(vectors) < 3:
        return {}
    table = np.stack(list(vectors.values())).astype(np.float64)
    table -= table.mean(axis=0)
    scores = table @ principal_axes(table, number)[1].T
    scale = float(np.sqrt((scores**2).sum(axis=1).mean()))
    return dict(zip(vectors, scores / scale, strict=True)) if scale > 1e-12 else {}


def coexpression(
    cells: CellStore, log_shares: np.ndarray, dispersion: np.ndarray, number: int
) -> dict[str, np.ndarray]:
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
    residual = (cells.dense(rows) - mean) / np.maximum(deviation, 1e-6)
    return _loadings(residual.astype(np.float32, copy=False), cells.genes, number)


def co_response(evidence: Evidence, genes: Sequence[str], number: int) -> dict[str, np.ndarray]:
    """Loadings of all genes on what varies most between training responses, [number] each: what responds alike.

    Genes are embedded so in the linear model of Ahlmann-Eltze, Huber & Anders, Nature Methods 22:1657 (2025). Log
    ratios are less the mean response, in standard deviations of their noise. What a perturbation does to its own
    target genes has no part: a target's loading is what other perturbations do to it.

    Args:
        evidence: training responses.
        genes: of their columns.
        number: of components; as many as there can be where groups or genes are fewer.
    """
    root = {context: (unit**-0.5).astype(np.float32) for context, unit in evidence.unit.items()}
    # Roots of precisions; in place, as there may be thousands of groups on all genes.
    certain = np.stack([root[context] for context, _ in evidence.groups])
    certain *= np.sqrt(evidence.depth)[:, None].astype(np.float32)
    certain[evidence.own | ~evidence.measured] = 0.0
    mean = np.einsum("ng,ng,ng->g", evidence.ratio, certain, certain)
    residual = evidence.ratio - mean / np.maximum(np.einsum("ng,ng->g", certain, certain), np.float32(1e-30))
    residual *= certain
    return _loadings(residual, genes, number)


def _loadings(residual: np.ndarray, genes: Sequence[str], number: int) -> dict[str, np.ndarray]:
    """Principal loadings of the columns [n, G] times their singular values, the largest first.

    Residuals are in standard deviations of their noise, float32; they are clipped in place.
    """
    np.clip(residual, -CLIP, CLIP, out=residual)
    # They are centred: of as many axes as there are rows the last would be rounding.
    values, axes = principal_axes(residual, min(number, min(residual.shape) - 1))
    return dict(zip(genes, axes.T * values, strict=True)) if len(values) else {}


def principal_axes(table: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading singular values [k] of a table [n, G] and their right vectors [k, G], the largest first.

    k is ``number``, or less where rows or columns are fewer; 0 where the table is. The largest part of each vector is
    above zero, so that rounding turns none around.
    """
    if number < 1 or not table.any():
        return np.zeros(0, table.dtype), np.zeros((0, table.shape[1]), table.dtype)
    if number < min(table.shape):
        # Else the solver draws one. One of equal numbers would be nothing where rows or columns are centred.
        start = np.random.default_rng(0).standard_normal(min(table.shape)).astype(table.dtype)
        _, values, right = scipy.sparse.linalg.svds(table, k=number, v0=start)
    else:
        _, values, right = np.linalg.svd(table, full_matrices=False)
    largest_first = np.argsort(-values)
    values, right = values[largest_first], right[largest_first]
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    return values, right * np.sign(largest)
