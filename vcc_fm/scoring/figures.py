"""The report's figures, drawn without a display and returned as SVG text."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vcc_fm.scoring.table import MOST_COLUMNS, ScoreTable

# Labels are text: a $ in one begins no formula.
mpl.rcParams["text.parse_math"] = False

_COLOURS = {"model": ["#1b5e9e", "#4a90c9", "#8bbbe0"], "baseline": ["#8c8c8c", "#b3b3b3", "#d0d0d0"]}
_CEILING = "#3a8f5c"

#: Genes below this mean in the controls are left out of the scatter, as the scorer leaves them out of its tests;
#: the same number, about one UMI in a pseudobulk of 200,000, keeps the ratio of small counts finite. CPM.
FLOOR_CPM = 5.0


def bars(table: ScoreTable) -> str:
    """Scaled metrics of all entries, mean over contexts, with lines at the mean response (0) and the replicate (1)."""
    # A metric that a context lacks has no mean over contexts; the bar is left out and the label says so.
    groups = table.rows.groupby(["entry", "metric"], sort=False)["scaled"]
    wide = groups.agg(lambda values: values.mean(skipna=False)).unstack("metric")
    kinds = table.rows.drop_duplicates("entry").set_index("entry")["kind"]
    undefined = set(table.anchors.loc[table.anchors["reason"] != "", "metric"])
    entries = list(kinds.index)
    many = len(table.metrics) > MOST_COLUMNS
    figure = Figure(figsize=(0.4 * len(table.metrics), 6) if many else (9, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(entries)
    used = Counter[str]()
    for rank, entry in enumerate(entries):
        kind = str(kinds[entry])
        shades = _COLOURS.get(kind, [_CEILING])
        colour = shades[used[kind] % len(shades)]
        used[kind] += 1
        heights = wide.loc[entry].reindex(list(table.metrics)).to_numpy(float)
        # A scale with its ends close together throws values far off; the bar is cut and its value written instead.
        shown = np.clip(heights, -1.5, 2.0)
        places = np.arange(len(table.metrics)) + (rank - (len(entries) - 1) / 2) * width
        axes.bar(places, shown, width * 0.92, color=colour, label=entry)
        for place, height, top in zip(places, heights, shown, strict=True):
            if np.isfinite(height) and height != top:
                axes.text(
                    place,
                    top,
                    f"{height:.1f}",
                    ha="center",
                    va="bottom" if top > 0 else "top",
                    fontsize=7,
                    rotation=90,
                )
    axes.axhline(0, color="#555555", linewidth=1)
    axes.axhline(1, color=_CEILING, linewidth=1, linestyle="--")
    labels = [f"{label}\n(undefined)" if metric in undefined else label for metric, label in table.labels.items()]
    axes.set_xticks(np.arange(len(table.metrics)), labels, rotation=90 if many else 0)
    axes.set_ylabel("scaled score")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _svg(figure)


def lfc(counts: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudobulk log2 fold change, log2((t + f) / (c + f)) in counts per million with f = ``FLOOR_CPM``.

    Args:
        counts: (genes,) summed counts of the perturbed cells.
        controls: (genes,) summed counts of the control cells.

    Returns:
        The fold changes (genes,), and a mask (genes,) of the genes whose control mean is above ``FLOOR_CPM``.
    """
    target, control = (1e6 * sums / sums.sum() for sums in (counts, controls))
    return np.log2((target + FLOOR_CPM) / (control + FLOOR_CPM)), control > FLOOR_CPM


def scatter(groups: list[dict[str, Any]]) -> str:
    """Predicted against measured LFC, one panel per perturbation.

    Args:
        groups: dictionaries with context, perturbation, significant (number of genes), genes (symbols), and measured,
            predicted, controls: (genes,) summed counts.
    """
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(3 * columns, 3 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    for panel, group in zip(panels, groups, strict=False):
        measured, expressed = lfc(group["measured"], group["controls"])
        predicted, _ = lfc(group["predicted"], group["controls"])
        target = np.isin(group["genes"], group["perturbation"])
        others = expressed & ~target
        r = correlation(measured[others], predicted[others])
        # Points as an image inside the SVG: 18,000 genes a panel would make the page heavy.
        panel.scatter(
            measured[others], predicted[others], s=6, alpha=0.5, color="#1b5e9e", linewidth=0, rasterized=True
        )
        panel.scatter(measured[expressed & target], predicted[expressed & target], s=22, marker="x", color="#c0392b")
        shown = np.concatenate([measured[expressed], predicted[expressed]])
        limit = 1.05 * float(np.abs(shown).max()) + 0.05
        panel.plot([-limit, limit], [-limit, limit], color="#aaaaaa", linewidth=0.8)
        panel.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="measured LFC", ylabel="predicted LFC")
        panel.set_title(
            f"{group['perturbation']} in {group['context']}\nr = {r:.2f}, {group['significant']} significant genes",
            fontsize=9,
        )
        panel.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def losses(log: list[dict[str, Any]]) -> str:
    """Loss curves, one panel per phase, one line per split.

    Args:
        log: dictionaries with phase, step, split and loss.
    """
    frame = pd.DataFrame(log)
    phases = list(dict.fromkeys(frame["phase"]))
    figure = Figure(figsize=(4.5 * len(phases), 3), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False).ravel()
    for panel, phase in zip(panels, phases, strict=True):
        for split, part in frame[frame["phase"] == phase].groupby("split", sort=False):
            panel.plot(
                part["step"], part["loss"], label=str(split), marker="o" if len(part) < 30 else None, markersize=3
            )
        panel.set(title=str(phase), xlabel="step", ylabel="loss")
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two vectors; NaN where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def group_sums(cells: ad.AnnData, label: str) -> np.ndarray:
    """Summed counts (genes,) float64 of the cells with a perturbation label."""
    chosen = cells.X[(cells.obs["perturbation"] == label).to_numpy()]
    return np.asarray(chosen.sum(axis=0, dtype=np.float64)).ravel()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Fixed identifiers and no date: the same table gives the same page.
    with mpl.rc_context({"svg.hashsalt": "vcc-fm"}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return buffer.getvalue()
