"""What a scaled cell is said to be: how its file is read, its counts, and why they are proved or not.

How it is found stands in :mod:`vcc_fm.sources.scaled`, which compiles and takes 0.3 s to import.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

LEAST_VALUES = 20
LEAST_WITH_TOTALS = 3
FINE = 1e-3  # units

PROVED, NO_UNIT, COARSE, FEW, FACTOR, CONTRADICTED, STRANGE = range(7)
REASONS = {
    NO_UNIT: "counts not proved: values are no multiples of one unit",
    COARSE: "counts not proved: the stored precision cannot tell the largest counts apart",
    FEW: f"counts not proved: fewer than {LEAST_VALUES} values that are precise to {FINE:g} of a count, and no depth "
    "that fixes the unit",
    FACTOR: "counts not proved: known only up to a common factor",
    CONTRADICTED: "counts not proved: values and totals_column disagree",
    STRANGE: "counts not proved: too many multiples share a factor, as where some values are fractions of counts",
}

ScaledValues = Literal["normalised", "log-normalised"]
BASES = {"e": math.e, "2": 2.0, "10": 10.0}
BASE_NAMES = {value: name for name, value in BASES.items()}

Totals = Literal["none", "exact", "sum", "bound"]


@dataclass(frozen=True)
class Reading:
    """How the cells of one file are to be read."""

    base: float
    """Base of the log (e, 2 or 10); 0 where there is none."""
    precision: np.dtype
    """Numbers in which the values were computed: float32 values may be stored as float64."""
    target: float = 0.0
    """Common sum of the linear values of a whole cell; 0 where it is not known."""
    totals: Totals = "none"
    """What the depths of the cells are good for."""

    @property
    def eps(self) -> float:
        """Distance from 1 to the next number of the precision."""
        return float(np.finfo(self.precision).eps)


class Fit(NamedTuple):
    """Cells as read. The arrays but ``counts`` are [cells]."""

    counts: np.ndarray
    """[n] int32 UMI, one for each value; 0 in cells that are not proved."""
    code: np.ndarray
    """int8, ``PROVED`` or why not."""
    unit: np.ndarray
    """float64, what a count of 1 is in the linear scale; 0 where none was found."""
    spread: np.ndarray
    """float64, half of the interval of the unit, relative to it."""
    residual: np.ndarray
    """float64, largest distance of a value to its multiple, in units."""
    fine: np.ndarray
    """int64, number of fine values."""
    telling: np.ndarray
    """int64, fine values with another multiple than the smallest value: evidence that the reading is right."""
    depth: np.ndarray
    """int64, sum of the multiples of the unit (the counts, where proved)."""
    divisible: np.ndarray
    """[cells, 6] int64, fine values whose multiple is divisible by 2, 3, 5, 7, 11 and 13."""
