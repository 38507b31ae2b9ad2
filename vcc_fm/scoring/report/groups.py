"""What the report shows of cells: pseudobulks, their changes, which predictions are told apart, depth and dispersion.

Both files are read in blocks, a context at a time, and of each context sums over groups are kept, not cells.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.scoring.inputs import Labels, read_blocks, read_labels

FLOOR_CPM = 5.0
"""Genes below this mean in the controls have no change here, as the scorer leaves them out of its tests; the same
number, about one UMI in a pseudobulk of 200,000, keeps the ratio of small counts finite. CPM."""


@dataclass(frozen=True)
class Pseudobulks:
    """Sums over the cells of some groups of one context.

    Attributes:
        labels: perturbations, P of them, in the order asked for.
        cells: int64 [P], number of cells.
        sums: float64 [P, genes], summed counts.
        squares: float64 [genes], squared counts, summed over all cells.
        depths: float64 [cells], counts of every cell.
    """

    labels: list[str]
    cells: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    depths: np.ndarray


@dataclass(frozen=True)
class Spread:
    """How deep cells are, and how much they differ within their groups.

    Attributes:
        depths: float64 [cells], counts of every cell.
        mean, variance: float64 [genes], within groups, averaged over groups by their degrees of freedom; counts.
        dispersion: float64 [genes], (variance - mean) / mean², that of a negative binomial; NaN where nothing is
            counted, or no group has two cells.
    """

    depths: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    dispersion: np.ndarray


@dataclass(frozen=True)
class Context:
    """What the report shows of one context; E genes are above ``FLOOR_CPM`` in its controls.

    Attributes:
        name: of the context.
        genes: [E], their symbols.
        rows: one row per perturbation: context, perturbation, cells, emitted (numbers of cells), significant (genes
            in the truth; NaN where the preset does not say), size and predicted (root mean square of the measured and
            the predicted change), r (their correlation), rank (place of its own measured perturbation among all, by
            :func:`cosines`; 1 is the most similar). The target gene counts in none of them.
        changes: perturbation -> measured and predicted change, float64 [E] each; of some perturbations.
        similarity: float64 [P, P], :func:`cosines` of each predicted with each measured perturbation.
        factor: by which all predicted changes would be multiplied to be nearest to the measured ones; NaN where
            nothing is predicted to change.
        spreads: of ``measured`` and ``emitted`` perturbed cells.
    """

    name: str
    genes: np.ndarray
    rows: pd.DataFrame
    changes: dict[str, tuple[np.ndarray, np.ndarray]]
    similarity: np.ndarray
    factor: float
    spreads: dict[str, Spread]


def read_contexts(
    truth: Path, prediction: Path, control: str, significant: pd.DataFrame, most: int
) -> tuple[list[Context], pd.DataFrame]:
    """Read all contexts of the truth, and the same groups of the prediction.

    Args:
        truth: h5ad file of measured cells with controls.
        prediction: h5ad file of predicted cells.
        control: label of the controls.
        significant: of the score table; may be empty.
        most: changes are kept of so many perturbations, over all contexts.

    Returns:
        The contexts, and their rows together: those with the most significant genes first, then those with the largest
        measured change. Changes are kept of the first ``most`` rows.
    """
    measured, predicted = read_labels(truth), read_labels(prediction)
    counts = {
        (str(context), str(label)): float(number)
        for context, label, number in significant.reindex(columns=["context", "perturbation", "significant"]).values
    }
    contexts = [_context(measured, predicted, name, control, counts, most) for name in measured.contexts()]
    rows = _ordered(pd.concat([context.rows for context in contexts], ignore_index=True))
    kept = set(zip(rows["context"][:most], rows["perturbation"][:most], strict=True))
    return [
        replace(one, changes={label: both for label, both in one.changes.items() if (one.name, label) in kept})
        for one in contexts
    ], rows


def _context(
    measured: Labels,
    predicted: Labels,
    name: str,
    control: str,
    counts: dict[tuple[str, str], float],
    most: int,
) -> Context:
    labels = sorted(set(measured.groups(name).index) - {control})
    controls = pseudobulks(measured, name, [control]).sums[0]
    real, emitted = (pseudobulks(one, name, labels) for one in (measured, predicted))
    expressed = lfc(controls, controls)[1]
    genes = measured.genes.to_numpy()[expressed]
    change, answer = (lfc(one.sums, controls)[0][:, expressed] for one in (real, emitted))
    target = pd.Index(genes).get_indexer(labels)
    similarity = cosines(answer, change, target)
    others = np.arange(len(genes)) != target[:, None]
    rows = pd.DataFrame(
        {
            "context": name,
            "perturbation": labels,
            "cells": real.cells,
            "emitted": emitted.cells,
            "significant": [counts.get((name, label), np.nan) for label in labels],
            "size": [_size(one[keep]) for one, keep in zip(change, others, strict=True)],
            "predicted": [_size(one[keep]) for one, keep in zip(answer, others, strict=True)],
            "r": [correlation(one[keep], two[keep]) for one, two, keep in zip(change, answer, others, strict=True)],
            "rank": own_ranks(similarity),
        }
    )
    squared = float(np.square(answer[others]).sum())
    place = {label: number for number, label in enumerate(labels)}
    return Context(
        name,
        genes,
        rows,
        {label: (change[place[label]], answer[place[label]]) for label in _ordered(rows)["perturbation"][:most]},
        similarity,
        float((answer * change)[others].sum()) / squared if squared else np.nan,
        {"measured": spread(real), "emitted": spread(emitted)},
    )


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["significant", "size"], ascending=False, kind="stable", ignore_index=True)


def pseudobulks(labels: Labels, context: str, perturbations: Collection[str]) -> Pseudobulks:
    """Sum the cells of groups of one context, in blocks.

    Args:
        labels: of the file.
        context: one of its contexts.
        perturbations: labels that it has cells of.
    """
    names, genes = list(perturbations), len(labels.genes)
    cells, sums = np.zeros(len(names), np.int64), np.zeros((len(names), genes))
    squares, depths = np.zeros(genes), []
    for of_cells, block in read_blocks(labels, context, names):
        counts = block.astype(np.float64)
        present, code = np.unique(pd.Index(names).get_indexer(pd.Index(of_cells)), return_inverse=True)
        members = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), (len(present), len(code)))
        sums[present] += (members @ counts).toarray()
        cells[present] += np.bincount(code)
        squares += np.asarray(counts.multiply(counts).sum(axis=0)).ravel()
        depths.append(np.asarray(counts.sum(axis=1)).ravel())
    return Pseudobulks(names, cells, sums, squares, np.concatenate(depths or [np.zeros(0)]))


def lfc(counts: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudobulk log2 fold change, log2((t + f) / (c + f)) in counts per million with f = ``FLOOR_CPM``.

    Args:
        counts: [..., genes] summed counts of the perturbed cells.
        controls: [genes] summed counts of the control cells.

    Returns:
        The fold changes [..., genes], and a mask [genes] of the genes whose control mean is above ``FLOOR_CPM``.
    """
    target, control = (1e6 * sums / sums.sum(axis=-1, keepdims=True) for sums in (counts, controls))
    return np.log2((target + FLOOR_CPM) / (control + FLOOR_CPM)), control > FLOOR_CPM


def cosines(predicted: np.ndarray, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cosine of each predicted with each measured change, [P, P]; NaN where one of them is zero.

    Args:
        predicted: [P, genes].
        measured: [P, genes].
        target: int [P], position of the target gene of each predicted perturbation, which is left out of its row on
            both sides; -1 where there is none.
    """
    row = np.flatnonzero(target >= 0)
    predicted = predicted.copy()
    predicted[row, target[row]] = 0.0
    squared = np.square(measured).sum(axis=1)
    theirs = np.tile(squared, (len(predicted), 1))
    theirs[row] -= np.square(measured[:, target[row]]).T
    # What a subtraction leaves of a change in the target gene alone is rounding.
    theirs[theirs <= 1e-12 * squared] = 0.0
    ours = np.square(predicted).sum(axis=1)[:, None]
    with np.errstate(invalid="ignore"):
        return np.asarray(predicted @ measured.T / np.sqrt(ours * theirs))


def own_ranks(similarity: np.ndarray) -> np.ndarray:
    """Place of the diagonal in its row, from 1, the largest; equal ones share their mean place; NaN stays NaN."""
    own = np.diag(similarity)[:, None]
    rank = (similarity > own).sum(axis=1) + ((similarity == own).sum(axis=1) + 1) / 2
    return np.where(np.isnan(own[:, 0]), np.nan, rank)


def spread(groups: Pseudobulks) -> Spread:
    """Depth and dispersion of the cells of some groups."""
    free = np.maximum(groups.cells - 1, 0)
    weights = free / max(free.sum(), 1)
    means = groups.sums / np.maximum(groups.cells, 1)[:, None]
    mean, square = weights @ means, weights @ np.square(means)
    within = groups.squares - groups.cells @ np.square(means)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = within / (free.sum() or np.nan)
        return Spread(groups.depths, mean, variance, (variance - mean) / square)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two vectors; NaN where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def largest_and_some(measured: np.ndarray, predicted: np.ndarray, largest: int, sample: int) -> np.ndarray:
    """Positions, ascending, of the genes with the largest change on either side, and of others evenly along the axis.

    Args:
        measured: [genes].
        predicted: [genes].
        largest: how many with the largest change, at most.
        sample: how many others, at most.
    """
    order = np.argsort(-np.maximum(np.abs(measured), np.abs(predicted)), kind="stable")
    rest = np.sort(order[largest:])
    even = rest[np.linspace(0, len(rest) - 1, sample).round().astype(int)] if len(rest) > sample else rest
    return np.sort(np.concatenate([order[:largest], even]))


def _size(change: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(change)))) if len(change) else float("nan")
