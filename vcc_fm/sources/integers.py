"""How many values of a matrix are integers: counts that a few values spoil, or raw cells among others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.sources.matrix import Block

_MOSTLY = 0.85  # share of integers among the values: reads that were shared out over genes leave more than that
_MIXED = 0.02  # share of the cells of either kind
_LEAST_CELLS = 20  # that tell
_LEAST_VALUES = 5  # of a cell that tells: all counts of fewer may well be scaled to integers


@dataclass
class Integers:
    """Numbers, added up over cells."""

    values: int = 0
    odd: int = 0
    """Values that are no integer, negative, missing or infinite."""
    cells: int = 0
    """Cells of enough values to tell."""
    odd_cells: int = 0
    """Cells with an odd value."""
    whole_cells: int = 0
    """Cells of integers only, 1 among them, which scaled cells of integers hardly hold; of the cells that tell."""
    scaled_cells: int = 0
    """Cells whose values are mostly odd, of the cells that tell."""
    first: tuple[int, int, float] | None = None
    """Row, column and value of the first odd one."""

    def add(self, rows: np.ndarray, block: Block) -> None:
        """Add the cells of a block, which are at ``rows`` ([cells] int64) of the file."""
        values = block.data
        odd = values < 0
        if values.dtype.kind == "f":
            odd |= ~np.isfinite(values) | (values != np.rint(values))
        filled = values != 0
        cell = np.repeat(np.arange(len(rows)), np.diff(block.indptr))
        odd_in = np.bincount(cell[odd], minlength=len(rows))
        in_cell = np.bincount(cell[filled], minlength=len(rows))
        telling = in_cell >= _LEAST_VALUES
        if self.first is None and odd.any():
            at = int(odd.argmax())
            self.first = int(rows[cell[at]]), int(block.indices[at]), float(values[at])
        self.values += int(filled.sum())
        self.odd += int(odd.sum())
        self.cells += int(telling.sum())
        self.odd_cells += int((odd_in > 0).sum())
        ones = np.bincount(cell[values == 1], minlength=len(rows))
        self.whole_cells += int((telling & (odd_in == 0) & (ones > 0)).sum())
        self.scaled_cells += int((telling & (odd_in > in_cell / 2)).sum())

    @property
    def mostly_whole(self) -> bool:
        """Whether most cells are of integers."""
        return self.whole_cells > self.cells / 2

    @property
    def mix(self) -> str | None:
        """That some cells are of integers and others scaled or logs, so that no one scale reads both, in words."""
        mixed = min(self.whole_cells, self.scaled_cells) >= max(1.0, _MIXED * self.cells)
        if not mixed and not (self.scaled_cells and self.mostly_whole):
            return None
        return (
            f"a mix: {self.whole_cells:,} of {many(self.cells, 'cell')} hold integers, {self.scaled_cells:,} hold "
            "scaled or log values"
        )

    def said(self, cells: pd.Index, genes: pd.Index) -> str | None:
        """What speaks against any one scale, in words; None where nothing does.

        Args:
            cells: barcodes of the file.
            genes: names of the columns.
        """
        if self.first is None:
            return None
        row, column, value = self.first
        first = f"first: cell {cells[row]}, gene {genes[column]}, {value:.6g}"
        if self.mix is not None:
            return f"{self.mix} ({first})"
        if self.odd < (1 - _MOSTLY) * self.values:
            return f"integers, except in {many(self.odd, 'value')} of {many(self.odd_cells, 'cell')} ({first})"
        return None


def per_cell(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """[cells] float64, sum of the values [n] of each cell, which starts at ``indptr`` ([cells + 1]) in them."""
    cells = len(indptr) - 1
    return np.bincount(np.repeat(np.arange(cells), np.diff(indptr)), weights=values, minlength=cells)


def doubts(integers: Integers, depth: np.ndarray, highest: float) -> list[str]:
    """What speaks against counts although every value is one; empty where cells are too few to tell.

    Args:
        integers: of the cells.
        depth: sum of each, [cells].
        highest: largest value.
    """
    if integers.cells < _LEAST_CELLS:
        return []
    if highest == 1:
        return ["no value is above 1: counts made binary, or of a few genes only; compare with another matrix"]
    if depth.std() < 0.01 * depth.mean():
        return ["integers, but all cells add up to nearly the same: rounded after normalisation, so no counts"]
    if not integers.mostly_whole:  # whole cells hold a 1
        return ["integers, but most cells hold no 1: multiples of counts, or rounded values, rather than counts"]
    return []


def doubts_of(block: Block) -> list[str]:
    """:func:`doubts` of the cells of a block."""
    integers = Integers()
    integers.add(np.arange(len(block.indptr) - 1), block)
    return doubts(integers, per_cell(block.data, block.indptr), float(block.data.max(initial=0)))


def mix_of(values: np.ndarray, indptr: np.ndarray) -> str | None:
    """:attr:`Integers.mix` of some cells: values [n], one cell after the other, and where each starts [cells + 1]."""
    integers = Integers()
    integers.add(np.arange(len(indptr) - 1), Block(values, np.zeros(len(values), np.int64), indptr))
    return integers.mix
