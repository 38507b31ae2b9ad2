"""The score table: what was scored, every value with its provenance, and how it is written down."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import write_json, write_text
from vcc_fm.scoring.means import ALL, Members, scaled_means, without_mean
from vcc_fm.scoring.preset import Metric

#: Metrics beyond which a printed table has a row for each, not a column.
MOST_COLUMNS = 8

Kind = Literal["model", "baseline", "oracle", "ceiling"]

VALUES = ("entry", "context", "metric", "perturbation", "numerator", "denominator")

_NUMERIC = (
    "raw",
    "scaled",
    "unclamped",
    "low",
    "high",
    "floor",
    "cap",
    "missing",
    "ceiling",
    "ceiling_sd",
    "ceiling_lowest",
    "ceiling_highest",
)


@dataclass(frozen=True)
class Entry:
    """One prediction file to score: raw counts of perturbed cells, no controls."""

    name: str
    kind: Kind
    path: Path


@dataclass(frozen=True)
class ScoreTable:
    """Scores of several entries against one truth.

    Attributes:
        rows: one row per (entry, kind, context, metric): raw value, scaled value and the same without the limits of
            its scale (NaN where undefined), the number of perturbations that have a value, the reason of a missing
            value (else empty), scorer and version.
        means: one row per (entry, kind, context), and one for ``ALL``, see :func:`scaled_means`: means of the members
            present (NaN where :func:`without_mean` says why), how many were present, and of how many.
        anchors: one row per (context, metric), the fields of :class:`Scale`, and ``ceiling``, ``ceiling_sd``,
            ``ceiling_lowest``, ``ceiling_highest`` and ``ceiling_perturbations``, those of :class:`Ceiling`.
        values: one row per (entry, context, metric, perturbation) that has a value of its own, columns ``VALUES``;
            the raw value of a metric is the sum of its numerators divided by the sum of its denominators.
        significant: one row per (context, perturbation): number of significant genes in the truth.
        notes: what a reader must know about how the numbers came about.
        preset: the scorer's preset.
        scorer: name of the scoring package.
        version: version of the scoring package.
        parameters: what the scorer was given, and the SHA-256 of the truth.
        seconds: wall time of the scoring.
        metrics: of the preset, in the order of the columns.
        needed: metrics that must have a scale in a context that has a mean.
        members: metrics of a second mean; see :data:`Members`.
        low: the row that is scaled 0.
        high: what is scaled 1, in words.
        ceiling: the row that a replicate reaches.
    """

    rows: pd.DataFrame
    means: pd.DataFrame
    anchors: pd.DataFrame
    values: pd.DataFrame
    significant: pd.DataFrame
    notes: list[str]
    preset: str
    scorer: str
    version: str
    parameters: dict[str, Any]
    seconds: float
    metrics: dict[str, Metric]
    needed: int
    members: Members
    low: str
    high: str
    ceiling: str

    @property
    def labels(self) -> dict[str, str]:
        """Metric -> its label."""
        return {name: metric.label for name, metric in self.metrics.items()}

    @property
    def limited(self) -> bool:
        """Whether a scaled value met a limit of its scale."""
        return not np.allclose(self.rows["scaled"], self.rows["unclamped"], equal_nan=True)

    def mean(self, entry: str, context: str = ALL) -> float:
        """Scaled mean of an entry in a context, or over all contexts; NaN when nothing could be scored."""
        chosen = self.means[(self.means["entry"] == entry) & (self.means["context"] == context)]
        return float(chosen["scaled"].iloc[0])

    def judged(self, entry: str, name: str) -> float:
        """How good an entry is, the higher the better; NaN when nothing could be scored.

        Args:
            entry: of the table.
            name: ``mean``, the scaled mean over all contexts, or a metric, whose raw value is averaged over contexts,
                with the sign turned where a small one is good.
        """
        if name == "mean":
            return self.mean(entry)
        raw = self.rows.loc[(self.rows["entry"] == entry) & (self.rows["metric"] == name), "raw"].mean()
        return -float(raw) if self.metrics[name].low_is_good else float(raw)

    def mean_texts(self, context: str = ALL) -> dict[str, str]:
        """Scaled mean of every entry as text, with the number of members present where one is missing."""
        chosen = self.means[self.means["context"] == context]
        return {
            entry: number(scaled) + ("" if present == members else f" ({present} of {members})")
            for entry, scaled, present, members in chosen[["entry", "scaled", "present", "members"]].itertuples(
                index=False
            )
        }

    def more_means(self, context: str = ALL) -> dict[str, dict[str, str]]:
        """Further means of every entry as text, by their heads: those that differ from the scaled mean, or were asked.

        Without the limits of the scales, where a limit was met; and over ``members``, where they are given.
        """
        chosen = self.means[self.means["context"] == context].set_index("entry")
        clear = "the members with a certain scale"
        heads = {}
        if self.limited:
            heads["without limits"] = "unclamped"
        if self.members is not None:
            named = clear if self.members == "clear" else ", ".join(self.labels[name] for name in self.members)
            heads[f"over {named}"] = "second"
        return {head: {str(entry): number(x) for entry, x in chosen[column].items()} for head, column in heads.items()}

    def baselines(self) -> list[str]:
        """Names of the baselines, in order; the scorer's own is the last."""
        return list(dict.fromkeys(self.rows.loc[self.rows["kind"] == "baseline", "entry"]))

    def no_headline(self) -> str:
        """Why there is no scaled mean over contexts, and in which contexts; empty where there is one."""
        return "; ".join(_together(without_mean(self.anchors, self.needed).items(), ": "))

    def contexts(self) -> list[str]:
        """The contexts, in the order of the truth's scoring."""
        return list(dict.fromkeys(self.rows["context"]))

    def write_json(self, path: Path) -> None:
        """Write the whole table as strict JSON (a missing number is null), in one rename."""
        content = {
            "scorer": self.scorer,
            "version": self.version,
            "preset": self.preset,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "needed": self.needed,
            "members": self.members,
            "scale": {"low": self.low, "high": self.high, "ceiling": self.ceiling},
            "notes": self.notes,
            "means": _records(self.means),
            "anchors": _records(self.anchors),
            "significant": _records(self.significant),
            "rows": _records(self.rows),
            "values": [
                {
                    **dict(zip(VALUES[:3], key, strict=True)),
                    **{name: part[name].tolist() for name in VALUES[3:]},
                }
                for key, part in self.values.groupby(list(VALUES[:3]), sort=False)
            ],
        }
        write_json(path, content)

    def write_csv(self, path: Path) -> None:
        """Write ``rows`` as CSV, in one rename; a missing number is an empty field.

        Text that a spreadsheet would take for a formula stands behind an apostrophe.
        """
        text = self.rows.select_dtypes(exclude="number").columns
        quoted = {name: self.rows[name].map(_no_formula) for name in text}
        write_text(path, self.rows.assign(**quoted).to_csv(index=False))

    def print(self, console: Console | None = None) -> None:
        """Print a table per context (scaled values, raw ones below), the means, and what is missing and why."""
        console = console or Console()
        for context in self.contexts():
            console.print(self._context_table(context))
        console.print(self._overall_table())
        for line in self.missing():
            console.print(f"[yellow]missing[/yellow] {escape(line)}", soft_wrap=True)
        for note in self.notes:
            console.print(escape(note))
        console.print(f"{self.scorer} {self.version}, preset {self.preset}, {self.seconds:.1f} s")

    def missing(self) -> list[str]:
        """One line for every reason why scales are undefined, an entry has no value, or a context has no mean."""
        without = self.anchors[self.anchors["reason"] != ""]
        undefined_here = [
            (str(context), f"{', '.join(part['metric'].map(self.labels))}, every entry: {reason}")
            for (context, reason), part in without.groupby(["context", "reason"], sort=False)
        ]
        lines = _together(undefined_here, ", ") + _together(
            without_mean(self.anchors, self.needed).items(), ", scaled mean: "
        )
        undefined = {(row["context"], row["metric"]) for row in _records(self.anchors) if row["reason"]}
        lines += [
            f"{row['context']}, {self.labels[row['metric']]}, {row['entry']}: {row['reason']}"
            for row in _records(self.rows)
            if row["reason"] and (row["context"], row["metric"]) not in undefined
        ]
        return lines

    def _context_table(self, context: str) -> Table:
        if len(self.metrics) > MOST_COLUMNS:
            return self._long_context_table(context)
        title = f"{escape(context)}: scaled, and raw below; 0 is {escape(self.low)}, 1 {escape(self.high)}"
        table = Table(title=title, box=box.SIMPLE, show_lines=False)
        table.add_column("entry")
        for label in self.labels.values():
            table.add_column(label, justify="right", no_wrap=True)
        table.add_column("mean", justify="right")
        here = self.rows[self.rows["context"] == context]
        means = self.mean_texts(context)
        for entry, part in here.groupby("entry", sort=False):
            values = part.set_index("metric")[["scaled", "raw"]].loc[list(self.labels)]
            cells = [f"{number(scaled)}\n[dim]{number(raw)}[/dim]" for scaled, raw in values.itertuples(index=False)]
            name = f"{escape(str(entry))}\n[dim]{part['kind'].iloc[0]}[/dim]"
            table.add_row(name, *cells, means[str(entry)])
        return table

    def _long_context_table(self, context: str) -> Table:
        """A row for each metric, for presets whose metrics are too many for columns."""
        title = f"{escape(context)}: scaled, and raw beside; 0 is {escape(self.low)}, 1 {escape(self.high)}"
        table = Table(title=title, box=box.SIMPLE)
        # A pair of numbers that finds no room is broken between them, a label is not.
        table.add_column("metric", no_wrap=True)
        here = self.rows[self.rows["context"] == context]
        means, values = self.mean_texts(context), here.set_index(["metric", "entry"])[["scaled", "raw"]]
        entries = list(dict.fromkeys(here["entry"]))
        for entry in entries:
            table.add_column(escape(str(entry)), justify="right")
        for name, label in self.labels.items():
            found = (values.loc[(name, entry)] for entry in entries)
            table.add_row(
                escape(label), *(f"{number(one['scaled'])} [dim]{number(one['raw'])}[/dim]" for one in found)
            )
        table.add_row("mean", *(means[entry] for entry in entries))
        return table

    def _overall_table(self) -> Table:
        table = Table(title="scaled mean of the metrics, mean over contexts", box=box.SIMPLE)
        for column in ("entry", "kind"):
            table.add_column(column)
        table.add_column("scaled mean", justify="right")
        means, more = self.mean_texts(ALL), self.more_means(ALL)
        for head in more:
            table.add_column(escape(head), justify="right")
        overall = self.means[self.means["context"] == ALL].sort_values("scaled", ascending=False)
        for entry, kind in zip(overall["entry"], overall["kind"], strict=True):
            table.add_row(escape(entry), kind, means[entry], *(texts[entry] for texts in more.values()))
        return table


def read_table(path: Path) -> ScoreTable:
    """Read what :meth:`ScoreTable.write_json` wrote.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    with reading(path, "a score table", "give a scores.json that the score stage wrote"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run the score stage first") from None
        rows, anchors = _frame(content["rows"]), _frame(content["anchors"])
        return ScoreTable(
            rows=rows,
            means=scaled_means(rows, anchors, content["needed"], content["members"]),
            anchors=anchors,
            values=_values(content["values"]),
            significant=_frame(content["significant"]),
            notes=content["notes"],
            preset=content["preset"],
            scorer=content["scorer"],
            version=content["version"],
            parameters=content["parameters"],
            seconds=content["seconds"],
            metrics={name: Metric(**metric) for name, metric in content["metrics"].items()},
            needed=content["needed"],
            members=content["members"],
            **{name: str(content["scale"][name]) for name in ("low", "high", "ceiling")},
        )


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def number(value: float) -> str:
    """A score with three decimals, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _together(texts: Iterable[tuple[str, str]], between: str) -> list[str]:
    """Lines of (context, text) pairs: the contexts, then what holds for all of them."""
    contexts: dict[str, list[str]] = {}
    for context, text in texts:
        contexts.setdefault(text, []).append(context)
    return [f"{', '.join(of_it)}{between}{text}" for text, of_it in contexts.items()]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain dictionaries; NaN becomes None, which JSON calls null."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(key): value for key, value in record.items()} for record in plain.to_dict("records")]


def _frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The inverse of ``_records``: null becomes NaN again, also in a column that holds nothing else."""
    frame = pd.DataFrame(records)
    return frame.astype({column: float for column in _NUMERIC if column in frame})


def _values(groups: list[dict[str, Any]]) -> pd.DataFrame:
    """The inverse of what :meth:`ScoreTable.write_json` makes of ``values``."""
    frame = pd.DataFrame(groups, columns=list(VALUES)).explode(list(VALUES[3:]), ignore_index=True)
    return frame.astype(dict.fromkeys(VALUES[4:], float))
