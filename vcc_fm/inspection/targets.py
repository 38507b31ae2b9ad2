"""Knock-down: a target gene's expression in the cells that are perturbed, over that in the control cells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.inspection.values import Progress
from vcc_fm.sources.integers import per_cell
from vcc_fm.sources.matrix import Block, Matrix
from vcc_fm.sources.proof import Reading
from vcc_fm.sources.quality import TargetGenes
from vcc_fm.sources.values import NotCountsError, check

LOW = 0.30
"""A target below this share of its expression in control cells counts as knocked down."""

SAMPLE_CELLS = 20_000
SAMPLE_VALUES = 1 << 26
_WINDOW = 64  # rows that stand together in a file and are read together
_LEAST_CELLS = 50  # of a perturbation in the sample
_NO_COMBINATIONS = "\0"  # a separator that no label holds: each label is one target gene
_GAP = 16  # rows that are read in vain rather than started anew
_ROWS_AT_A_TIME = 512
_LEAST_EXPECTED = 10.0  # perturbed cells in which the target would be seen, were it not knocked down
_LEAST_SEEN = 20  # control cells in which it is seen: a standard error of about a fifth


@dataclass(frozen=True)
class TargetFacts:
    """One perturbation."""

    perturbation: str
    cells: int
    ratio: float  # of mean depth-normalised expression of the target gene, to controls of its contexts


@dataclass(frozen=True)
class KnockDown:
    """All perturbations of one target gene."""

    reason: str | None = None  # why nothing is told; the rest is empty then
    cells: int = 0  # cells that were read, controls among them
    of_cells: int = 0
    perturbations: int = 0  # of one target gene
    read: int = 0  # of these, how many have a target that was measured, and cells in the sample
    targets: list[TargetFacts] = field(default_factory=list)  # those that can be judged, the highest ratio first
    not_measured: list[str] = field(default_factory=list)
    hardly_expressed: list[str] = field(default_factory=list)  # seen in too few of the cells read
    too_few_cells: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Median ratio."""
        return float(np.median([target.ratio for target in self.targets])) if self.targets else None

    @property
    def low(self) -> int:
        """Number of ratios below ``LOW``."""
        return sum(target.ratio < LOW for target in self.targets)


def knock_down(
    matrix: Matrix,
    reading: Reading | float,
    columns: np.ndarray,
    genes: np.ndarray,
    cells: pd.DataFrame,
    rows: np.ndarray,
    control: str,
    separator: str,
    values_per_cell: float,
    progress: Progress | None,
) -> KnockDown:
    """Measure what became of each target gene.

    A ratio compares with the control cells of the same contexts: their means are weighed by the perturbation's cells.

    Args:
        matrix: opened for reading by row.
        reading: of its values: base of the log of counts, 0 for counts, or of scaled cells.
        columns: [columns of the matrix] int32, position of each one's symbol in ``genes``.
        genes: [G] str, distinct symbols.
        cells: labels of the kept cells: columns context and perturbation.
        rows: [n] int64, row of each kept cell in the matrix, ascending.
        control: label of the control.
        separator: what joins the parts of a combination, which is left out.
        values_per_cell: of the matrix, to bound what is read of it.
        progress: told (rows done, rows); all cells are read where it is given, a sample where not.
    """
    single = [label for label in cells["perturbation"].unique() if label != control and separator not in label]
    known = set(genes)
    measured = [label for label in single if label in known]
    nothing = KnockDown(perturbations=len(single), not_measured=sorted(set(single) - known))
    if not measured:
        return replace(nothing, reason="no target gene is in the matrix")
    code = pd.Index([control, *measured]).get_indexer(pd.Index(cells["perturbation"]))
    context, names = pd.factorize(cells["context"])
    with_control = np.isin(context, np.unique(context[code == 0]))
    useful = np.flatnonzero((code >= 0) & with_control)
    chosen = useful
    if progress is None:
        limit = int(min(SAMPLE_CELLS, SAMPLE_VALUES / max(values_per_cell, 1.0)))
        chosen = useful[_sample(rows[useful], code[useful], context[useful], limit)]
    sums = _Sums(control, measured, len(names), genes)
    done = 0
    try:
        for block in _read(matrix, rows[chosen]):
            which = chosen[done : done + len(block.indptr) - 1]
            expression = sp.csr_matrix(
                (_linear(block, reading), columns[block.indices], block.indptr), (len(which), len(genes))
            )
            expression.sum_duplicates()
            sums.add(expression, code[which], context[which])
            done += len(which)
            if progress is not None:
                progress(done, len(chosen))
    except NotCountsError as error:
        return replace(nothing, reason=f"a value is {error.reason}, beyond the sample from which the matrix was told")
    return sums.judge(replace(nothing, cells=len(chosen), of_cells=len(useful)))


def _linear(block: Block, reading: Reading | float) -> np.ndarray:
    """Depth-normalised expression of each value of a block, float64, in a unit common to the cells.

    Counts are divided by the cell's sum; scaled cells are so already, whatever part of the genes the matrix holds.

    Raises:
        NotCountsError: a value is missing, infinite or negative.
    """
    check(block.data)
    values = block.data.astype(np.float64)
    base = reading.base if isinstance(reading, Reading) else reading
    if base:
        values = np.expm1(values * math.log(base))
    if isinstance(reading, Reading):
        return values
    depth = np.maximum(per_cell(values, block.indptr), 1.0)
    return values / np.repeat(depth, np.diff(block.indptr))


class _Sums:
    """Expression of the target genes, added up over control cells by context, and over each perturbation's cells."""

    def __init__(self, control: str, labels: list[str], contexts: int, genes: np.ndarray) -> None:
        self._labels = np.array(labels, dtype=object)
        self._targets = TargetGenes([control, *labels], control, _NO_COMBINATIONS, genes, "given")
        shape = (contexts, len(self._targets.columns))
        self._controls, self._sum, self._seen = np.zeros(contexts), np.zeros(shape), np.zeros(shape)
        self._cells, self._own = np.zeros((contexts, len(labels))), np.zeros(len(labels))

    def add(self, expression: sp.csr_matrix, code: np.ndarray, context: np.ndarray) -> None:
        """Add cells [m, G]; ``code`` [m] is 0 for a control, else 1 + position of the label."""
        control = code == 0
        for sums, values in ((self._sum, expression), (self._seen, (expression != 0).astype(np.float64))):
            found = self._targets.control_sums(values[control], context[control], len(self._controls))
            sums += found.expression
        self._controls += found.cells
        np.add.at(self._cells, (context[~control], code[~control] - 1), 1)
        own = self._targets.measure(expression[~control], code[~control])[:, 0]
        self._own += np.bincount(code[~control] - 1, weights=own, minlength=len(self._own))

    def judge(self, known: KnockDown) -> KnockDown:
        """Add what the sums tell of each perturbation."""
        target = self._targets.index[1:, 0]  # of each label
        controls = np.maximum(self._controls, 1.0)[:, None]
        sums, seen = self._sum[:, target], self._seen[:, target]
        expected = (self._cells * sums / controls).sum(axis=0)
        expected_seen = (self._cells * seen / controls).sum(axis=0)
        cells = self._cells.sum(axis=0)
        few = cells < _LEAST_EXPECTED
        hardly = (expected_seen < _LEAST_EXPECTED) | (((self._cells > 0) * seen).sum(axis=0) < _LEAST_SEEN)
        ratio = np.divide(self._own, expected, out=np.full(len(cells), np.nan), where=expected > 0)
        judged = np.flatnonzero(~few & ~hardly)
        targets = [TargetFacts(str(self._labels[at]), int(cells[at]), float(ratio[at])) for at in judged]
        return replace(
            known,
            read=int((cells > 0).sum()),
            targets=sorted(targets, key=lambda one: -one.ratio),
            hardly_expressed=sorted(self._labels[hardly & ~few]),
            too_few_cells=sorted(self._labels[(cells > 0) & few]),
        )


def _sample(rows: np.ndarray, code: np.ndarray, context: np.ndarray, limit: int) -> np.ndarray:
    """Positions of up to about ``limit`` cells, a fifth of them controls, spread evenly over all groups; ascending.

    Every group takes the cells whose windows of rows come first in one random order of windows, so that groups which
    lie mixed in the file are read from the same places.
    """
    if len(rows) <= limit:
        return np.arange(len(rows))
    rng = np.random.default_rng(0)
    window = rows // _WINDOW
    order = np.argsort(rng.permutation(int(window.max()) + 1)[window], kind="stable")
    group, _ = pd.factorize(pd.MultiIndex.from_arrays([code, context]))
    rank = np.empty(len(rows), np.int64)
    rank[order] = pd.Series(group[order]).groupby(group[order]).cumcount().to_numpy()
    control = code == 0
    n_controls = len(np.unique(group[control]))
    targets = np.unique(code[~control])
    most_targets = max(1, (limit - limit // 5) // _LEAST_CELLS)
    if len(targets) > most_targets:
        targets = targets[np.linspace(0, len(targets) - 1, most_targets).astype(int)]
    taken = np.isin(code, targets)
    n_groups = max(1, len(np.unique(group[taken])))
    left = limit - int((control & (rank < limit // 5 // n_controls)).sum())
    chosen = (taken & (rank < max(1, left // n_groups))) | (control & (rank < limit // 5 // n_controls))
    return np.flatnonzero(chosen)


def _read(matrix: Matrix, rows: np.ndarray) -> Iterator[Block]:
    """The cells at ``rows``, ascending, some hundreds at a time."""
    gaps = np.flatnonzero(np.diff(rows) > _GAP) + 1
    for span in np.split(rows, gaps):
        for start in range(0, len(span), _ROWS_AT_A_TIME):
            part = span[start : start + _ROWS_AT_A_TIME]
            yield matrix.block(int(part[0]), int(part[-1]) + 1).take(part - part[0])
