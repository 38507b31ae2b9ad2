"""The report: one HTML file that shows what a run is worth, without a network; its figures also as files beside it.

What comes from data is escaped where it is written: as HTML in the page, as text nodes by ``page.js``, and as JSON
without ``<``, ``>`` and ``&``. A policy in the page lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vcc_fm.ground.files import whole_folder, write_text
from vcc_fm.ground.words import listed, many
from vcc_fm.scoring.report import plots, plots_groups, tables
from vcc_fm.scoring.report.groups import FLOOR_CPM, Context, read_contexts
from vcc_fm.scoring.report.record import Record
from vcc_fm.scoring.report.rows import LARGEST, MOST_CHOSEN, MOST_LISTED, SAMPLE, data_of, parts_of
from vcc_fm.scoring.table import ScoreTable

_EMITTED = (
    "<p>Control cells that nothing changed, emitted from half of the controls and compared with the other half; and "
    "training perturbations, emitted with their own measured responses and compared with their measured cells. Rank "
    "test of shares, 5 % false discoveries. Variance and zeros: genes above 0.1 UMI a cell that are off by more than "
    "10 %, and the median ratio. A few dozen cells are off by chance.</p>"
)


def write_report(
    path: Path, table: ScoreTable, truth: Path, model_prediction: Path, control: str, record: Record
) -> None:
    """Write the report as one self-contained HTML file, and its figures, as PNG and SVG, into the folder of its name.

    Both appear whole: ``report.html`` in one rename, ``report/`` before it in another.

    Args:
        path: the file to write.
        table: the scores; the first entry of kind ``model`` is the one the page speaks of.
        truth: h5ad file of measured cells with controls, the one that was scored.
        model_prediction: h5ad file of the model's prediction, as scored.
        control: label of the control cells.
        record: what the run says of itself.
    """
    contexts, rows = read_contexts(truth, model_prediction, control, table.significant, MOST_CHOSEN)
    with whole_folder(path.with_suffix("")) as folder:
        sections = list(_sections(table, contexts, rows, record, folder))
    # A closing tag in a label must not end the element that holds it.
    data = json.dumps(data_of(table, contexts, rows), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    script, style = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    links = "".join(f'<a href="#s{number}">{escape(title)}</a>' for number, (title, _) in enumerate(sections))
    body = "\n".join(
        f'<section id="s{number}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'
        for number, (title, content) in enumerate(sections)
    )
    footer = f"{table.scorer} {table.version}, preset {table.preset}, scored in {table.seconds:.0f} s"
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(record.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(record.title)}</h1>\n{_notes(record.notes)}"
        f'<p class="headline">{escape(tables.headline(table))}</p>\n<nav>{links}</nav>\n{body}\n'
        f"<footer><p>{escape(footer)}</p></footer>\n"
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n',
    )


def _sections(
    table: ScoreTable, contexts: Sequence[Context], rows: pd.DataFrame, record: Record, folder: Path
) -> Iterator[tuple[str, str]]:
    """Title and content of every section; figures are written into ``folder``."""

    def figure(name: str, drawn: Figure, alternative: str) -> str:
        # An image of its own, so that identifiers of several figures cannot meet in one page.
        data = base64.b64encode(plots.written(drawn, folder, name).encode()).decode()
        image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alternative)}">'
        return f'<div class="wide figure" tabindex="0">{image}</div>'

    yield "Scores", _scores(table)
    if against := tables.against_best(table):
        yield f"{tables.model_of(table)} against {tables.best_baseline(table)}", against
    yield "Metrics", figure("metrics", plots.metrics(table), "bars of the scaled metrics of all entries")
    yield "Ends of the scale", tables.anchor_table(table)
    yield "Perturbations", _perturbations(table, rows)
    drawn = figure("effects", plots_groups.effects(contexts, rows), "scatter of predicted against measured changes")
    yield "Predicted and measured effects", _effects(rows) + drawn
    drawn = figure("discrimination", plots_groups.discrimination(contexts), "heat map of similarities")
    yield "Discrimination", _discrimination(contexts) + drawn
    if agreeing := plots_groups.agreement(table, parts_of(table, rows), rows):
        said = "<p>A point is a perturbation: the metric's own value of it, unscaled, by the number of genes that are "
        said += "significant in the truth.</p>"
        yield "Agreement of significant genes", said + figure("agreement", agreeing, "agreement by significant genes")
    drawn = figure("sizes", plots_groups.sizes(contexts), "predicted against measured size of changes")
    yield "Size of effects", _SIZES + tables.size_table(contexts) + _contexts_shown(contexts) + drawn
    drawn = figure("cells", plots_groups.cells(contexts), "depth of cells, and variance of genes against their mean")
    yield "Depth and dispersion", _CELLS + tables.cells_table(contexts) + _contexts_shown(contexts) + drawn
    if record.emitted:
        yield "Emitted cells beside real ones", _EMITTED + tables.emitted_table(record.emitted)
    if record.log:
        yield "Training", figure("training", plots.training(record.log), "loss curves")
    yield from ((section.title, section.html()) for section in record.sections)


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)


def _scores(table: ScoreTable) -> str:
    low_is_good = " and ".join(metric.label for metric in table.metrics.values() if metric.low_is_good) or "none"
    beyond = " What a limit of the scale cut off stands in brackets." if table.limited else ""
    return "\n".join(
        [
            f"<p>A scaled value is 0 for {escape(table.low)} and 1 for {escape(table.high)}. A replicate is half of "
            "the measured cells scored against the other half; a perfect prediction scores above it, since it has "
            f"noise. Raw values stand below the scaled ones; low is good for {escape(low_is_good)}, high for the "
            f"others.{beyond}</p>",
            tables.overall_table(table),
            *(tables.score_table(table, context) for context in table.contexts()),
            _notes([*(f"Missing: {line}" for line in table.missing()), *table.notes]),
        ]
    )


def _perturbations(table: ScoreTable, rows: pd.DataFrame) -> str:
    left = f" {many(len(rows) - MOST_LISTED, 'perturbation')} with fewer are left out." * (len(rows) > MOST_LISTED)
    best = f"the best baseline, {tables.best_baseline(table)}"
    model = f"{tables.model_of(table)} and {best}" if tables.model_of(table) is not None else best
    return (
        f"<p>What each perturbation gives to each metric, unscaled, of {escape(model)}. Those with the most "
        "significant genes stand first; a click on a head sorts. Place is that of its own measured perturbation among "
        f"those of the context, by similarity to the prediction: 1 is the most similar.{left}</p>\n"
        '<div class="tools"><label>Search '
        '<input id="search" type="search" size="24" placeholder="context or perturbation"></label> '
        '<label id="of-metric" hidden>Metric <select id="metric"></select></label> '
        '<output id="found"></output></div>\n'
        '<div class="wide tall" tabindex="0"><table id="rows"><thead></thead><tbody></tbody></table></div>\n'
        '<button id="more" type="button" hidden></button>\n'
        "<noscript><p>This table and the next figure need scripts; the values are in scores.json.</p></noscript>"
    )


def _effects(rows: pd.DataFrame) -> str:
    left = len(rows) - MOST_CHOSEN
    kept = f" {many(left, 'perturbation')} with fewer significant genes cannot be chosen." if left > 0 else ""
    return (
        "<p>Pseudobulk log2 fold change against the measured controls. A point is a gene above "
        f"{FLOOR_CPM:g} CPM in the controls; the cross is the target gene, which r leaves out. Shown are the "
        f"{LARGEST:,} genes with the largest measured or predicted change and {SAMPLE:,} of the others, evenly along "
        f"the gene axis; r is over all.{kept}</p>\n"
        '<div class="tools"><label>Perturbation <select id="choose"></select></label></div>\n'
        '<div id="effect"></div>\n<p id="effect-said" aria-live="polite"></p>\n'
        "<p>The perturbations with the most significant genes, all genes:</p>\n"
    )


def _discrimination(contexts: Sequence[Context]) -> str:
    most = plots_groups.MOST_ROWS
    large = [one.name for one in contexts if len(one.rows) > most]
    kept = (
        f" The figure has the {most} perturbations with the most significant genes of {listed(large)}."
        if large
        else ""
    )
    return (
        "<p>Cosine of each predicted with each measured change of a context, the predicted perturbation's target gene "
        "left out. Perturbations that are alike stand beside each other. A predictor that tells perturbations apart "
        f"has its highest values on the diagonal.{escape(kept)}</p>\n"
        + tables.discrimination_table(contexts)
        + _contexts_shown(contexts)
    )


def _contexts_shown(contexts: Sequence[Context]) -> str:
    most = plots_groups.MOST_CONTEXTS
    return f"<p>The figure has the first {most} of {len(contexts)} contexts.</p>\n" if len(contexts) > most else ""


_SIZES = (
    "<p>The measured size has the noise of its cells, so that small changes look larger than they are. The best "
    "factor is what all predicted changes would be multiplied by to be nearest to the measured ones (least squares); "
    "it is 1 where sizes are right, and noise leaves it alone.</p>\n"
)
_CELLS = (
    f"<p>Dispersion is that of a negative binomial, from the variance within perturbations, depth included; its "
    f"median is over genes above {tables.DENSE:g} UMI a cell in measured and emitted cells.</p>\n"
)
