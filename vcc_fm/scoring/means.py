"""The scaled mean of an entry, and when there is none: a mean over few metrics, or over guesses, is no headline."""

from __future__ import annotations

import pandas as pd

#: The name under which the mean over contexts is filed.
ALL = "all contexts"


def uncertain(anchors: pd.DataFrame) -> pd.Series[bool]:
    """Which scales are hardly known: the replicate's splits differ by more than half of the scale's length.

    Args:
        anchors: columns baseline, replicate, replicate_sd, reason.
    """
    length = (anchors["replicate"] - anchors["baseline"]).abs()
    return (anchors["reason"] == "") & (anchors["replicate_sd"] > length / 2)


def without_mean(anchors: pd.DataFrame, needed: int) -> dict[str, str]:
    """Context -> why it has no scaled mean: fewer than ``needed`` metrics have a scale, or none has a certain one.

    Args:
        anchors: one row per (context, metric), columns context, baseline, replicate, replicate_sd, reason.
        needed: number of metrics.
    """
    reasons = {}
    for context, part in anchors.groupby("context", sort=False):
        defined = int((part["reason"] == "").sum())
        if defined < needed:
            reasons[str(context)] = f"{defined} of {len(part)} metrics have a scale, a mean needs {needed}"
        elif int(uncertain(part).sum()) == defined:
            reasons[str(context)] = f"the scales of all {defined} defined metrics are uncertain"
    return reasons


def scaled_means(rows: pd.DataFrame, anchors: pd.DataFrame, needed: int) -> pd.DataFrame:
    """Scaled mean of every entry: per context over the metrics present, then the mean over contexts.

    Args:
        rows: columns entry, kind, context, metric, scaled (NaN where undefined).
        anchors: see :func:`without_mean`; a context that has no mean gets NaN, and so does the mean over contexts.
        needed: see :func:`without_mean`.

    Returns:
        Columns entry, kind, context (``ALL`` for the mean over contexts), scaled, present, members.
    """
    groups = rows.groupby(["entry", "kind", "context"], sort=False)["scaled"]
    by_context = groups.agg(scaled="mean", present="count", members="size").reset_index()
    by_context.loc[by_context["context"].isin(list(without_mean(anchors, needed))), "scaled"] = float("nan")
    overall = by_context.groupby(["entry", "kind"], sort=False).agg(
        scaled=("scaled", lambda values: values.mean(skipna=False)),
        present=("present", "sum"),
        members=("members", "sum"),
    )
    return pd.concat([by_context, overall.reset_index().assign(context=ALL)], ignore_index=True)
