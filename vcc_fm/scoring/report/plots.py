"""The report's figures of scores and training, drawn without a display, and how a figure is written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from vcc_fm.scoring.table import MOST_COLUMNS, ScoreTable

# Labels are text: a $ in one begins no formula.
mpl.rcParams["text.parse_math"] = False

BLUE, GREY, GREEN, RED = "#1b5e9e", "#8c8c8c", "#3a8f5c", "#c0392b"
_COLOURS = {"model": "Blues_r", "baseline": "YlOrBr", "ceiling": "Greens_r", "oracle": "Purples_r"}
_LONGEST = 40


def written(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure as PNG and SVG into a folder; its SVG text.

    The same figure gives the same bytes: identifiers are fixed, and there is no date.
    """
    svg = folder / f"{name}.svg"
    with mpl.rc_context({"svg.hashsalt": "vcc-fm"}), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # Placed once, and drawn once for each file: savefig would draw it once more before.
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        FigureCanvasAgg(figure).print_png(folder / f"{name}.png")
    return svg.read_text(encoding="utf-8")


def plain(label: object) -> str:
    """A label as a figure can show it: printable, on one line, not too long."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in str(label))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def panels(number: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, of a size in inches each, left to right."""
    columns = min(columns, number)
    lines = -(-number // columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=150, layout="constrained")
    all_axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in all_axes[number:]:
        axes.set_axis_off()
    return figure, all_axes[:number]


def metrics(table: ScoreTable) -> Figure:
    """Scaled metrics of all entries, mean over contexts, with lines at the mean response (0) and the replicate (1)."""
    # A metric that a context lacks has no mean over contexts; the bar is left out and the label says so.
    groups = table.rows.groupby(["entry", "metric"], sort=False)["scaled"]
    wide = groups.agg(lambda values: values.mean(skipna=False)).unstack("metric")
    kinds = {str(entry): str(kind) for entry, kind in table.rows[["entry", "kind"]].drop_duplicates().values}
    undefined = set(table.anchors.loc[table.anchors["reason"] != "", "metric"])
    many = len(table.metrics) > MOST_COLUMNS
    figure, (axes,) = panels(1, 1, *((0.4 * len(table.metrics), 6.0) if many else (9.0, 4.2)))
    width = 0.8 / len(kinds)
    colours = {
        kind: iter(mpl.colormaps[name](np.linspace(0.2, 0.85, list(kinds.values()).count(kind))))
        for kind, name in _COLOURS.items()
    }
    for rank, (entry, kind) in enumerate(kinds.items()):
        places = np.arange(len(table.metrics)) + (rank - (len(kinds) - 1) / 2) * width
        heights = wide.loc[entry].reindex(list(table.metrics)).to_numpy(float)
        _bars(axes, places, heights, width * 0.92, color=next(colours[kind]), label=plain(entry))
    axes.axhline(0, color="#555555", linewidth=1)
    axes.axhline(1, color=GREEN, linewidth=1, linestyle="--")
    labels = [plain(one) + ("\n(undefined)" if name in undefined else "") for name, one in table.labels.items()]
    axes.set_xticks(np.arange(len(table.metrics)), labels, rotation=90 if many else 0)
    axes.set_ylabel("scaled score")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _bars(axes: Axes, places: np.ndarray, heights: np.ndarray, width: float, **look: Any) -> None:
    # A scale with its ends close together throws values far off; the bar is cut and its value written instead.
    shown = np.clip(heights, -1.5, 2.0)
    axes.bar(places, shown, width, **look)
    for place, height, top in zip(places, heights, shown, strict=True):
        if np.isfinite(height) and height != top:
            side = "bottom" if top > 0 else "top"
            axes.text(place, top, f"{height:.1f}", ha="center", va=side, fontsize=7, rotation=90)


def training(log: Sequence[dict[str, Any]]) -> Figure:
    """Loss curves, one panel per phase, one line per split.

    Args:
        log: dictionaries with phase, step, split and loss.
    """
    frame = pd.DataFrame(log)
    phases = list(dict.fromkeys(frame["phase"]))
    figure, all_axes = panels(len(phases), 2, 4.5, 3.0)
    for axes, phase in zip(all_axes, phases, strict=True):
        for split, part in frame[frame["phase"] == phase].groupby("split", sort=False):
            marker = "o" if len(part) < 30 else None
            axes.plot(part["step"], part["loss"], label=plain(split), marker=marker, markersize=3)
        axes.set(xlabel="step", ylabel="loss")
        axes.set_title(plain(phase), fontsize=9)
        axes.legend(frameon=False, fontsize=8)
    return figure
