"""The depth of each cell before it was scaled, where a column of the table of cells says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vcc_fm.ground.arrays import made_once
from vcc_fm.ground.errors import UserError
from vcc_fm.sources.labels import Labels
from vcc_fm.sources.obs import ranges


def read_totals(labels: Labels, column: str | None, where: str, path: Path | None) -> np.ndarray | None:
    """Depth of each kept cell, [n] int64 UMI; None where no column says it.

    Args:
        labels: of the kept cells.
        column: of their table.
        where: source and file, for messages.
        path: of the file where they are kept for all processes, if anywhere.

    Raises:
        UserError: there is no such column, or it holds something else.
    """
    if column is None:
        return None
    if column not in labels.obs.columns:
        raise UserError(
            f"{where}: obs has no column {column!r} (totals_column); set it to one of "
            + ", ".join(map(str, labels.obs.columns))
        )
    arrays, _ = made_once(path, lambda: ({"totals": _read(labels, column, where)}, {}))
    return arrays["totals"]


def _read(labels: Labels, column: str, where: str) -> np.ndarray:
    depths, rows = np.empty(len(labels.rows), np.int64), labels.rows
    for start, stop in ranges(len(labels.obs)):
        values = labels.obs.read(column, start, stop)
        if not pd.api.types.is_numeric_dtype(values):
            raise UserError(f"{where}: totals_column {column!r} holds {values.dtype}, no numbers")
        first, last = np.searchsorted(rows, np.array([start, stop], rows.dtype))
        totals = values.to_numpy(np.float64, na_value=np.nan)[rows[first:last].astype(np.int64) - start]
        wrong = ~((totals >= 0) & (totals == np.rint(totals)) & (totals < 2.0**53))
        if wrong.any():
            cell = labels.barcode(int(first + wrong.argmax()))
            raise UserError(
                f"{where}: totals_column {column!r} holds {totals[wrong.argmax()]:g} for cell {cell!r}; give the "
                "column with the UMI count of each cell, or none"
            )
        depths[first:last] = totals
    return depths
