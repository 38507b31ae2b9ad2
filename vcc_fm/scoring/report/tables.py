"""The tables of the report that need no script, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from vcc_fm.scoring.compare import MEAN, Side, paired, signed
from vcc_fm.scoring.means import ALL
from vcc_fm.scoring.report.groups import Context
from vcc_fm.scoring.table import MOST_COLUMNS, ScoreTable, number

DENSE = 0.1
"""Counts a cell, in measured and in emitted ones, from which a gene's dispersion is compared."""


def html_table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", kinds: Sequence[str] = ()
) -> str:
    """A table in a box of its own, in which it scrolls.

    Args:
        caption: text.
        heads: texts.
        rows: cells of each row, HTML.
        kind: class of the table.
        kinds: class of each row.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f'<tr class="{escape(of_row)}">{"".join(f"<td>{cell}</td>" for cell in row)}</tr>'
        for row, of_row in zip(rows, kinds or [""] * len(rows), strict=True)
    )
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def best_baseline(table: ScoreTable) -> str:
    """The baseline with the highest scaled mean; where none has one, the last, which is the scorer's own."""
    names = table.baselines()
    means = [table.mean(name) for name in names]
    return names[-1] if np.isnan(means).all() else names[int(np.nanargmax(means))]


def model_of(table: ScoreTable) -> str | None:
    """The entry that the page speaks of: the first model."""
    return next((str(entry) for entry in table.rows.loc[table.rows["kind"] == "model", "entry"]), None)


def headline(table: ScoreTable) -> str:
    """One or two sentences: the model's scaled mean beside the best baseline and the replicate, or why none is."""
    if reason := table.no_headline():
        return f"No headline number can be given. {reason}. The metrics that are defined stand below."
    best, model, texts = best_baseline(table), model_of(table), table.mean_texts()
    if model is None:
        return f"No model was scored. The best baseline, {best}, has a scaled mean of {texts[best]}."
    difference = table.mean(model) - table.mean(best)
    verdict = f"{abs(difference):.3f} {'above' if difference > 0 else 'below'} the best baseline"
    contexts = len(table.contexts())
    return (
        f"{model} has a scaled mean of {texts[model]} over {contexts} context{'s' if contexts > 1 else ''}: "
        f"{verdict}, {best} ({texts[best]}), where {table.low} is 0"
        + (f" and a replicate scores {texts[table.ceiling]}." if table.ceiling in texts else ".")
    )


def score_table(table: ScoreTable, context: str) -> str:
    """Scaled and raw values of every entry in a context; a row is a metric where metrics are many."""
    here = table.rows[table.rows["context"] == context].set_index(["entry", "metric"]).to_dict("index")
    kinds = {str(entry): str(kind) for entry, kind in table.rows[["entry", "kind"]].drop_duplicates().values}
    means = table.mean_texts(context)

    def cell(entry: str, metric: str) -> str:
        scaled, raw, unclamped = (float(here[entry, metric][name]) for name in ("scaled", "raw", "unclamped"))
        beyond = "" if np.isclose(scaled, unclamped, equal_nan=True) else f" ({number(unclamped)})"
        return f"{number(scaled)}{beyond}<br><small>{number(raw)}</small>"

    if len(table.metrics) > MOST_COLUMNS:
        rows = [[escape(label), *(cell(e, metric) for e in kinds)] for metric, label in table.labels.items()]
        return html_table(context, ["metric", *kinds], [*rows, ["scaled mean", *means.values()]], "words")
    return html_table(
        context,
        ["entry", "kind", *table.labels.values(), "scaled mean"],
        [[escape(e), k, *(cell(e, metric) for metric in table.metrics), means[e]] for e, k in kinds.items()],
        kinds=list(kinds.values()),
    )


def overall_table(table: ScoreTable) -> str:
    """Means over contexts, the highest first, and how far the model is from each, with an interval."""
    overall = table.means[table.means["context"] == ALL].sort_values("scaled", ascending=False)
    means, more, model = table.mean_texts(), table.more_means(), model_of(table)
    rows = []
    for entry, kind in zip(overall["entry"], overall["kind"], strict=True):
        apart = ["–", "–"]
        if model is not None and entry != model and kind != "ceiling":
            found = paired(Side(model, model, [table]), Side(entry, entry, [table])).rows.to_dict("index")[MEAN]
            apart = [signed(found["difference"]), _interval(found)]
        rows.append([escape(entry), kind, means[entry], *(texts[entry] for texts in more.values()), *apart])
    heads = ["entry", "kind", "scaled mean", *more, "model minus this", "95 % interval"]
    return html_table("Mean over contexts", heads, rows, kinds=list(overall["kind"]))


def against_best(table: ScoreTable) -> str:
    """The model against the best baseline, every metric with its interval; nothing where there is no model."""
    model, best = model_of(table), best_baseline(table)
    if model is None:
        return ""
    found = paired(Side(model, model, [table]), Side(best, best, [table]))
    rows = [
        [
            escape(str(row["label"])),
            *(number(row[side]) for side in ("a", "b")),
            signed(row["difference"]),
            _interval(row),
            number(row["smallest"]),
        ]
        for row in found.rows.to_dict("records")
    ]
    heads = ["metric", model, best, "difference", "95 % interval", "could be shown"]
    drawn = html_table("Scaled values, mean over contexts", heads, rows, "words")
    return f"{drawn}<p>{escape('; '.join(found.notes))}.</p>"


def _interval(row: Mapping[Any, Any]) -> str:
    return "–" if np.isnan(row["low"]) else f"{row['low']:+.3f} to {row['high']:+.3f}"


def anchor_table(table: ScoreTable) -> str:
    """Both ends of every scale, and the spread of the replicate."""
    frame = table.anchors
    columns = ["low", "ceiling", "ceiling_sd", "ceiling_lowest", "ceiling_highest"]
    rows = [
        [
            escape(table.labels[metric]),
            escape(str(one["context"])),
            *(number(float(one[column])) for column in columns),
            f"{int(one['ceiling_perturbations'])}",
        ]
        for metric in table.metrics
        for one in frame[frame["metric"] == metric].to_dict("records")
    ]
    heads = ["metric", "context", f"{table.low} (0)", "replicate", "sd", "lowest", "highest", "perturbations"]
    caption = (
        "Raw values; sd, lowest and highest over the splits, and the perturbations that have a value in all of them"
    )
    return html_table(caption, heads, rows)


def emitted_table(emitted: Sequence[dict[str, Any]]) -> str:
    """Genes that tell emitted cells from real ones."""
    rows = []
    for one in emitted:
        real = str(one["differ_real"]) if one["cells"] == "controls" else "–"
        off = [
            f"{one[f'{what}_off']} of {one['expressed']} ({number(one[f'{what}_median'])})"
            if one["expressed"]
            else "–"
            for what in ("variance", "zeros")
        ]
        cells = [one["context"], one["cells"], f"{one['differ']} of {one['genes']}", real, *off]
        rows.append([escape(cell) for cell in cells])
    heads = ["context", "cells", "genes that differ", "real from real", "variance off", "zeros off"]
    return html_table("Genes that tell emitted cells from real ones", heads, rows)


def discrimination_table(contexts: Sequence[Context]) -> str:
    """How often a prediction is most similar to its own measured perturbation."""
    rows = [
        [
            escape(one.name),
            f"{len(one.rows)}",
            f"{int((one.rows['rank'] == 1).sum())}",
            number(one.rows["rank"].median()),
            number((len(one.rows) + 1) / 2),
        ]
        for one in contexts
    ]
    heads = ["context", "perturbations", "most similar to its own", "median place of its own", "by chance"]
    return html_table("Place of the own measured perturbation among all, by similarity", heads, rows, "words")


def size_table(contexts: Sequence[Context]) -> str:
    """Predicted against measured size of changes."""
    rows = [
        [
            escape(one.name),
            number(one.rows["size"].median()),
            number(one.rows["predicted"].median()),
            number(one.factor),
        ]
        for one in contexts
    ]
    heads = ["context", "measured, median", "predicted, median", "best factor"]
    return html_table("Size: root mean square of the log2 fold changes of all genes", heads, rows, "words")


def cells_table(contexts: Sequence[Context]) -> str:
    """Depth and dispersion of measured and emitted cells."""
    rows = []
    for one in contexts:
        dense = np.all([spread.mean >= DENSE for spread in one.spreads.values()], axis=0)
        for name, spread in one.spreads.items():
            depths = spread.depths[spread.depths > 0]
            phi = spread.dispersion[dense]
            rows.append(
                [
                    escape(one.name),
                    name,
                    f"{len(spread.depths):,}",
                    f"{np.median(spread.depths):,.0f}",
                    number(float(np.log2(depths).std())),
                    number(float(np.nanmedian(phi)) if np.isfinite(phi).any() else np.nan),
                    f"{int(dense.sum()):,}",
                ]
            )
    heads = ["context", "cells", "number", "median depth", "sd of log2 depth", "median dispersion", "of genes"]
    return html_table("Perturbed cells; depth in UMI", heads, rows)
