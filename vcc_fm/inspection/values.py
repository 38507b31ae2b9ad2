"""What a matrix of a file holds, and why: told from some cells, or from every value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.inspection.scale import BY_COLUMN, Told, TotalsFacts, tell, with_totals
from vcc_fm.sources.evidence import CountEvidence, ScaledEvidence, no_evidence
from vcc_fm.sources.integers import Integers, doubts, per_cell
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

    name: str  # as a recipe writes it: X, raw, layers/NAME
    encoding: str  # CSR, CSC or dense
    stored: str  # dtype
    cells: int
    genes: int
    looked_at: int  # number of cells that the following was told from
    values_per_cell: float  # mean number of non-zero values
    found: str | None  # what ``values`` of a recipe is to be; None where nothing is proved
    told: bool  # false for a large matrix by column that may hold scaled cells: some columns do not tell
    sentence: str
    spoiled: str | None  # what keeps nearly counts, or raw cells among others, from being read
    evidence: dict[str, Any] | None
    proved: float  # share of the cells whose counts are proved, with ``totals`` if given; 0 if none are found
    totals_tried: list[TotalsFacts]
    totals: str | None  # the obs column that is worth giving as ``totals_column``
    doubts: list[str]
    depth: dict[str, float] | None  # percentiles of a cell's counts (UMI), or else of the sum of its stored values
    genes_per_cell: dict[str, float] | None
    empty_cells: int  # cells without a value
    empty_of: int  # of so many: all of a CSR matrix, else those looked at

    @property
    def lost(self) -> int:
        """About how many cells of the file have no proved counts."""
        return round((1 - self.proved) * self.cells)


class _Tally:
    """What is added up over cells that are read in one way."""

    def __init__(self, reading: Reading | float | None) -> None:
        self.reading = reading
        self.evidence = no_evidence(reading)
        self.integers = Integers()
        self.cells = self.stored = self.missing = 0
        self.lowest, self.highest = np.inf, -np.inf
        self.depth: list[np.ndarray] = []  # sum of each cell
        self.genes: list[np.ndarray] = []  # number of non-zero values of each cell

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
        if len(finite):
            self.lowest = min(self.lowest, float(finite.min()))
            self.highest = max(self.highest, float(finite.max()))
        self.genes.append(per_cell(values != 0, block.indptr))
        if isinstance(self.reading, Reading):
            check(values)
            cells = fit(values, block.indptr, self.reading, totals)
            assert isinstance(self.evidence, ScaledEvidence)
            self.evidence.add(cells, totals)
            self.depth.append(cells.depth[(cells.code == PROVED) & (cells.unit > 0)])
        elif self.reading is None:
            self.depth.append(per_cell(values, block.indptr))
        else:
            counts, residual = recover(values, self.reading)
            assert isinstance(self.evidence, CountEvidence)
            self.evidence.add(len(block.indptr) - 1, values, counts, residual)
            self.depth.append(per_cell(counts, block.indptr))
            block = block._replace(data=counts)
        self.integers.add(rows, block)

    @property
    def share(self) -> float:
        """Share of the cells whose counts are proved."""
        if isinstance(self.evidence, ScaledEvidence):
            return self.evidence.share
        return 0.0 if self.reading is None else 1.0

    def spoiled(self, names: tuple[pd.Index, pd.Index]) -> str | None:
        """What few values keep cells from being read as counts, in words; None where the reading stands."""
        if isinstance(self.reading, float) or (self.share >= ENOUGH and not self.integers.mostly_whole):
            return None
        return self.integers.said(*names)

    def doubts(self) -> list[str]:
        """What speaks against counts although every value is one."""
        return doubts(self.integers, np.concatenate(self.depth), self.highest) if self.reading == 0.0 else []


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
    dense = isinstance(matrix, DenseMatrix)
    kept = stored if dense else stored["data"]
    n_stored = int(np.prod(kept.shape))
    whole = not isinstance(matrix, CscMatrix) or progress is not None or n_stored <= _TURNED_VALUES
    told, tally, spoiled = _read(matrix, whole, names, totals, progress)
    found, evidence, sentence = _explained(told, tally)
    by_row = isinstance(matrix, CsrMatrix)
    lengths = np.diff(stored["indptr"][:]) if by_row else np.concatenate(tally.genes)
    facts = MatrixFacts(
        name=name,
        encoding="dense" if dense else "CSR" if by_row else "CSC",
        stored=str(kept.dtype),
        cells=matrix.shape[0],
        genes=matrix.shape[1],
        looked_at=tally.cells,
        values_per_cell=tally.stored / tally.cells if whole else n_stored / matrix.shape[0],
        found=found,
        told=told.sentence != BY_COLUMN,
        sentence=sentence,
        spoiled=spoiled,
        evidence=evidence,
        proved=tally.share if found else 0.0,
        totals_tried=list(told.tried),
        totals=told.totals,
        doubts=tally.doubts() if whole else [],
        depth=_percentiles(tally.depth) if whole and not tally.missing and tally.lowest >= 0 else None,
        genes_per_cell=_percentiles(tally.genes) if whole and found else None,
        empty_cells=int((lengths == 0).sum()) if whole else 0,
        empty_of=len(lengths),
    )
    return facts, told.reading


def _read(
    matrix: Matrix,
    whole: bool,
    names: tuple[pd.Index, pd.Index],
    totals: dict[str, np.ndarray],
    progress: Progress | None,
) -> tuple[Told, _Tally, str | None]:
    """What a sample of cells is told to be, what was read of it or of all cells, and what spoils the reading."""
    rows = _spread(matrix.shape[0], _NEIGHBOURS if isinstance(matrix, DenseMatrix) else 1)
    sample = [(rows, whole_cells(matrix, rows) if whole else matrix.sample(rows))]
    told = with_totals(tell(sample[0][1], matrix.shape[1], whole), sample[0][1], rows, totals)
    tally, _ = _tally(sample, told.reading, totals.get(told.totals or ""))
    spoiled = tally.spoiled(names) if whole else None
    if progress is not None and spoiled is None:
        tally, error = _tally(_every(matrix, progress), told.reading, totals.get(told.totals or ""))
        # Of many cells a few may be wrong where the sample has none; and what is told is told of all.
        told = told._replace(
            tried=tuple(replace(one, proved=tally.share) for one in told.tried if one.column == told.totals)
        )
        spoiled = tally.spoiled(names) if error is None else f"{told.sentence}, in the sample; {error}"
    if spoiled is not None:
        tally, _ = _tally(sample if progress is None else _every(matrix, progress), None, None)
        spoiled = tally.integers.said(*names) or spoiled
        told = Told(None, spoiled)
    return told, tally, spoiled


def _spread(cells: int, neighbours: int) -> np.ndarray:
    """Rows of up to ``SAMPLE_CELLS`` cells spread over a file, in runs of ``neighbours``; [n] int64, sorted."""
    if cells <= SAMPLE_CELLS:
        return np.arange(cells, dtype=np.int64)
    starts = np.linspace(0, cells - neighbours, SAMPLE_CELLS // neighbours).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(neighbours)).ravel())


def _every(matrix: Matrix, progress: Progress) -> Iterator[tuple[np.ndarray, Block]]:
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
            column, value = block.indices[error.position], block.data[error.position]
            return tally, f"row {row}, column {column} holds {value:.9g}: {error.reason}"
    return tally, None


def _explained(told: Told, tally: _Tally) -> tuple[str | None, dict[str, Any] | None, str]:
    """What was found, the evidence, and both in a sentence."""
    if told.reading is None:
        said = [told.sentence]
        if tally.missing:
            said.append(f"missing or infinite: {tally.missing:,} of {many(tally.missing + tally.stored, 'value')}")
        if np.isfinite(tally.lowest) and tally.stored:
            said.append(f"values from {tally.lowest:.4g} to {tally.highest:.4g}")
        return None, None, "; ".join(said)
    evidence = tally.evidence.summary()
    residual, largest = evidence["largest_residual"], f"largest count {evidence['largest_count']:,}"
    if isinstance(told.reading, Reading):
        said = [evidence["sentence"]]
        said += [f"{number} not: {why.partition(': ')[2]}" for why, number in evidence["cells_unproved"].items()]
        return evidence["found"], evidence, "; ".join([*said, f"largest residual {residual:.1g}, {largest}"])
    base = BASE_NAMES.get(told.reading)
    scale = f"{told.sentence}, to base {base}" if base else told.sentence
    each = f"each of {many(evidence['n_values'], 'value')} " + ("gives an integer back" if base else "is an integer")
    each += f" (to {residual:.1g})" if residual else ""
    return "log1p-counts" if base else "counts", evidence | {"base": base}, f"{scale}: {each}; {largest}"


def _percentiles(parts: list[np.ndarray]) -> dict[str, float] | None:
    numbers = np.concatenate(parts)
    if not len(numbers):
        return None
    values = np.percentile(numbers, _PERCENTILES).tolist()
    return dict(zip(map(str, _PERCENTILES), values, strict=True))
