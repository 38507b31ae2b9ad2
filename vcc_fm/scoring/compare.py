"""Two predictors on the same held-out cells: how far apart they are, and how sure that is.

Every metric is a mean (or a ratio of sums) over perturbations, so that another panel of perturbations would have given
another value. Both predictors are measured on the same ones: the bootstrap draws perturbations with replacement, all
contexts of a drawn one together, and takes the difference of the two in each draw. What varies between perturbations
for both alike falls out of it. The two ends of a scale stay as they were measured.

Let ``d`` be the difference, ``v`` the variance of its ``R`` draws, ``n`` the number of perturbations that have the
metric, ``w`` the sample variance of the difference over ``S`` seeds. The standard error is ``sqrt(v n/(n-1) + w/S)``:
draws with replacement from n are too narrow by (n-1)/n, and a seed's noise that is within perturbations counts twice,
on the safe side. The 95 % interval is ``d ± t se``, the smallest difference that such a panel shows in four of five
cases is ``(t + t_0.8) se``, where t has the degrees of freedom of Welch and Satterthwaite, n - 1 with a single seed. A
mean over metrics has both from its metrics, each by its part of the variance.

Where the tables of a side have other held-out groups (simulated worlds, other splits), each pair of tables is one
number, and the interval is over these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table
from scipy import stats

from vcc_fm.ground.errors import UserError, shown
from vcc_fm.ground.words import listed, many
from vcc_fm.scoring.means import in_second_mean, uncertain, without_mean
from vcc_fm.scoring.table import ScoreTable, number

MEAN, UNLIMITED, SECOND = "scaled mean", "mean without limits", "second mean"
"""Under these names the means over metrics stand among them."""

RESAMPLES = 2000
LEVEL, POWER = 0.95, 0.8


@dataclass(frozen=True)
class Side:
    """One of the two: an entry of the score tables of one run, a table for each seed."""

    name: str
    entry: str
    tables: Sequence[ScoreTable]


@dataclass(frozen=True)
class Difference:
    """What the comparison found.

    Attributes:
        rows: one row per metric and mean (the index: name of the metric, ``MEAN``, ``UNLIMITED``, ``SECOND``),
            averaged over contexts: label, a, b (scaled), difference, low and high (95 %), error (standard error),
            smallest (what a panel of this size shows in four of five cases); NaN where there is no interval.
        perturbations: number of them, n.
        seeds: of the two sides.
        notes: what a reader must know, one sentence each.
    """

    rows: pd.DataFrame
    perturbations: int
    seeds: tuple[int, int]
    notes: list[str]

    def verdict(self, name: str = MEAN) -> str:
        """One sentence."""
        row = self.rows.to_dict("index")[name]
        label, difference, low, high = (row[key] for key in ("label", "difference", "low", "high"))
        if math.isnan(difference):
            return f"{label}: not both have one"
        if math.isnan(low):
            return f"{label}: {difference:+.3f}, without an interval"
        found = f"{difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        if low > 0 or high < 0:
            return f"{label}: {'better' if difference > 0 else 'worse'}, {found}"
        return f"{label}: no difference can be told, {found}; {row['smallest']:.3f} could have been shown"

    def table(self, a: str, b: str) -> Table:
        """The rows for a terminal; ``a`` and ``b`` are what the two sides are called."""
        table = Table(title=f"{escape(a)} against {escape(b)}", box=box.SIMPLE)
        table.add_column("metric")
        for head in (a, b, "difference", "95 % interval", "could be shown"):
            table.add_column(escape(head), justify="right", no_wrap=True)
        for _, row in self.rows.iterrows():
            interval = "–" if math.isnan(row["low"]) else f"{row['low']:+.3f} to {row['high']:+.3f}"
            values = [number(row["a"]), number(row["b"]), signed(row["difference"]), interval, number(row["smallest"])]
            table.add_row(escape(str(row["label"])), *values)
        return table


def signed(value: float) -> str:
    """A difference with its sign and three decimals, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:+.3f}"


def paired(a: Side, b: Side, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Compare two entries on the same held-out cells.

    Args:
        a: the one whose advantage is positive.
        b: the other.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        UserError: an entry is not in a table, or the tables have other metrics, or other held-out groups.
    """
    first = a.tables[0]
    worlds = len({frozenset(held_out(table)) for side in (a, b) for table in side.tables})
    if worlds > 1 and len(a.tables) != len(b.tables):
        raise UserError(
            f"{b.name}: held-out groups must be the same on both sides, or as many worlds; score them alike"
        )
    for side in (a, b):
        for table, like in zip(side.tables, a.tables if worlds > 1 else [first] * len(side.tables), strict=True):
            _check(side, table, like)
    if worlds > 1:
        at_a, at_b = (np.stack([panel_values(t, side.entry, 0, seed)[0] for t in side.tables]) for side in (a, b))
        difference = (at_a - at_b).mean(axis=0)
        panel, degrees = np.zeros(len(difference)), np.ones(len(difference))
    else:
        drawn_a, drawn_b = (
            np.stack([panel_values(t, side.entry, resamples, seed) for t in side.tables]) for side in (a, b)
        )
        at_a, at_b, draws = drawn_a[:, 0], drawn_b[:, 0], drawn_a.mean(axis=0) - drawn_b.mean(axis=0)
        difference = draws[0]
        panel, degrees = _over_perturbations(draws[1:], first)
    n = len(_labels(first))
    by_seed = [at_a - at_b] if len(at_a) == len(at_b) else [at_a, at_b]
    error, df = standard_error(panel, degrees, by_seed)
    t = stats.t.ppf(0.5 + LEVEL / 2, df)
    rows = pd.DataFrame(
        {
            "label": [*first.labels.values(), MEAN, UNLIMITED, _second_label(first)],
            "a": at_a.mean(axis=0),
            "b": at_b.mean(axis=0),
            "difference": difference,
            "low": difference - t * error,
            "high": difference + t * error,
            "error": error,
            "smallest": (t + stats.t.ppf(POWER, df)) * error,
        },
        index=pd.Index([*first.metrics, MEAN, UNLIMITED, SECOND], name="metric"),
    )
    limited = any(table.limited for side in (a, b) for table in side.tables)
    rows = rows.drop(index=[UNLIMITED] * (not limited) + [SECOND] * (first.members is None))
    total = sum(len(_labels(table)) for table in a.tables) if worlds > 1 else n
    return Difference(rows, total, (len(a.tables), len(b.tables)), _notes(a, b, total, worlds))


def _over_perturbations(draws: np.ndarray, table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    """Variance of a difference over perturbations, and its degrees of freedom, [metrics + 3] each.

    A metric that few perturbations have knows its variance from these alone. One perturbation tells of none: NaN, and
    so are the means with such a metric.

    Args:
        draws: [R, metrics + 3] of the difference, by :func:`panel_values`.
        table: of either side.
    """
    drawn, number = draws.var(axis=0), _with_a_value(table)
    metrics, m = number.index, number.to_numpy()
    bias, degrees = np.where(m == 1, np.nan, m / np.maximum(m - 1, 1)), np.maximum(m - 1.0, 1.0)
    variance = drawn[: len(m)] * bias
    anchors = table.anchors[table.anchors["reason"] == ""]
    second = anchors[in_second_mean(anchors, table.members)]
    tiny = np.finfo(float).tiny
    for mean, those in zip(drawn[len(m) :], (anchors, anchors, second), strict=True):
        # A metric without a scale in some context is in no mean over contexts.
        inside = metrics.isin(those["metric"]) & (m > 0) & np.isfinite(drawn[: len(m)])
        part = drawn[: len(m)][inside]
        variance = np.append(variance, mean * (part * bias[inside]).sum() / max(part.sum(), tiny))
        degrees = np.append(degrees, part.sum() ** 2 / max((part**2 / degrees[: len(m)][inside]).sum(), tiny))
    return variance, degrees


def _with_a_value(table: ScoreTable) -> pd.Series[int]:
    """How many perturbations have each metric, in the order of the table."""
    return table.values.groupby("metric")["perturbation"].nunique().reindex(list(table.metrics), fill_value=0)


def standard_error(panel: np.ndarray, degrees: np.ndarray, by_seed: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and degrees of freedom of a difference, [k] each; NaN where nothing varies.

    Args:
        panel: [k] variance over perturbations; 0 where the difference of each world is one number.
        degrees: [k] its degrees of freedom.
        by_seed: [S, k] of the difference, or of each side where seeds are not paired.
    """
    several = [one for one in by_seed if len(one) > 1]
    seeds = np.sum([one.var(axis=0, ddof=1) / len(one) for one in several] or [0 * panel], axis=0)
    trained = min((len(one) for one in several), default=2) - 1
    error = np.sqrt(panel + seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = (panel + seeds) ** 2 / (panel**2 / degrees + seeds**2 / trained)
    # A metric that is one number for all perturbations does not vary between draws: it has no interval.
    return np.where(error > 0, error, np.nan), df


def _check(side: Side, table: ScoreTable, first: ScoreTable) -> None:
    if side.entry not in set(table.rows["entry"]):
        known = ", ".join(dict.fromkeys(table.rows["entry"]))
        raise UserError(f"{side.name}: no entry {shown(side.entry)} in its scores; there are {known}")
    for what, ours, theirs in (
        ("preset", table.preset, first.preset),
        ("scorer", f"{table.scorer} {table.version}", f"{first.scorer} {first.version}"),
        ("held-out groups", held_out(table), held_out(first)),
    ):
        if ours != theirs:
            found = f"{ours} and {theirs}" if isinstance(ours, str) else "not the same"
            raise UserError(f"{side.name}: {what} must be the same on both sides, found {found}; score them alike")


def held_out(table: ScoreTable) -> set[tuple[str, str]]:
    """The (context, perturbation) groups that a table is about."""
    return set(zip(table.significant["context"], table.significant["perturbation"], strict=True))


def _second_label(table: ScoreTable) -> str:
    return f"mean over {table.members if isinstance(table.members, str) else 'the named'} members"


def _labels(table: ScoreTable) -> list[str]:
    # A scorer may leave out of either what has nothing to count there.
    return sorted({*table.significant["perturbation"], *table.values["perturbation"]})


def panel_values(table: ScoreTable, entry: str, resamples: int, seed: int) -> np.ndarray:
    """Scaled values of an entry, [1 + resamples, metrics + 3]: as measured, then in each draw of its perturbations.

    Each is a mean over contexts; the last three are the means over metrics. A metric that no drawn perturbation has
    is as measured.
    """
    labels = _labels(table)
    n = len(labels)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    weights = np.vstack([np.ones((1, n)), drawn])
    contexts, metrics = table.contexts(), list(table.metrics)
    axes = (("context", contexts), ("metric", metrics), ("perturbation", labels))
    places = tuple(pd.Index(labels_).get_indexer(pd.Index(table.values[column])) for column, labels_ in axes)
    sums = np.zeros((2, len(contexts), len(metrics), len(labels)))
    known = np.zeros(sums.shape[1:])  # by the truth: some entry has a value there
    known[places] = 1.0
    ours = (table.values["entry"] == entry).to_numpy()
    for part, column in zip(sums, ("numerator", "denominator"), strict=True):
        part[tuple(place[ours] for place in places)] = table.values[column][ours]
    above, below = sums @ weights.T
    anchors = _by_metric(table.anchors.assign(second=in_second_mean(table.anchors, table.members)))
    rows = _by_metric(table.rows[table.rows["entry"] == entry])
    none = without_mean(table.anchors, table.needed)
    found = np.full((len(contexts), len(metrics) + 3, len(weights)), np.nan)
    for c, context in enumerate(contexts):
        scaled, unlimited = found[c], np.full((len(metrics), len(weights)), np.nan)
        for m, metric in enumerate(metrics):
            anchor, row = anchors[context, metric], rows[context, metric]
            if np.isfinite(row["unclamped"]) and sums[1, c, m].any():
                with np.errstate(divide="ignore", invalid="ignore"):
                    unlimited[m] = (above[c, m] / below[c, m] - anchor["low"]) / (anchor["high"] - anchor["low"])
                limited = np.fmin(np.fmax(unlimited[m], anchor["floor"]), anchor["cap"])
                scaled[m] = np.where(np.isnan(unlimited[m]), anchor["missing"], limited)
                # A draw without any perturbation that has the metric says nothing of it.
                silent = np.flatnonzero(np.isnan(unlimited[m]))
                silent = silent[weights[silent] @ known[c, m] == 0]
                scaled[m, silent], unlimited[m, silent] = scaled[m, 0], unlimited[m, 0]
            else:
                unlimited[m], scaled[m] = row["unclamped"], row["scaled"]
        if context not in none:
            scaled[-3], scaled[-2] = _mean(scaled[: len(metrics)]), _mean(unlimited)
        scaled[-1] = _mean(scaled[: len(metrics)][[bool(anchors[context, metric]["second"]) for metric in metrics]])
    return found.mean(axis=0).T


def _by_metric(frame: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """(context, metric) -> the row of it."""
    keys = zip(frame["context"], frame["metric"], strict=True)
    return dict(zip(keys, cast(list[dict[str, Any]], frame.to_dict("records")), strict=True))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the rows that hold a number, [draws]; NaN where none does."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _notes(a: Side, b: Side, n: int, worlds: int) -> list[str]:
    table = a.tables[0]
    if worlds > 1:
        return [
            f"{len(a.tables)} runs with other held-out groups, {n} perturbations in all: the interval is over runs"
        ]
    notes = [f"{many(n, 'perturbation')} in {many(len(table.contexts()), 'context')}"]
    if min(len(a.tables), len(b.tables)) == 1:
        notes.append("one seed: how much another training would differ is not in the interval (vcc-fm run --seeds 5)")
    elif len(a.tables) != len(b.tables):
        notes.append(f"{len(a.tables)} and {len(b.tables)} seeds: they are not paired")
    number = _with_a_value(table)
    if single := [table.labels[metric] for metric in table.metrics if number[metric] == 1 < n]:
        what = "neither that nor a mean with it has an interval (score.members names those of a second mean)"
        notes.append(f"one perturbation has a value of {listed(single)}: {what}")
    unclear = table.anchors[uncertain(table.anchors)]
    if len(unclear):
        where = unclear.assign(label=unclear["metric"].map(table.labels)).groupby("context", sort=False)["label"]
        members = "; ".join(f"{context}: {listed(part.tolist())}" for context, part in where)
        notes.append(
            f"the replicate is not clear of the low end ({members}); score.members=clear adds a second mean without "
            "these members"
        )
    digests = {str(table.parameters.get("truth_sha256")) for side in (a, b) for table in side.tables}
    if len(digests) > 1:
        notes.append("the files of measured cells differ (order or number of cells): each run is on its own scale")
    return notes
