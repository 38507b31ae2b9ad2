"""Scores of one recipe in several simulated worlds, in one table: how good each entry is, and how sure that is.

A world is one draw of cells, split and training. Of every number there is one a world, and a 95 % interval of
Student's t over worlds. Entries are compared within worlds: what is harder for both in one world falls out of their
difference. Beside the t-interval of a difference stands that of a bootstrap, which draws worlds with replacement, and
perturbations within each drawn world. It assumes no normal differences; it counts what varies between perturbations
twice, since worlds vary by it too, and what varies between W worlds (W-1)/W times: too narrow where worlds are few.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import listed, many
from vcc_fm.scoring.compare import LEVEL, MEAN, RESAMPLES, SECOND, UNLIMITED, held_out, panel_values
from vcc_fm.scoring.means import uncertain
from vcc_fm.scoring.table import ScoreTable, number

ORACLE = "oracle-mean"
"""The entry that knows all there is to know: beside the ceiling, a share of it is told where it is in the table."""


@dataclass(frozen=True)
class Interval:
    """A mean over worlds and its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    worlds: int


@dataclass(frozen=True)
class Distance(Interval):
    """How far an entry is ahead of another one: over worlds, and the ends of the bootstrap's 95 % interval."""

    bootstrap_low: float
    bootstrap_high: float


@dataclass(frozen=True)
class Standing:
    """One entry: Intervals by metric, ``MEAN``, and ``SECOND`` (the mean over clear members).

    Attributes:
        kind: as in a score table.
        scaled: of scaled values.
        raw: of raw values, metrics alone.
        shares: row of the table -> the entry's scaled mean over that row's.
        ahead: entry -> name of a metric or mean -> how far this one is ahead of that entry.
    """

    kind: str
    scaled: dict[str, Interval]
    raw: dict[str, Interval]
    shares: dict[str, float]
    ahead: dict[str, dict[str, Distance]]


@dataclass(frozen=True)
class Worlds:
    """The table.

    Attributes:
        entries: name -> its standing, best first.
        worlds: names.
        labels: metric -> label.
        unclear: metric -> number of worlds in which its replicate is not clear of the low end of its scale.
        notes: what a reader must know, one sentence each.
    """

    entries: dict[str, Standing]
    worlds: list[str]
    labels: dict[str, str]
    unclear: dict[str, int]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; a number that is missing is null. Entries stand in their order, best first."""
        content: dict[str, Any] = _plain(asdict(self))
        return content

    def to_markdown(self) -> str:
        """Three tables (means and distances, scaled members, raw members), and the notes below."""
        first = next(iter(self.entries.values()))
        others = list(dict.fromkeys(other for one in self.entries.values() for other in one.ahead))
        heads = ["entry", "kind", "scaled mean", "over clear members", *(f"share of {name}" for name in first.shares)]
        for other in others:
            heads += [f"ahead of {other}", "bootstrap"]
        lines = []
        for name, one in self.entries.items():
            cells = [name, one.kind, _text(one.scaled[MEAN]), _text(one.scaled[SECOND])]
            cells += [number(share) for share in one.shares.values()]
            for other in others:
                found = one.ahead.get(other)
                cells += ["", ""] if found is None else _texts(found[MEAN])
            lines.append(cells)
        parts = [_table(heads, lines)]
        for what, of in (("scaled", lambda one: one.scaled), ("raw", lambda one: one.raw)):
            rows = [[name, *(_text(of(one)[key]) for key in self.labels)] for name, one in self.entries.items()]
            parts.append(_table([f"entry, {what}", *self.labels.values()], rows))
        return "\n".join([*parts, *(f"- {note}" for note in self.notes)]) + "\n"


def over_worlds(
    tables: Mapping[str, ScoreTable],
    against: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Worlds:
    """Put the score tables of several worlds into one.

    Args:
        tables: name of a world -> its score table.
        against: entries that all others are compared with, beside the baseline that is the best over worlds; those
            that are not in the tables are left out.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        UserError: other scorers or presets, or fewer than two worlds with a scaled mean.
    """
    names, kept, notes = _with_mean(tables)
    kinds, gone = _entries(kept)
    if gone:
        notes.append(f"not in every world, and left out: {listed(gone)}")
    first = kept[0]
    keys = [*first.metrics, MEAN, UNLIMITED, SECOND]
    # [worlds, 1 + resamples, keys]; a perturbation is drawn alike for all entries of a world.
    drawn = {
        entry: np.stack([panel_values(table, entry, resamples, seed + w) for w, table in enumerate(kept)])
        for entry in kinds
    }
    means = {entry: float(values[:, 0, keys.index(MEAN)].mean()) for entry, values in drawn.items()}
    ordered = sorted(kinds, key=lambda entry: -means[entry])
    best = next((entry for entry in ordered if kinds[entry] == "baseline"), None)
    others = [one for one in dict.fromkeys([best, *against]) if one in kinds]
    bounds = [name for name in (first.ceiling, ORACLE) if name in kinds]
    picked = _picked(len(kept), resamples, seed)
    entries = {}
    for entry in ordered:
        observed = drawn[entry][:, 0]
        raw = np.array([_raw(table, entry) for table in kept])
        ahead = {
            other: _distances(drawn[entry] - drawn[other], picked, keys)
            for other in others
            if other != entry and kinds[entry] != "ceiling"
        }
        entries[entry] = Standing(
            kinds[entry],
            {key: interval(observed[:, k]) for k, key in enumerate(keys) if key != UNLIMITED},
            {key: interval(raw[:, k]) for k, key in enumerate(first.metrics)},
            {bound: means[entry] / means[bound] for bound in bounds},
            ahead,
        )
    unclear = _unclear(kept)
    notes = [_about(first, names, kept), *notes, *_clear_note(unclear, first.labels, len(kept))]
    return Worlds(entries, names, first.labels, unclear, notes)


def _with_mean(tables: Mapping[str, ScoreTable]) -> tuple[list[str], list[ScoreTable], list[str]]:
    """The worlds that have a scaled mean, with the members that are clear as the second one's, and which have none."""
    names, kept, notes = [], [], list[str]()
    found = {name: (table.scorer, table.version, table.preset) for name, table in tables.items()}
    for name, table in tables.items():
        if found[name] != (like := next(iter(found.values()))):
            raise UserError(f"{name}: scored by {' '.join(found[name])}, but others by {' '.join(like)}; score again")
        if reason := table.no_headline():
            notes.append(f"{name} has no scaled mean and is left out ({reason})")
        else:
            names.append(name)
            kept.append(replace(table, members="clear"))
    if len(kept) < 2:
        raise UserError(f"{many(len(kept), 'world')} with a scaled mean: an interval needs two; draw more worlds")
    return names, kept, notes


def _entries(tables: Sequence[ScoreTable]) -> tuple[dict[str, str], list[str]]:
    """Entry -> kind, of those that are in every table; and the others."""
    kinds: dict[str, str] = {}
    times = Counter[str]()
    for table in tables:
        here = dict(zip(table.rows["entry"], table.rows["kind"], strict=True))
        kinds |= here
        times.update(here.keys())
    every = {entry: kind for entry, kind in kinds.items() if times[entry] == len(tables)}
    return every, sorted(kinds.keys() - every.keys())


def _raw(table: ScoreTable, entry: str) -> list[float]:
    """Raw values of an entry by metric, mean over contexts; NaN where a context lacks one."""
    rows = table.rows[table.rows["entry"] == entry]
    by_metric = rows.groupby("metric")["raw"].agg(lambda values: values.mean(skipna=False))
    return [float(by_metric[name]) for name in table.metrics]


def interval(values: np.ndarray) -> Interval:
    """Interval of Student's t over the worlds [W] that have a value."""
    there = values[np.isfinite(values)]
    n = len(there)
    mean = float(there.mean()) if n else np.nan
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * there.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return Interval(mean, float(mean - half), float(mean + half), n)


def _picked(worlds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which worlds the bootstrap draws, and which draw of their perturbations, [resamples, worlds] each."""
    rng = np.random.default_rng(seed)
    shape = (resamples, worlds)
    return rng.integers(worlds, size=shape), 1 + rng.integers(resamples, size=shape)


def _distances(
    difference: np.ndarray, picked: tuple[np.ndarray, np.ndarray], keys: Sequence[str]
) -> dict[str, Distance]:
    """Distances by metric and mean, from the difference of two entries [worlds, 1 + resamples, keys]."""
    found = {}
    tail = 100 * (1 - LEVEL) / 2
    for k, key in enumerate(keys):
        if key == UNLIMITED:
            continue
        draws = difference[:, :, k][picked]
        there = np.isfinite(draws)
        with np.errstate(invalid="ignore"):
            means = np.where(there, draws, 0.0).sum(axis=1) / there.sum(axis=1)
        low, high = np.nanpercentile(means, [tail, 100 - tail]) if np.isfinite(means).any() else (np.nan, np.nan)
        over = interval(difference[:, 0, k])
        found[key] = Distance(over.mean, over.low, over.high, over.worlds, float(low), float(high))
    return found


def _unclear(tables: Sequence[ScoreTable]) -> dict[str, int]:
    """Metric -> in how many worlds its replicate is not clear of the low end, in one context at least."""
    found = Counter(metric for t in tables for metric in set(t.anchors.loc[uncertain(t.anchors), "metric"]))
    return {metric: found[metric] for metric in tables[0].metrics if found[metric]}


def _about(table: ScoreTable, names: Sequence[str], tables: Sequence[ScoreTable]) -> str:
    panel = sorted({len(held_out(one)) for one in tables})
    groups = f"{panel[0]}" if len(panel) == 1 else f"{panel[0]} to {panel[-1]}"
    return (
        f"{len(names)} worlds ({names[0]} to {names[-1]}), {groups} held-out groups in each; {table.scorer} "
        f"{table.version}, preset {table.preset}; mean [95 % t-interval over worlds]; the bootstrap draws worlds and "
        "perturbations"
    )


def _clear_note(unclear: Mapping[str, int], labels: Mapping[str, str], worlds: int) -> list[str]:
    if not unclear:
        return ["in every world the replicate of each member is clear of the low end of its scale"]
    named = ", ".join(f"{labels[metric]} in {n} of {worlds} worlds" for metric, n in unclear.items())
    return [f"members whose replicate is not clear of the low end of its scale, left out of the second mean: {named}"]


def _plain(value: Any) -> Any:
    """A value as JSON can have it."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(found: Interval) -> str:
    if np.isnan(found.low):
        return number(found.mean)
    return f"{number(found.mean)} [{found.low:.3f}, {found.high:.3f}]"


def _texts(found: Distance) -> list[str]:
    """A difference with its two intervals."""
    if np.isnan(found.mean):
        return ["–", "–"]
    return [
        f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]",
        f"[{found.bootstrap_low:+.3f}, {found.bootstrap_high:+.3f}]",
    ]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] + ["---:"] * (len(heads) - 1), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"
