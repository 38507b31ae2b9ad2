"""Several seeds of one recipe in one table: mean and standard deviation over their score tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.means import ALL
from vcc_fm.scoring.table import ScoreTable

#: Under this name the scaled mean stands among the metrics.
SCALED_MEAN = "scaled mean"

_KEYS = ["entry", "kind", "context", "metric", "quantity"]


def over_seeds(tables: Mapping[str, ScoreTable]) -> pd.DataFrame:
    """Mean and sample standard deviation of every score over several seeds.

    Args:
        tables: name of a seed -> its score table.

    Returns:
        One row per (entry, kind, context, metric, quantity), quantity being ``scaled`` or ``raw``, metric one of the
        preset's or ``SCALED_MEAN``; columns label (of the metric), mean, sd (NaN for a single seed), runs, then one
        column per seed. Under context ``ALL`` stands the mean over contexts, only where every context has a value. A
        value that a seed lacks makes mean and sd NaN: a mean over fewer seeds than the column says would mislead.

    Raises:
        UserError: tables of different scorers, versions, presets, entries or contexts.
    """
    names = list(tables)
    one = tables[names[0]]
    first = (one.scorer, one.version, one.preset)
    columns = []
    for name, table in tables.items():
        found = (table.scorer, table.version, table.preset)
        if found != first:
            raise UserError(f"{name}: scored by {' '.join(found)}, but {names[0]} by {' '.join(first)}; score again")
        columns.append(_column(table.rows, table.means).rename(name))
        if not columns[-1].index.equals(columns[0].index):
            raise UserError(f"{name}: other entries or contexts than {names[0]}; compare seeds of one recipe")
    runs = pd.concat(columns, axis=1)
    runs.insert(0, "mean", runs[names].mean(axis=1, skipna=False))
    runs.insert(1, "sd", runs[names].std(axis=1, ddof=1, skipna=False) if len(names) > 1 else np.nan)
    runs.insert(2, "runs", len(names))
    runs = runs.reset_index()
    runs.insert(len(_KEYS), "label", runs["metric"].replace(one.labels))
    return runs


def to_markdown(comparison: pd.DataFrame, quantity: str = "scaled") -> str:
    """A Markdown table of a comparison: one line per entry, best scaled mean first, values as ``mean ± sd``.

    Args:
        comparison: from :func:`over_seeds`.
        quantity: ``scaled`` or ``raw``; the last column is the scaled mean in both.
    """
    overall = comparison[comparison["context"] == ALL]
    means = overall[overall["metric"] == SCALED_MEAN].sort_values("mean", ascending=False)
    values = overall[(overall["quantity"] == quantity) & (overall["metric"] != SCALED_MEAN)]
    texts = {
        (entry, metric): _text(mean, sd)
        for entry, metric, mean, sd in values[["entry", "metric", "mean", "sd"]].itertuples(index=False)
    }
    labels = dict(zip(values["metric"], values["label"], strict=True))
    lines = [
        "| entry | kind | " + " | ".join(labels.values()) + f" | {SCALED_MEAN} |",
        "|---|---|" + "---:|" * (len(labels) + 1),
    ]
    for entry, kind, mean, sd in means[["entry", "kind", "mean", "sd"]].itertuples(index=False):
        cells = [str(entry).replace("|", "\\|"), kind, *(texts[entry, metric] for metric in labels), _text(mean, sd)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _column(rows: pd.DataFrame, means: pd.DataFrame) -> pd.Series[float]:
    """Every number of one table, indexed by ``_KEYS`` in the table's order."""
    long = rows.melt(
        id_vars=["entry", "kind", "context", "metric"],
        value_vars=["scaled", "raw"],
        var_name="quantity",
        value_name="value",
    )
    groups = long.groupby(["entry", "kind", "metric", "quantity"], sort=False)["value"]
    overall = groups.agg(lambda values: values.mean(skipna=False)).reset_index().assign(context=ALL)
    summary = means.rename(columns={"scaled": "value"}).assign(metric=SCALED_MEAN, quantity="scaled")
    parts = [part[[*_KEYS, "value"]] for part in (long, overall, summary)]
    return pd.concat(parts, ignore_index=True).set_index(_KEYS)["value"]


def _text(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"
