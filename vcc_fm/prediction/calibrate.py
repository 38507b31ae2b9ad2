"""Choose the size of predicted effects on the validation split, by the scorer that will judge the held-out ones.

A decoder trained by likelihood shrinks what it is unsure of; the scorer compares sets of significant genes, which a
shrunken effect makes too small. The baselines are given the same chance. Nothing of the test groups is read.

A scale moves from ``PRIOR`` as far as the validation perturbations bear it out. Let x be the log of a scale over
``PRIOR``. A parabola a + b x + c x² goes through the scores, b has the standard deviation s over draws of the
perturbations with replacement. The scale chosen is where a + b x + c x² - s x² / (2 SPREAD) is highest: a slope that
is noise moves it by less than ``SPREAD``, one that is clear to the parabola's top or the end of the scales tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.prediction.asking import Asked
from vcc_fm.prediction.emission import emit_groups, write_measured
from vcc_fm.prediction.predict import make_predictor
from vcc_fm.recipe.predict import PredictConfig
from vcc_fm.scoring.compare import MEAN, RESAMPLES, UNLIMITED, panel_values
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry, ScoreTable
from vcc_fm.splits.groups import validation_groups
from vcc_fm.store.counts_file import CountsFile

SCALES = (0.8, 1.0, 1.25, 1.6)
PRIOR, SPREAD = 1.1, 0.3
"""What simulated worlds ask for, between a model in size (1.05) and means over contexts (1.25); what noise moves."""


def best_scale(values: np.ndarray) -> float:
    """The effect scale that validation asks for, as far as its size allows; see the head of this module.

    Args:
        values: [1 + R, S] scores at each of ``SCALES``, as measured and in R draws of the perturbations. ``PRIOR`` is
            kept where one is not finite: there is nothing to choose by.
    """
    if not np.isfinite(values).all():
        return PRIOR
    places = np.log(np.divide(SCALES, PRIOR))
    bend, slope, _ = np.polyfit(places, values.T, 2)
    fall = slope[1:].std() / (2 * SPREAD) - bend[0]
    top = slope[0] / (2 * fall) if fall > 0 else np.sign(slope[0]) * np.inf
    return float(PRIOR * np.exp(np.clip(top, places[0], places[-1])))


def best_scales(table: ScoreTable, names: Collection[str]) -> tuple[dict[str, float], pd.DataFrame]:
    """The effect scale of each predictor, and what it is chosen by.

    Args:
        table: from :func:`validation_table`, of all of ``SCALES``.
        names: predictors.

    Returns:
        Name -> scale; and a row for each predictor and scale: its scaled mean, that mean without limits (a capped
        error can improve while the error itself grows), and the raw value of each metric, means over contexts.
    """
    best: dict[str, float] = {}
    rows = []
    raw = table.rows.groupby(["entry", "metric"], sort=False)["raw"].mean()
    for name in names:
        entries = [entry_of(name, scale) for scale in SCALES]
        drawn = np.stack([panel_values(table, entry, RESAMPLES, 0)[:, -3:-1] for entry in entries])
        best[name] = best_scale(drawn[:, :, 0].T)
        for scale, entry, (mean, unlimited) in zip(SCALES, entries, drawn[:, 0], strict=True):
            seen = {"predictor": name, "scale": scale, MEAN: mean, UNLIMITED: unlimited}
            rows.append(seen | raw[entry].to_dict())
    return best, pd.DataFrame(rows)


def entry_of(name: str, scale: float) -> str:
    """What a predictor at an effect scale is called in a table."""
    return f"{name} {scale:g}"


def validation_table(
    data: Dataset,
    decoder: Callable[[], Path],
    names: Collection[str],
    scales: Collection[float],
    preset: str,
    config: PredictConfig,
    seed: int,
    uns: dict[str, Any],
    console: Console,
) -> ScoreTable:
    """Scores on the validation groups, an entry for each predictor and effect scale.

    Args:
        data: one fold.
        decoder: gives the folder of its decoder.
        names: predictors.
        scales: of their effects.
        preset: of the scorer.
        config: says how cells are emitted.
        seed: of what is drawn.
        uns: what a file of counts says of itself.
        console: where progress goes.

    Raises:
        UserError: there are no validation groups, or they cannot be scored.
    """
    groups = validation_groups(data.split)
    asked = [Asked(0, context, label, data.split.cells[context, label]) for context, label in groups]
    with tempfile.TemporaryDirectory() as scratch:
        truth = Path(scratch, "truth.h5ad")
        write_measured(truth, data.cells, groups, uns)
        entries, lines = list[Entry](), ProgressLines("calibrate", "predictions", console)
        for name in names:
            predictor = make_predictor(name, data, decoder, asked, config, console)
            for scale in scales:
                entry = Entry(entry_of(name, scale), "model", Path(scratch, f"{name}-{scale:g}.h5ad"))
                with CountsFile(entry.path, data.cells.genes, uns | {"predictor": name}) as file:
                    emit_groups(file, data, predictor, scale, asked, config, seed)
                entries.append(entry)
                lines(len(entries), len(names) * len(scales))
        return score(truth, entries, data.cells.control, preset, Path(scratch, "cache"), console=console)
