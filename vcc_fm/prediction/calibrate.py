"""Choose the size of predicted effects on the validation split, by the scorer that will judge the held-out ones.

A decoder trained by likelihood shrinks what it is unsure of; the scorer compares sets of significant genes, which a
shrunken effect makes too small. The baselines are given the same chance. Nothing of the test groups is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.groups import validation_groups
from vcc_fm.prediction.asking import Asked
from vcc_fm.prediction.emission import emit_groups, write_measured
from vcc_fm.prediction.predict import make_predictor
from vcc_fm.recipe.predict import PredictConfig
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry, ScoreTable
from vcc_fm.store.counts_file import CountsFile

SCALES = (0.8, 1.0, 1.25, 1.6)


def best_scale(means: dict[float, float]) -> float:
    """The scale at the top of a parabola through the scores over log scale, within the scales that were tried.

    A parabola, because single scores carry the noise of a few validation perturbations. Where it opens upwards, the
    best of the scales tried.
    """
    scales, scores = np.array(list(means)), np.array(list(means.values()))
    if not np.isfinite(scores).all():
        return 1.0  # there is no scaled mean to choose by
    bend, slope, _ = np.polyfit(np.log(scales), scores, 2)
    if bend >= 0:
        return float(scales[np.argmax(scores)])
    return float(np.clip(np.exp(-slope / (2 * bend)), scales.min(), scales.max()))


def validation_scores(
    data: Dataset,
    decoder: Callable[[], Path],
    names: Collection[str],
    preset: str,
    config: PredictConfig,
    seed: int,
    uns: dict[str, Any],
    console: Console,
) -> tuple[dict[str, dict[float, float]], str]:
    """Scaled mean of the metrics on the validation groups, by predictor and effect scale; why there is none, or "".

    See :func:`validation_table`.
    """
    table = validation_table(data, decoder, names, SCALES, preset, config, seed, uns, console)
    means = {name: {scale: table.mean(entry_of(name, scale)) for scale in SCALES} for name in names}
    return means, table.no_headline()


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
        entries = []
        for name in names:
            predictor = make_predictor(name, data, decoder, asked, config, console)
            for scale in scales:
                entry = Entry(entry_of(name, scale), "model", Path(scratch, f"{name}-{scale:g}.h5ad"))
                with CountsFile(entry.path, data.cells.genes, uns | {"predictor": name}) as file:
                    emit_groups(file, data, predictor, scale, asked, config, seed)
                entries.append(entry)
        return score(truth, entries, data.cells.control, preset, Path(scratch, "cache"))
