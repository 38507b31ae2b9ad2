"""The score table: what was scored, every value with its provenance, and how it is written down."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import write_json, write_text
from vcc_fm.scoring.means import ALL, scaled_means, without_mean
from vcc_fm.scoring.preset import Metric

Kind = Literal["model", "baseline", "ceiling"]


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
        rows: one row per (entry, kind, context, metric): raw and scaled value (NaN where undefined), the number of
            perturbations that have a value, the reason of a missing value (else empty), scorer and version.
        means: one row per (entry, kind, context), and one for ``ALL``, see :func:`scaled_means`: scaled mean of the
            members present (NaN where :func:`without_mean` says why), how many were present, and of how many.
        anchors: one row per (context, metric): baseline (scaled 0), replicate (scaled 1), its standard deviation and
            range over the scorer's split halves, and the reason where the scale is undefined (else empty).
        significant: one row per (context, perturbation): number of significant genes in the truth.
        notes: what a reader must know about how the numbers came about.
        preset: the scorer's preset.
        scorer: name of the scoring package.
        version: version of the scoring package.
        seconds: wall time of the scoring.
        metrics: of the preset, in the order of the columns.
        needed: metrics that must have a scale in a context that has a mean.
        low, high: the rows that are the scale itself, scaled 0 and 1.
    """

    rows: pd.DataFrame
    means: pd.DataFrame
    anchors: pd.DataFrame
    significant: pd.DataFrame
    notes: list[str]
    preset: str
    scorer: str
    version: str
    seconds: float
    metrics: dict[str, Metric]
    needed: int
    low: str
    high: str

    @property
    def labels(self) -> dict[str, str]:
        """Metric -> its label."""
        return {name: metric.label for name, metric in self.metrics.items()}

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
            "seconds": self.seconds,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "needed": self.needed,
            "ends": [self.low, self.high],
            "notes": self.notes,
            "means": _records(self.means),
            "anchors": _records(self.anchors),
            "significant": _records(self.significant),
            "rows": _records(self.rows),
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

    def _overall_table(self) -> Table:
        table = Table(title="scaled mean of the metrics, mean over contexts", box=box.SIMPLE)
        for column in ("entry", "kind"):
            table.add_column(column)
        table.add_column("scaled mean", justify="right")
        means = self.mean_texts(ALL)
        overall = self.means[self.means["context"] == ALL].sort_values("scaled", ascending=False)
        for entry, kind in zip(overall["entry"], overall["kind"], strict=True):
            table.add_row(escape(entry), kind, means[entry])
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
        if "scorer" in content and "metrics" not in content:
            raise UserError(f"{path}: an older version wrote it; run the score stage again")
        rows, anchors = _frame(content["rows"]), _frame(content["anchors"])
        return ScoreTable(
            rows=rows,
            means=scaled_means(rows, anchors, content["needed"]),
            anchors=anchors,
            significant=_frame(content["significant"]),
            notes=content["notes"],
            preset=content["preset"],
            scorer=content["scorer"],
            version=content["version"],
            seconds=content["seconds"],
            metrics={name: Metric(**metric) for name, metric in content["metrics"].items()},
            needed=content["needed"],
            low=content["ends"][0],
            high=content["ends"][1],
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
    numeric = [
        column
        for column in ("raw", "scaled", "baseline", "replicate", "replicate_sd", "replicate_min", "replicate_max")
        if column in frame
    ]
    return frame.astype({column: float for column in numeric})
