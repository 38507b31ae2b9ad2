"""What a matrix of a file holds, and why: told from some cells, or from every value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.inspection.scale import BY_COLUMN, Told, TotalsFacts, tell, try_totals
from vcc_fm.sources.evidence import CountEvidence, ScaledEvidence, no_evidence
from vcc_fm.sources.integers import Integers
from vcc_fm.sources.matrix import Block, CscMatrix, CsrMatrix, DenseMatrix, Matrix, whole_cells
from vcc_fm.sources.proof import BASE_NAMES, PROVED, Reading
from vcc_fm.sources.scaled import fit
from vcc_fm.sources.values import NotCountsError, check, recover

Progress = Callable[[int, int], None]

ENOUGH = 0.99
"""Share of proved cells that a recipe asks for where it does not say."""
SAMPLE_CELLS = 256
VALUES_AT_A_TIME = 1 << 22
_NEIGHBOURS = 16  # cells of a dense sample that stand side by side: they share the chunks that have to be unpacked
_TURNED_VALUES = 1 << 25  # a matrix by column of so many values is turned by row within seconds
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True)
class MatrixFacts:
    """What one matrix holds."""

    name: str
    """As a recipe writes it: X, raw, layers/NAME."""
    encoding: str
    """CSR, CSC or dense."""
    stored: str
    """dtype."""
    cells: int
    genes: int
    bytes: int
    """Size in memory, as stored."""
    looked_at: int
    """Number of cells that the following was told from."""
    values_per_cell: float
    """Mean number of non-zero values."""
    found: str | None
    """What ``values`` of a recipe is to be; None where nothing is proved."""
    told: bool
    """False for a large matrix by column that may hold scaled cells: some columns do not tell."""
    sentence: str
    spoiled: str | None
    """What keeps nearly counts, or raw cells among others, from being read."""
    evidence: dict[str, Any] | None
    proved: float
    """Share of the cells whose counts are proved, with ``totals`` where that is given; 0 where nothing is found."""
    totals_tried: list[TotalsFacts]
    totals: str | None
    """The obs column that is worth giving as ``totals_column``."""
    doubts: list[str]
    depth: dict[str, float] | None
    """Percentiles of a cell's counts (UMI), or of the sum of its stored values where there are no counts."""
    genes_per_cell: dict[str, float] | None
    empty_cells: int
    """Cells without a value."""
    empty_of: int
    """Of so many: all of a CSR matrix, else those looked at."""


class _Tally:
    """What is added up over cells that are read in one way."""

    def __init__(self, reading: Reading | float | None) -> None:
        self.reading = reading
        self.evidence = no_evidence(reading)
        self.integers = Integers()
        self.cells = self.stored = self.missing = self.negative = 0
        self.lowest, self.highest = np.inf, -np.inf
        self._depth: list[np.ndarray] = []
        self._genes: list[np.ndarray] = []
        self._least: list[np.ndarray] = []

    def add(self, rows: np.ndarray, block: Block, totals: np.ndarray | None) -> None:
        """Add the cells at ``rows`` ([cells] int64), with their depths ([cells] int64) where the reading uses them.

        Raises:
            NotCountsError: a value is no count on the scale that was found.
        """
        values = block.data
        finite = values[np.isfinite(values)]
        self.cells += len(block.indptr) - 1
        self.stored += int(np.count_nonzero(values))
        self.missing += len(values) - len(finite)
        self.negative += int((finite < 0).sum())
        if len(finite):
            self.lowest = min(self.lowest, float(finite.min()))
            self.highest = max(self.highest, float(finite.max()))
        self._genes.append(_per_cell(values != 0, block.indptr))
        if not isinstance(self.reading, float):
            self.integers.add(rows, block)
        if isinstance(self.reading, Reading):
            check(values)
            cells = fit(values, block.indptr, self.reading, totals)
            assert isinstance(self.evidence, ScaledEvidence)
            self.evidence.add(cells, totals)
            self._depth.append(cells.depth[(cells.code == PROVED) & (cells.unit > 0)])
        elif self.reading is None:
            self._depth.append(_per_cell(values, block.indptr))
        else:
            counts, residual = recover(values, self.reading)
            assert isinstance(self.evidence, CountEvidence)
            self.evidence.add(len(block.indptr) - 1, values, counts, residual)
            self._depth.append(_per_cell(counts, block.indptr))
            filled = np.flatnonzero(np.diff(block.indptr))
            if len(filled):
                above = np.where(counts > 0, counts, np.iinfo(np.int32).max)
                self._least.append(np.minimum.reduceat(above, block.indptr[filled]))

    @property
    def depth(self) -> np.ndarray:
        """Sum of each cell."""
        return np.concatenate([*self._depth, np.zeros(0)])

    @property
    def genes(self) -> np.ndarray:
        """Number of non-zero values of each cell."""
        return np.concatenate([*self._genes, np.zeros(0)])

    @property
    def share(self) -> float:
        """Share of the cells whose counts are proved."""
        if isinstance(self.evidence, ScaledEvidence):
            return self.evidence.share
        return 0.0 if self.reading is None else 1.0

    def doubts(self) -> list[str]:
        """What speaks against counts although every value is one."""
        depth, least = self.depth, np.concatenate([*self._least, np.zeros(0)])
        if self.reading != 0.0 or isinstance(self.reading, Reading) or len(least) < 20:
            return []
        if self.highest == 1:
            return ["no value is above 1: counts made binary, or of a few genes only; compare with another matrix"]
        if depth.std() < 0.01 * depth.mean():
            return ["integers, but all cells add up to nearly the same: rounded after normalisation, so no counts"]
        if (least > 1).mean() > 0.5:
            return ["integers, but most cells hold no 1: multiples of counts, or rounded values, rather than counts"]
        return []


def look(
    name: str,
    stored: Any,
    matrix: Matrix,
    names: tuple[pd.Index, pd.Index],
    totals: dict[str, np.ndarray],
    progress: Progress | None,
) -> tuple[MatrixFacts, Reading | float | None]:
    """Tell what a matrix holds.

    Args:
        name: of the matrix, as a recipe writes it.
        stored: the same in the open file.
        matrix: opened for reading by row.
        names: of its cells and of its genes, for messages.
        totals: obs column -> [cells] int64, what may be each cell's depth before normalisation (UMI).
        progress: told (rows done, rows); every value is read where it is given, a sample of cells where not.

    Returns:
        The facts, and how the values give counts (base of the log or 0, or the reading of scaled cells, or None).

    Raises:
        UserError: the file is damaged.
    """
    kept = stored if isinstance(matrix, DenseMatrix) else stored["data"]
    cells, genes = matrix.shape
    n_stored = int(np.prod(kept.shape))
    by_column = isinstance(matrix, CscMatrix)
    by_row = isinstance(matrix, CsrMatrix)
    whole = not by_column or progress is not None or n_stored <= _TURNED_VALUES
    rows = spread(cells, SAMPLE_CELLS, _NEIGHBOURS if isinstance(matrix, DenseMatrix) else 1)
    block = whole_cells(matrix, rows) if whole and len(rows) else matrix.sample(rows) if len(rows) else _nothing()
    told = tell(block, genes, whole)
    tried, best = try_totals(block, rows, told.reading, totals)
    reading = told.reading if best is None else best[1]
    column = None if best is None else best[0]
    tally, error = _tally([(rows, block)], reading, totals.get(column or ""))
    assert error is None
    spoiled = None
    if whole and not isinstance(reading, float) and (tally.share < ENOUGH or tally.integers.mostly_whole):
        spoiled = tally.integers.said(*names)
    if progress is not None and spoiled is None:
        tally, error = _tally(_every(matrix, progress), reading, totals.get(column or ""))
        # Of many cells a few may be wrong where the sample has none; and what is told is told of all.
        tried = [TotalsFacts(one.column, one.use, tally.share) for one in tried if one.column == column]
        if error is not None:
            spoiled = f"{told.sentence}, in the sample; {error}"
        elif not isinstance(reading, float) and tally.share < ENOUGH:
            spoiled = tally.integers.said(*names)
    if spoiled is not None:
        told, reading, tried, column = Told(None, spoiled), None, [], None
        tally, _ = _tally([(rows, block)] if progress is None else _every(matrix, progress), None, None)
        spoiled = tally.integers.said(*names) or spoiled
        told = Told(None, spoiled)
    found, evidence, sentence = _explained(told, tally)
    lengths = np.diff(stored["indptr"][:]) if by_row else tally.genes
    facts = MatrixFacts(
        name=name,
        encoding="dense" if isinstance(matrix, DenseMatrix) else "CSC" if by_column else "CSR",
        stored=str(kept.dtype),
        cells=cells,
        genes=genes,
        bytes=n_stored * kept.dtype.itemsize + (0 if isinstance(matrix, DenseMatrix) else n_stored * 4),
        looked_at=tally.cells,
        values_per_cell=tally.stored / max(tally.cells, 1) if whole else n_stored / max(cells, 1),
        found=found,
        told=told.sentence != BY_COLUMN,
        sentence=sentence,
        spoiled=spoiled,
        evidence=evidence,
        proved=tally.share if found else 0.0,
        totals_tried=tried,
        totals=column,
        doubts=tally.doubts() if whole else [],
        depth=_percentiles(tally.depth) if whole and not tally.missing and not tally.negative else None,
        genes_per_cell=_percentiles(tally.genes) if whole and found else None,
        empty_cells=int((lengths == 0).sum()) if whole else 0,
        empty_of=cells if by_row else tally.cells,
    )
    return facts, reading


def spread(cells: int, number: int, neighbours: int) -> np.ndarray:
    """Rows of up to ``number`` cells spread over ``cells``, in runs of ``neighbours``; [n] int64, sorted."""
    if cells <= number:
        return np.arange(cells, dtype=np.int64)
    starts = np.linspace(0, cells - neighbours, number // neighbours).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(neighbours)).ravel())


def _nothing() -> Block:
    return Block(np.zeros(0), np.zeros(0, np.int64), np.zeros(1, np.int64))


def _every(matrix: Matrix, progress: Progress) -> Iterable[tuple[np.ndarray, Block]]:
    for start, stop in matrix.ranges(VALUES_AT_A_TIME):
        yield np.arange(start, stop), matrix.block(start, stop)
        progress(stop, matrix.shape[0])


def _tally(
    parts: Iterable[tuple[np.ndarray, Block]], reading: Reading | float | None, totals: np.ndarray | None
) -> tuple[_Tally, str | None]:
    """Add all parts up, until one holds what contradicts the reading: what that is."""
    tally = _Tally(reading)
    for rows, block in parts:
        try:
            tally.add(rows, block, None if totals is None else totals[rows])
        except NotCountsError as error:
            row = rows[int(np.searchsorted(block.indptr, error.position, side="right")) - 1]
            return tally, (
                f"row {row}, column {block.indices[error.position]} holds {block.data[error.position]:.9g}: "
                f"{error.reason}"
            )
    return tally, None


def _explained(told: Told, tally: _Tally) -> tuple[str | None, dict[str, Any] | None, str]:
    """What was found, the evidence, and both in a sentence."""
    if told.reading is None:
        said = told.sentence
        if tally.missing:
            said += f"; missing or infinite: {tally.missing:,} of {many(tally.missing + tally.stored, 'value')}"
        if tally.negative:
            said += f"; negative: {tally.negative:,}"
        if np.isfinite(tally.lowest) and tally.stored:
            said += f"; values from {tally.lowest:.4g} to {tally.highest:.4g}"
        return None, None, said
    if isinstance(tally.evidence, ScaledEvidence):
        evidence = tally.evidence.summary()
        said = evidence["sentence"]
        for reason, number in evidence["cells_unproved"].items():
            said += f"; {number} not: {reason.partition(': ')[2]}"
        return (
            evidence["found"],
            evidence,
            said
            + (f"; largest residual {evidence['largest_residual']:.1g}, largest count {evidence['largest_count']:,}"),
        )
    assert not isinstance(told.reading, Reading)
    evidence = tally.evidence.summary()
    base = BASE_NAMES.get(told.reading)
    said = told.sentence + (f", to base {base}: each of " if base else ": each of ")
    said += f"{many(evidence['n_values'], 'value')} " + ("gives an integer back" if base else "is an integer")
    if evidence["largest_residual"]:
        said += f" (to {evidence['largest_residual']:.1g})"
    said += f"; largest count {evidence['largest_count']:,}"
    return "log1p-counts" if base else "counts", evidence | {"base": base}, said


def _per_cell(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """[cells] float64, sum of the values of each cell."""
    cells = len(indptr) - 1
    return np.bincount(np.repeat(np.arange(cells), np.diff(indptr)), weights=values, minlength=cells)


def _percentiles(numbers: np.ndarray) -> dict[str, float] | None:
    if not len(numbers):
        return None
    return {
        str(at): float(value) for at, value in zip(_PERCENTILES, np.percentile(numbers, _PERCENTILES), strict=True)
    }
