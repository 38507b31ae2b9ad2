"""The report's figures of perturbations and cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage

from vcc_fm.scoring.report.groups import Context, Spread
from vcc_fm.scoring.report.plots import BLUE, GREY, RED, panels, plain
from vcc_fm.scoring.table import ScoreTable

MOST_CONTEXTS = 6
"""Contexts that a figure has panels of."""
MOST_PANELS = 6
"""Perturbations in the scatter."""
MOST_ROWS = 60
"""Perturbations of a context in the heat map."""


def effects(contexts: Sequence[Context], rows: pd.DataFrame) -> Figure:
    """Predicted against measured change, a panel for each of the first rows; the target gene is a cross."""
    by_name = {one.name: one for one in contexts}
    first = rows.head(MOST_PANELS)
    figure, all_axes = panels(len(first), 3, 3.0, 3.1)
    for axes, (_, row) in zip(all_axes, first.iterrows(), strict=True):
        context = by_name[row["context"]]
        measured, predicted = context.changes[row["perturbation"]]
        target = context.genes == row["perturbation"]
        # Points as an image inside the SVG: 18,000 genes a panel would make the page heavy.
        axes.scatter(measured[~target], predicted[~target], s=6, alpha=0.5, color=BLUE, linewidth=0, rasterized=True)
        axes.scatter(measured[target], predicted[target], s=22, marker="x", color=RED)
        limit = 1.05 * float(np.abs([measured, predicted]).max(initial=0)) + 0.05
        axes.plot([-limit, limit], [-limit, limit], color="#aaaaaa", linewidth=0.8)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="measured LFC", ylabel="predicted LFC")
        significant = "" if np.isnan(row["significant"]) else f", {row['significant']:.0f} significant genes"
        head = f"{plain(row['perturbation'])} in {plain(row['context'])}"
        axes.set_title(f"{head}\nr = {row['r']:.2f}{significant}", fontsize=9)
    return figure


def discrimination(contexts: Sequence[Context]) -> Figure:
    """Similarity of each predicted (a row) to each measured perturbation (a column), like ones beside each other."""
    contexts = contexts[:MOST_CONTEXTS]
    figure, all_axes = panels(len(contexts), 2, 5.2 if len(contexts) > 1 else 7.5, 4.8 if len(contexts) > 1 else 6.6)
    image = None
    for axes, context in zip(all_axes, contexts, strict=True):
        order = context.rows["significant"].fillna(-1).to_numpy()
        shown = np.sort(np.argsort(-order, kind="stable")[:MOST_ROWS])
        part = context.similarity[np.ix_(shown, shown)]
        if len(shown) > 2:
            profiles = np.nan_to_num(part.T)
            order = leaves_list(linkage(profiles, "average"))
            part, shown = part[np.ix_(order, order)], shown[order]
        image = axes.imshow(part, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        names = [plain(context.rows["perturbation"].iloc[place]) for place in shown]
        size = 7 if len(names) <= 30 else 4
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set(xlabel="measured", ylabel="predicted", title=plain(context.name))
    if image is not None:
        figure.colorbar(image, ax=all_axes, label="cosine of log fold changes", shrink=0.6)
    return figure


def agreement(table: ScoreTable, parts: dict[str, pd.DataFrame], rows: pd.DataFrame) -> Figure | None:
    """Metrics that compare significant genes, of each perturbation, against the number of these in the truth.

    Args:
        table: says which metrics these are.
        parts: entry -> value of each metric (a column), index as ``rows``.
        rows: of all perturbations.

    Returns:
        None where the preset has no such metric, or no perturbation a value of it.
    """
    names = [name for name, metric in table.metrics.items() if metric.significant]
    names = [name for name in names if any(one[name].notna().any() for one in parts.values())]
    if not names or rows["significant"].isna().all():
        return None
    figure, all_axes = panels(len(names), 3, 3.2, 3.0)
    for axes, name in zip(all_axes, names, strict=True):
        for entry, colour in reversed(list(zip(parts, (BLUE, GREY), strict=False))):
            values = parts[entry][name]
            axes.scatter(rows["significant"], values, s=14, alpha=0.7, color=colour, linewidth=0, label=plain(entry))
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=-0.2)
        _plain_numbers(axes.xaxis)
        axes.set(xlabel="significant genes, measured", ylabel=plain(table.labels[name]))
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def sizes(contexts: Sequence[Context]) -> Figure:
    """Predicted against measured size of the change of every perturbation, a panel for each context."""
    contexts = contexts[:MOST_CONTEXTS]
    figure, all_axes = panels(len(contexts), 3, 3.2, 3.2)
    for axes, context in zip(all_axes, contexts, strict=True):
        measured, predicted = context.rows["size"], context.rows["predicted"]
        axes.scatter(measured, predicted, s=14, alpha=0.7, color=BLUE, linewidth=0)
        limit = 1.08 * float(np.nanmax([measured, predicted], initial=0)) + 0.01
        axes.plot([0, limit], [0, limit], color="#aaaaaa", linewidth=0.8)
        axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="measured size", ylabel="predicted size")
        axes.set_title(plain(context.name), fontsize=9)
    return figure


def cells(contexts: Sequence[Context]) -> Figure:
    """Depth of cells, and variance of genes within perturbations against their mean; measured and emitted."""
    contexts = contexts[:MOST_CONTEXTS]
    figure, all_axes = panels(2 * len(contexts), 2, 4.2, 3.0)
    for number, context in enumerate(contexts):
        _depth(all_axes[2 * number], context)
        _variance(all_axes[2 * number + 1], context)
    handles = all_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _looks(context: Context) -> list[tuple[str, Spread, str]]:
    return [(name, spread, GREY if name == "measured" else BLUE) for name, spread in context.spreads.items()]


def _depth(axes: Axes, context: Context) -> None:
    logs = [np.log10(spread.depths[spread.depths > 0]) for _, spread, _ in _looks(context)]
    edges = np.histogram_bin_edges(np.concatenate(logs), bins=40)
    for depths, (name, _, colour) in zip(logs, _looks(context), strict=True):
        share = np.full(len(depths), 1 / max(len(depths), 1))
        axes.hist(depths, list(edges), weights=share, histtype="step", linewidth=1.4, color=colour, label=name)
    axes.set(xlabel="log10 of UMI a cell", ylabel="share of cells")
    axes.set_title(f"{plain(context.name)}: depth", fontsize=9)


def _variance(axes: Axes, context: Context) -> None:
    for _, spread, colour in _looks(context):
        there = (spread.mean > 0) & (spread.variance > 0)
        mean, variance = spread.mean[there], spread.variance[there]
        axes.scatter(mean, variance, s=4, alpha=0.4, color=colour, linewidth=0, rasterized=True)
    axes.set(xscale="log", yscale="log", xlabel="mean, UMI a cell", ylabel="variance within groups")
    _plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_title(f"{plain(context.name)}: genes", fontsize=9)


def _plain_numbers(*all_axis: Axis) -> None:
    # Those of a logarithmic axis are formulas, which are not parsed here.
    for axis in all_axis:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
