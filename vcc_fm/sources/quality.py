"""Which cells are good enough: depth, genes, and whether the target genes of their perturbation went down.

The knock-down filter does what ``filter_on_target_knockdown`` of cell-load does
(https://github.com/ArcInstitute/cell-load), in each context of a source by itself, and for combinations.

The cells of a source may come in chunks, in any order: :func:`sufficient`, :meth:`TargetGenes.measure` and
:meth:`TargetGenes.control_sums` need a chunk, :func:`knocked_down` what they found in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.recipe.data import KnockDownConfig, QualityConfig

_SCALED_DEPTH = 1e4
_QUANTUM = 2.0**-24  # of expression that is summed
_NO_TARGET, _UNMEASURED = -1, -2


def sufficient(counts: sp.csr_matrix, config: QualityConfig) -> tuple[np.ndarray, dict[str, int]]:
    """Which cells have the depth and the genes that the recipe asks for.

    Args:
        counts: [m, G] int32, UMI, all genes of the file, no stored zeros.
        config: the thresholds.

    Returns:
        keep: [m] bool. Reason -> number of cells dropped, each cell under the first one only; none that is 0.
    """
    return _first_reasons(
        {
            f"depth below {config.minimum_depth} UMI": depth_of(counts) < config.minimum_depth,
            f"fewer than {config.minimum_genes} genes with a count": np.diff(counts.indptr) < config.minimum_genes,
        }
    )


def _first_reasons(fails: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """Which cells fail nowhere, and reason -> number of cells for which it is the first ([n] bool for each reason)."""
    keep, dropped = ~np.logical_or.reduce(list(fails.values())), {}
    first = np.argmax(list(fails.values()), axis=0)[~keep]
    for reason, number in zip(fails, np.bincount(first, minlength=len(fails)).tolist(), strict=True):
        if number:
            dropped[reason] = number
    return keep, dropped


def depth_of(counts: sp.csr_matrix) -> np.ndarray:
    """UMI of each cell, [m] int64."""
    return np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()


class ControlSums(NamedTuple):
    """Expression of the target genes in control cells; sums of several chunks are added field by field."""

    expression: np.ndarray
    """[C, T] float64, sum over the control cells of each context, on the scale of the recipe."""
    cells: np.ndarray
    """[C] int64, number of control cells of each context."""


class TargetGenes:
    """Where the target genes of a source's labels are, and what is measured of them.

    Attributes:
        labels: [L] str, the distinct labels of the source; a label code is a place in it.
        control: code of the control label.
        columns: [T] int64, columns of the target genes that the source measures, rising.
        index: [L, P] int64, place in ``columns`` of each target gene of a label, P being the largest number of
            target genes; -1 where a label has fewer of them (the control has none), -2 where one is not measured.
    """

    def __init__(
        self,
        labels: Sequence[str],
        control: str,
        separator: str,
        genes: np.ndarray,
        scale: Literal["linear", "log1p", "given"],
    ) -> None:
        """Find the target genes.

        Args:
            labels: distinct labels of the source, the control among them.
            control: label of the control cells.
            separator: what joins the target genes of a combination.
            genes: [G] str, distinct symbols, columns of the counts.
            scale: expression is counts per 10,000 of the cell's depth in this source, or log1p of them; ``given``
                where the matrices that follow hold expression already.
        """
        self.labels = list(labels)
        self.control = self.labels.index(control)
        self._scale = scale
        targets = [[] if label == control else label.split(separator) for label in self.labels]
        number = np.array([len(names) for names in targets])
        columns = pd.Index(genes).get_indexer(pd.Index([name for names in targets for name in names], dtype=object))
        self.columns = np.unique(columns[columns >= 0]).astype(np.int64)
        self._places = np.full(len(genes), _NO_TARGET, np.int64)
        self._places[self.columns] = np.arange(len(self.columns))
        self.index = np.full((len(self.labels), max(1, number.max())), _NO_TARGET, np.int64)
        self.index[np.arange(self.index.shape[1]) < number[:, None]] = np.where(
            columns >= 0, np.searchsorted(self.columns, columns), _UNMEASURED
        )

    def measure(self, counts: sp.csr_matrix, labels: np.ndarray) -> np.ndarray:
        """Expression of the cells' own target genes.

        Args:
            counts: [m, G] int32 with sorted indices, UMI, all genes of the file; or expression.
            labels: [m] label code of each cell.

        Returns:
            [m, P] float32; NaN where a label has fewer target genes, or one is not measured. A cell's values depend
            on nothing but the cell.
        """
        which = self.index[labels]
        expression = np.full(which.shape, np.nan, np.float32)
        cell, target = np.nonzero(which >= 0)
        found = np.asarray(counts[cell, self.columns[which[cell, target]]]).ravel()
        expression[cell, target] = self._scaled(found, cell, counts)
        return expression

    def control_sums(self, counts: sp.csr_matrix, contexts: np.ndarray, n_contexts: int) -> ControlSums:
        """Sum the expression of every measured target gene over control cells.

        Every value is rounded to a multiple of 2^-24 first. Sums of such numbers are exact in float64 as long as they
        stay below 2^29 (half a billion counts per 10,000), so that neither the cut into chunks nor their order
        changes a bit of the total; the rounding moves a mean by 3e-8 at most.

        Args:
            counts: [m, G] int32, UMI, control cells only, all genes of the file; or expression.
            contexts: [m] context code of each cell.
            n_contexts: number of contexts, C.
        """
        place = self._places[counts.indices]
        chosen = np.flatnonzero(place >= 0)
        cell = np.searchsorted(counts.indptr, chosen, side="right") - 1
        values = np.rint(self._scaled(counts.data[chosen], cell, counts) / _QUANTUM) * _QUANTUM
        shape = (n_contexts, len(self.columns))
        place = contexts[cell].astype(np.int64) * shape[1] + place[chosen]
        sums = np.bincount(place, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
        return ControlSums(sums, np.bincount(contexts, minlength=n_contexts))

    def _scaled(self, values: np.ndarray, cell: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
        """Expression of values [n] of the rows ``cell`` [n] of ``counts``; float64, 0 in an empty cell."""
        if self._scale == "given":
            return values
        scaled = values * _SCALED_DEPTH / np.maximum(depth_of(counts), 1)[cell]
        return np.log1p(scaled) if self._scale == "log1p" else scaled


class KnockDown(NamedTuple):
    """Which cells the knock-down filter keeps."""

    keep: np.ndarray
    """[N] bool."""
    dropped: dict[str, int]
    """Reason -> number of cells, each under one reason; none that is 0."""
    report: dict[str, list[Any]]
    """A table by column, one row for each context and perturbation, fit for JSON: context and perturbation (names),
    ratio (mean expression of the target gene over that of control cells, of the target gene where it is largest; null
    where none is measured and expressed), before and after (number of cells)."""


def knocked_down(
    labels: np.ndarray,
    contexts: np.ndarray,
    expression: np.ndarray,
    controls: ControlSums,
    targets: TargetGenes,
    names: Sequence[str],
    config: KnockDownConfig,
) -> KnockDown:
    """Keep what was knocked down, in three stages, each strict as in cell-load.

    In each context: (1) perturbations whose mean expression of the target gene is below ``perturbation`` times that
    of the control cells; (2) of these, cells whose own is below ``cell`` times that; (3) of these, perturbations with
    at least ``minimum_cells`` cells left. Of a combination, each target gene must pass (1) and (2). Control cells
    stay. A target gene that the source does not measure, or whose control mean is 0 (up to 1e-8, as cell-load; or
    that has no control cell), fails its perturbation; with ``unmeasured: keep`` it is not judged, and a perturbation
    of such target genes alone passes all stages.

    Args:
        labels: [N] label code of every cell of the source.
        contexts: [N] context code.
        expression: [N, P] float32 of :meth:`TargetGenes.measure`.
        controls: of all control cells of the source.
        targets: the target genes of the labels.
        names: [C] name of each context.
        config: the thresholds.
    """
    cells = np.flatnonzero(labels != targets.control)
    pairs, group, before = np.unique(
        contexts[cells].astype(np.int64) * len(targets.labels) + labels[cells], return_inverse=True, return_counts=True
    )
    context, label = np.divmod(pairs, len(targets.labels))
    control = _control_means(controls, context, targets.index[label])
    silent = np.isclose(control, 0.0)
    control[silent] = np.nan  # as where a target gene is not measured: no ratio to it, and nothing fails by it
    ratio, weak = _ratios(expression, cells, group, control, config.cell)
    drops = config.unmeasured == "drop"
    of_targets = {
        "knock-down: target gene not measured": drops & (targets.index[label] == _UNMEASURED),
        "knock-down: target gene not expressed in control cells": drops & silent,
        f"knock-down: perturbation not below {config.perturbation:g} of control": ratio >= config.perturbation,
    }
    fails = {reason: np.any(failing, axis=1)[group] for reason, failing in of_targets.items()}
    fails[f"knock-down: cell not below {config.cell:g} of control"] = weak
    largest = np.fmax.reduce(ratio, axis=1)  # NaN only where no target gene is judged
    left = np.bincount(group[_first_reasons(fails)[0]], minlength=len(pairs))
    few = ~np.isnan(largest) & (left < config.minimum_cells)
    fails[f"knock-down: fewer than {config.minimum_cells} cells left"] = few[group]
    stays, dropped = _first_reasons(fails)
    keep = np.ones(len(labels), bool)
    keep[cells] = stays
    report = {
        "context": [names[code] for code in context],
        "perturbation": [targets.labels[code] for code in label],
        "ratio": [None if np.isnan(value) else round(value, 4) for value in largest.tolist()],
        "before": before.tolist(),
        "after": np.bincount(group[stays], minlength=len(pairs)).tolist(),
    }
    return KnockDown(keep, dropped, report)


def _control_means(controls: ControlSums, context: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Mean expression of target genes (``which`` [n, P]) in control cells, [n, P]; NaN where one is not measured."""
    means = controls.expression / np.maximum(controls.cells, 1)[:, None]
    # A column more, for a place that is no column (-1, -2).
    return np.pad(means, ((0, 0), (0, 1)), constant_values=np.nan)[context[:, None], np.maximum(which, -1)]


def _ratios(
    expression: np.ndarray, cells: np.ndarray, group: np.ndarray, control: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean expression of each group of ``cells`` over ``control``, [n, P], and which cells are not below a ratio."""
    ratio, weak = np.empty(control.shape), np.zeros(len(cells), bool)
    for place, to in enumerate(control.T):  # [m, P] of float64 would be large: one target gene at a time
        own = expression[cells, place].astype(np.float64)
        ratio[:, place] = np.bincount(group, own, minlength=len(to)) / np.bincount(group, minlength=len(to)) / to
        weak |= own / to[group] >= threshold
    return ratio, weak
