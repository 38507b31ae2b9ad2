"""What the page's script works on: a row of each perturbation, and changes of those that can be chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vcc_fm.scoring.report.groups import Context, largest_and_some
from vcc_fm.scoring.report.tables import best_baseline, model_of
from vcc_fm.scoring.table import MOST_COLUMNS, ScoreTable

MOST_LISTED = 2000
"""Perturbations in the page's table."""
MOST_CHOSEN = 50
"""Perturbations whose changes are in the page."""
LARGEST, SAMPLE = 1000, 500
"""Genes of each: with the largest changes, and evenly of the others."""

_COLUMNS = {
    "context": ("context", "", 0),
    "perturbation": ("perturbation", "", 0),
    "cells": ("cells", "measured", 0),
    "emitted": ("cells", "emitted", 0),
    "significant": ("significant genes", "measured", 0),
    "size": ("size", "measured", 3),
    "predicted": ("size", "predicted", 3),
    "r": ("r", "of changes", 3),
    "rank": ("place", "by similarity", 1),
}
"""Column of the rows -> its head, what stands below it, and decimals."""


def parts_of(table: ScoreTable, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What each perturbation gives to each metric, of the model and of the best baseline, by their names.

    Args:
        table: the scores.
        rows: columns context and perturbation.

    Returns:
        A column for each metric, NaN where a perturbation has no value of its own, index as ``rows``.
    """
    places = pd.MultiIndex.from_frame(rows[["context", "perturbation"]])
    found = {}
    for entry in (model_of(table), best_baseline(table)):
        if entry is None:
            continue
        here = table.values[table.values["entry"] == entry]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = here["numerator"].to_numpy(float) / here["denominator"].to_numpy(float)
        wide = here.assign(value=np.where(np.isfinite(value), value, np.nan)).pivot(
            index=["context", "perturbation"], columns="metric", values="value"
        )
        found[entry] = wide.reindex(index=places, columns=list(table.metrics)).set_axis(rows.index)
    return found


def data_of(table: ScoreTable, contexts: Sequence[Context], rows: pd.DataFrame) -> dict[str, Any]:
    """The page's data, JSON without NaN: ``columns`` and ``rows`` of the table, ``genes`` and ``effects``.

    A change is an integer, in thousandths; ``at`` are positions in ``genes``, ``target`` one in ``at``.
    """
    listed = rows.head(MOST_LISTED)
    parts = parts_of(table, listed)
    columns: list[dict[str, Any]] = [
        {"head": head, "under": under, "digits": digits, "metric": -1, "values": listed[name]}
        for name, (head, under, digits) in _COLUMNS.items()
        if listed[name].notna().any()
    ]
    columns += [
        {"head": label, "under": entry, "digits": 3, "metric": number, "values": values[metric]}
        for number, (metric, label) in enumerate(table.labels.items())
        for entry, values in parts.items()
        if any(one[metric].notna().any() for one in parts.values())
    ]
    values = [[_plain(value) for value in column.pop("values")] for column in columns]
    chosen, by_name = rows.iloc[: sum(len(one.changes) for one in contexts)], {one.name: one for one in contexts}
    genes: dict[str, int] = {}
    effects = [_effect(row, by_name[str(row["context"])], genes) for row in chosen.to_dict("records")]
    return {
        "columns": columns,
        "rows": list(zip(*values, strict=True)),
        "most_metrics": MOST_COLUMNS,
        "effects": effects,
        "genes": list(genes),
    }


def _effect(row: dict[Any, Any], context: Context, genes: dict[str, int]) -> dict[str, Any]:
    """The changes of one perturbation; names of genes that are new are added to ``genes``."""
    measured, predicted = context.changes[row["perturbation"]]
    picked = largest_and_some(measured, predicted, LARGEST, SAMPLE)
    names = [str(name) for name in context.genes[picked]]
    return {
        "context": row["context"],
        "perturbation": row["perturbation"],
        "significant": _plain(row["significant"]),
        "r": _plain(row["r"]),
        "all": len(context.genes),
        "at": [genes.setdefault(name, len(genes)) for name in names],
        "measured": [round(1000 * value) for value in measured[picked].tolist()],
        "predicted": [round(1000 * value) for value in predicted[picked].tolist()],
        "target": names.index(row["perturbation"]) if row["perturbation"] in names else -1,
    }


def _plain(value: Any) -> Any:
    """A text, or a number with four digits; None where there is none."""
    if isinstance(value, str):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    return int(number) if number.is_integer() else float(f"{number:.4g}")
