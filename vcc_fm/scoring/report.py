"""The report: one HTML file that shows what a run is worth, readable without a network and without scripts."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from vcc_fm.ground.files import write_text
from vcc_fm.scoring import figures
from vcc_fm.scoring.inputs import read_context, read_labels
from vcc_fm.scoring.means import ALL
from vcc_fm.scoring.table import ScoreTable, number

#: Perturbations in the scatter.
PANELS = 6

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.headline { font-size: 1.15rem; background: #f1f6fb; border-left: 4px solid #1b5e9e; padding: .8rem 1rem; }
.note { background: #fff7e0; border-left: 4px solid #d9a400; padding: .4rem 1rem; margin: .4rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0 1.2rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.model { background: #f1f6fb; font-weight: 600; } tr.ceiling { color: #2c7048; }
small { color: #666; font-weight: 400; } img { max-width: 100%; height: auto; }
footer { color: #666; font-size: .85rem; margin-top: 3rem; border-top: 1px solid #ddd; }
"""

_EMITTED = (
    "<p>Control cells that nothing changed, emitted from half of the controls and compared with the other half; and "
    "training perturbations, emitted with their own measured responses and compared with their measured cells. Rank "
    "test of shares, 5 % false discoveries. Variance and zeros: genes above 0.1 UMI a cell that are off by more than "
    "10 %, and the median ratio. A few dozen cells are off by chance.</p>"
)


def write_report(
    path: Path,
    table: ScoreTable,
    truth: Path,
    model_prediction: Path,
    control: str,
    training_log: list[dict[str, Any]] | None,
    title: str,
    notes: list[str],
    emitted: list[dict[str, Any]],
) -> None:
    """Write the report as one self-contained HTML file, in one rename.

    Args:
        path: the file to write.
        table: the scores; the first entry of kind ``model`` is the one the headline speaks of.
        truth: h5ad file of measured cells with controls, the one that was scored.
        model_prediction: h5ad file of the model's prediction, as scored.
        control: label of the control cells.
        training_log: dictionaries with phase, step, split and loss; None or empty leaves the curves out.
        title: the page's title.
        notes: what a reader must know first, for example that the data are simulated.
        emitted: how emitted cells compare with real ones, the records of ``check_emitter``.
    """
    groups = _scatter_groups(table, truth, model_prediction, control)
    sections = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        f'<p class="headline">{escape(headline(table))}</p>',
        "<h2>Scores</h2>",
        f"<p>A scaled value is 0 for {escape(table.low)} and 1 for {escape(table.high)}. A replicate is half of the "
        "measured cells scored against the other half; a perfect prediction scores above it, since it has noise. "
        f"Raw values stand below the scaled ones; low is good for {_low_is_good(table)}, high for the others.</p>",
        *(_score_table(table, context) for context in table.contexts()),
        _overall(table),
        *(f'<p class="note">Missing: {escape(line)}</p>' for line in table.missing()),
        *(f'<p class="note">{escape(note)}</p>' for note in table.notes),
        "<h2>Metrics</h2>",
        _image(figures.bars(table), "bars of the scaled metrics of all entries, mean over contexts"),
        "<h2>Ends of the scale</h2>",
        _anchor_table(table),
        "<h2>Predicted and measured effects</h2>",
        "<p>Pseudobulk log2 fold change against the measured controls, for the perturbations with the most "
        f"significant genes. A point is a gene above {figures.FLOOR_CPM:g} CPM in the controls; the cross is "
        "the target gene, which r leaves out.</p>",
        _image(figures.scatter(groups), "scatter of predicted against measured log fold changes"),
    ]
    if emitted:
        sections += ["<h2>Emitted cells beside real ones</h2>", _EMITTED, _emitted_table(emitted)]
    if training_log:
        sections += ["<h2>Training</h2>", _image(figures.losses(training_log), "loss curves")]
    footer = f"{table.scorer} {table.version}, preset {table.preset}, scored in {table.seconds:.0f} s"
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + f"\n<footer><p>{escape(footer)}</p></footer>\n</body>\n</html>\n"
    )
    write_text(path, page)


def _low_is_good(table: ScoreTable) -> str:
    return escape(" and ".join(metric.label for metric in table.metrics.values() if metric.low_is_good) or "none")


def headline(table: ScoreTable) -> str:
    """One or two sentences: the model's scaled mean beside the best baseline and the replicate, or why none is."""
    overall = table.means[table.means["context"] == ALL]
    models = overall[overall["kind"] == "model"]
    baselines = overall[overall["kind"] == "baseline"].sort_values("scaled", ascending=False)
    if reason := table.no_headline():
        return f"No headline number can be given. {reason}. The metrics that are defined stand below."
    best, best_mean = str(baselines["entry"].iloc[0]), float(baselines["scaled"].iloc[0])
    texts = table.mean_texts()
    if models.empty:
        return f"No model was scored. The best baseline, {best}, has a scaled mean of {texts[best]}."
    model, mean = str(models["entry"].iloc[0]), float(models["scaled"].iloc[0])
    difference = mean - best_mean
    verdict = f"{abs(difference):.3f} {'above' if difference > 0 else 'below'} the best baseline"
    contexts = len(table.contexts())
    return (
        f"{model} has a scaled mean of {texts[model]} over {contexts} context{'s' if contexts > 1 else ''}: "
        f"{verdict}, {best} ({texts[best]}), where {table.low} is 0"
        + (f" and a replicate scores {texts[table.ceiling]}." if table.ceiling in texts else ".")
    )


def _score_table(table: ScoreTable, context: str) -> str:
    here = table.rows[table.rows["context"] == context]
    means = table.mean_texts(context)
    lines = []
    for entry, part in here.groupby("entry", sort=False):
        kind = str(part["kind"].iloc[0])
        values = part.set_index("metric")[["scaled", "raw"]].loc[list(table.metrics)]
        cells = "".join(
            f"<td>{number(scaled)}<br><small>{number(raw)}</small></td>"
            for scaled, raw in values.itertuples(index=False)
        )
        lines.append(
            f'<tr class="{kind}"><td>{escape(str(entry))}</td><td>{kind}</td>{cells}<td>{means[str(entry)]}</td></tr>'
        )
    return _html_table(escape(context), ["entry", "kind", *table.labels.values(), "scaled mean"], lines)


def _overall(table: ScoreTable) -> str:
    overall = table.means[table.means["context"] == ALL].sort_values("scaled", ascending=False)
    means = table.mean_texts()
    lines = [
        f'<tr class="{kind}"><td>{escape(entry)}</td><td>{kind}</td><td>{means[entry]}</td></tr>'
        for entry, kind in zip(overall["entry"], overall["kind"], strict=True)
    ]
    return _html_table("Mean over contexts", ["entry", "kind", "scaled mean"], lines)


def _anchor_table(table: ScoreTable) -> str:
    frame = table.anchors
    columns = ["low", "ceiling", "ceiling_sd", "ceiling_lowest", "ceiling_highest"]
    lines = []
    for metric in table.metrics:
        for context, part in frame[frame["metric"] == metric].groupby("context", sort=False):
            cells = "".join(f"<td>{number(float(part[column].iloc[0]))}</td>" for column in columns)
            used = f"{int(part['ceiling_perturbations'].iloc[0])}"
            lines.append(
                f"<tr><td>{table.labels[metric]}</td><td>{escape(str(context))}</td>{cells}<td>{used}</td></tr>"
            )
    heads = ["metric", "context", f"{table.low} (0)", "replicate", "sd", "lowest", "highest", "perturbations"]
    caption = (
        "Raw values; sd, lowest and highest over the splits, and the perturbations that have a value in all of them"
    )
    return _html_table(caption, heads, lines)


def _emitted_table(emitted: list[dict[str, Any]]) -> str:
    lines = []
    for one in emitted:
        real = str(one["differ_real"]) if one["cells"] == "controls" else "\u2013"
        off = [
            f"{one[f'{what}_off']} of {one['expressed']} ({number(one[f'{what}_median'])})"
            if one["expressed"]
            else "\u2013"
            for what in ("variance", "zeros")
        ]
        cells = [one["context"], one["cells"], f"{one['differ']} of {one['genes']}", real, *off]
        lines.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    heads = ["context", "cells", "genes that differ", "real from real", "variance off", "zeros off"]
    return _html_table("Genes that tell emitted cells from real ones", heads, lines)


def _scatter_groups(table: ScoreTable, truth: Path, prediction: Path, control: str) -> list[dict[str, Any]]:
    chosen = table.significant.sort_values("significant", ascending=False, kind="stable").head(PANELS)
    measured, predicted = read_labels(truth), read_labels(prediction)
    groups: dict[int, dict[str, Any]] = {}
    for context, part in chosen.groupby("context", sort=False):
        real, model = read_context(measured, str(context)), read_context(predicted, str(context))
        controls = figures.group_sums(real, control)
        for position, label, significant in part[["perturbation", "significant"]].itertuples():
            groups[position] = {
                "context": context,
                "perturbation": label,
                "significant": significant,
                "genes": real.var_names.to_numpy(),
                "controls": controls,
                "measured": figures.group_sums(real, label),
                "predicted": figures.group_sums(model, label),
            }
    return [groups[position] for position in chosen.index]


def _html_table(caption: str, heads: list[str], lines: list[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return (
        f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _image(svg: str, alternative: str) -> str:
    # An image of its own, so that identifiers of several figures cannot meet in one page.
    data = base64.b64encode(svg.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alternative)}">'
