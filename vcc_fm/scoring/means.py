"""The scaled mean of an entry, and when there is none: a mean over few metrics, or over guesses, is no headline."""

from __future__ import annotations

from typing import Literal

import pandas as pd

#: The name under which the mean over contexts is filed.
ALL = "all contexts"

Members = list[str] | Literal["clear"] | None
"""Metrics of a second mean: named ones, those with a certain scale, or none: there is no second mean."""


def uncertain(anchors: pd.DataFrame) -> pd.Series[bool]:
    """Which scales are hardly known: their 1 is a replicate that is not two standard deviations from their 0.

    A scale that ends elsewhere, as at a perfect prediction, does not depend on the splits.

    Args:
        anchors: columns low, high, ceiling, ceiling_sd, reason.
    """
    length = (anchors["high"] - anchors["low"]).abs()
    replicated = (anchors["reason"] == "") & (anchors["high"] == anchors["ceiling"])
    return replicated & (anchors["ceiling_sd"] > length / 2)


def in_second_mean(anchors: pd.DataFrame, members: Members) -> pd.Series[bool]:
    """Which (context, metric) the second mean is taken over.

    Args:
        anchors: one row per (context, metric); columns metric, and those of :func:`uncertain`.
        members: see :data:`Members`.
    """
    if members is None:
        return pd.Series(False, index=anchors.index)
    named = ~uncertain(anchors) if members == "clear" else anchors["metric"].isin(members)
    return (anchors["reason"] == "") & named


def without_mean(anchors: pd.DataFrame, needed: int) -> dict[str, str]:
    """Context -> why it has no scaled mean: fewer than ``needed`` metrics have a scale, or none has a certain one.

    Args:
        anchors: one row per (context, metric), columns context, and those of :func:`uncertain`.
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


def scaled_means(rows: pd.DataFrame, anchors: pd.DataFrame, needed: int, members: Members = None) -> pd.DataFrame:
    """Scaled mean of every entry: per context over the metrics present, then the mean over contexts.

    Args:
        rows: columns entry, kind, context, metric, scaled and unclamped (NaN where undefined).
        anchors: see :func:`without_mean`; a context that has no mean gets NaN, and so does the mean over contexts.
        needed: see :func:`without_mean`.
        members: of the second mean.

    Returns:
        Columns entry, kind, context (``ALL`` for the mean over contexts), scaled, unclamped (the mean without the
        limits of the scale), second (the mean over ``members``; NaN without any), present, members.
    """
    chosen = anchors.assign(chosen=in_second_mean(anchors, members))[["context", "metric", "chosen"]]
    rows = rows.merge(chosen, on=["context", "metric"], how="left", validate="many_to_one")
    rows = rows.assign(second=rows["scaled"].where(rows["chosen"]))
    columns = ["scaled", "unclamped", "second"]
    groups = rows.groupby(["entry", "kind", "context"], sort=False)
    by_context = groups.agg(
        **{column: (column, "mean") for column in columns}, present=("scaled", "count"), members=("scaled", "size")
    ).reset_index()
    by_context.loc[by_context["context"].isin(list(without_mean(anchors, needed))), columns[:2]] = float("nan")
    overall = by_context.groupby(["entry", "kind"], sort=False).agg(
        **{column: (column, lambda values: values.mean(skipna=False)) for column in columns},
        present=("present", "sum"),
        members=("members", "sum"),
    )
    return pd.concat([by_context, overall.reset_index().assign(context=ALL)], ignore_index=True)
