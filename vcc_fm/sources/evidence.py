"""What was found in a file of scaled cells, added up while it is read, as ``store.json`` tells it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from vcc_fm.sources.proof import BASE_NAMES, PROVED, REASONS, Fit, Reading


class CountEvidence:
    """Numbers of cells, values and residuals of a source of counts, or of their log1p."""

    def __init__(self) -> None:
        self._cells = self._values = self._largest = 0
        self._residual = 0.0

    def add(self, cells: int, stored: np.ndarray, counts: np.ndarray, residual: float) -> None:
        """Add cells, from their stored values, their counts (UMI), and the largest residual of a value."""
        self.absorb(
            {
                "n_cells": cells,
                "n_values": int(np.count_nonzero(stored)),
                "largest_residual": residual,
                "largest_count": int(counts.max(initial=0)),
            }
        )

    def state(self) -> dict[str, Any]:
        """All there is, as JSON values."""
        return self.summary()

    def absorb(self, state: dict[str, Any]) -> None:
        """Add the state of another."""
        self._cells += state["n_cells"]
        self._values += state["n_values"]
        self._residual = max(self._residual, state["largest_residual"])
        self._largest = max(self._largest, state["largest_count"])

    def summary(self) -> dict[str, Any]:
        """The evidence as JSON values."""
        return {
            "n_cells": self._cells,
            "n_values": self._values,
            "largest_residual": self._residual,
            "largest_count": self._largest,
        }


class ScaledEvidence:
    """Numbers of cells, residuals and depths of a scaled source."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.cells = 0
        self.unproved: Counter[str] = Counter()
        self._values = self._largest = 0
        self._residual = self._chance = 0.0
        self._depth: list[np.ndarray] = []
        self._whole: list[np.ndarray] = []

    def add(self, cells: Fit, totals: np.ndarray | None) -> None:
        """Add cells, with their depths before normalisation ([cells] int64, UMI) where these are known."""
        reading, proved = self._reading, (cells.code == PROVED) & (cells.unit > 0)
        self.cells += len(cells.code)
        for code, number in zip(*np.unique(cells.code[cells.code != PROVED], return_counts=True), strict=True):
            self.unproved[REASONS[int(code)]] += int(number)
        self._values += int(np.count_nonzero(cells.counts))
        self._largest = max(self._largest, int(cells.counts.max(initial=0)))
        self._residual = max(self._residual, float(cells.residual[proved].max(initial=0.0)))
        if reading.totals == "none":
            self._chance += float(np.exp2(-cells.fine[proved].astype(float)).sum())
        self._depth.append(cells.depth[proved])
        if totals is not None and reading.totals in ("exact", "sum"):
            self._whole.append(totals[proved].astype(float))
        elif reading.target:
            self._whole.append(reading.target / cells.unit[proved])

    def state(self) -> dict[str, Any]:
        """All there is: JSON values, and arrays of one number a cell."""
        return {
            "n_cells": self.cells,
            "unproved": dict(self.unproved),
            "n_values": self._values,
            "largest_count": self._largest,
            "largest_residual": self._residual,
            "chance": self._chance,
            "depth": np.concatenate([*self._depth, np.zeros(0, np.int64)]),
            "whole": np.concatenate([*self._whole, np.zeros(0)]),
        }

    def absorb(self, state: dict[str, Any]) -> None:
        """Add the state of another with the same reading."""
        self.cells += state["n_cells"]
        self.unproved.update(state["unproved"])
        self._values += state["n_values"]
        self._largest = max(self._largest, state["largest_count"])
        self._residual = max(self._residual, state["largest_residual"])
        self._chance += state["chance"]
        self._depth.append(state["depth"])
        self._whole.append(state["whole"])

    @property
    def share(self) -> float:
        """Share of the cells that are proved."""
        return 1.0 - self.unproved.total() / max(self.cells, 1)

    def summary(self) -> dict[str, Any]:
        """The evidence as JSON values."""
        reading = self._reading
        found = "log-normalised" if reading.base else "normalised"
        base = BASE_NAMES.get(reading.base)
        depth = np.concatenate([*self._depth, np.zeros(0, np.int64)])
        whole = np.concatenate([*self._whole, np.zeros(0)])
        share = float(np.median(depth / whole)) if len(whole) else None
        subset = bool((depth < whole * (1.0 - 1e-4) - 0.5).any()) if len(whole) else None
        kind = self._kind(whole)
        said = (
            f"counts scaled per cell to {reading.target:.10g}, {kind}"
            if reading.target
            else f"counts scaled by {kind}"
        )
        said += f", then log(1 + x) to base {base}" if base else ""
        said += f"; counts proved in {self.cells - self.unproved.total()} of {self.cells} cells"
        if subset:
            said += f"; the matrix holds a part of the genes (median {share:.1%} of a cell's depth)"
        return {
            "found": found,
            "base": base,
            "precision": str(reading.precision),
            "target": reading.target or None,
            "target_kind": kind,
            "totals": reading.totals,
            "n_cells": self.cells,
            "cells_proved": self.cells - self.unproved.total(),
            "cells_unproved": dict(sorted(self.unproved.items())),
            "n_values": self._values,
            "largest_residual": self._residual,
            "largest_count": self._largest,
            # A sum of floats follows the order of the chunks in its last digits.
            "expected_common_factors": float(f"{self._chance:.6g}") if reading.totals == "none" else None,
            "subset": subset,
            "depth_share": share,
            "sentence": said,
        }

    def _kind(self, whole: np.ndarray) -> str:
        target = self._reading.target
        if not target:
            return "a factor of its own for each cell"
        if len(whole) and abs(np.median(whole) / target - 1.0) < 1e-5:
            return "the median of the depths"
        return "a fixed target" if float(np.log10(target)).is_integer() else "a target common to the cells"


Evidence = CountEvidence | ScaledEvidence


def no_evidence(reading: Reading | float | None) -> Evidence:
    """Evidence of no cell yet, for a file that is read in this way."""
    return ScaledEvidence(reading) if isinstance(reading, Reading) else CountEvidence()
