"""Choose the size of predicted effects on the validation split, by the scorer that will judge the held-out ones.

A decoder trained by likelihood shrinks what it is unsure of; the scorer compares sets of significant genes, which a
shrunken effect makes too small. The baselines are given the same chance. Nothing of the test groups is read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import write_json
from vcc_fm.prediction.emission import Asked, describe_counts, emit_groups, write_measured
from vcc_fm.prediction.predict import make_predictor, scaled_predictors
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.load import load_dataset
from vcc_fm.run.outputs import Output
from vcc_fm.scoring.table import Entry
from vcc_fm.scoring.vcc import score
from vcc_fm.store.counts_file import CountsFile

SCALES = (0.8, 1.0, 1.25, 1.6)


def calibrate(recipe: Recipe, output: Output, console: Console) -> None:
    """Write ``calibration.json`` of a fold.

    Raises:
        UserError: a decoder is missing, or the validation split cannot be scored.
    """
    fold = output.fold
    scores = _validation_scores(recipe, fold, load_dataset(recipe, fold), console)
    best = {name: best_scale(means) for name, means in scores.items()}
    by_scale = {
        name: {f"{scale:g}": None if np.isnan(mean) else mean for scale, mean in means.items()}
        for name, means in scores.items()
    }
    write_json(output.path, {"effect_scale": best, "scaled_means": by_scale})
    for name, means in by_scale.items():
        shown = "  ".join(f"{scale}: {'none' if mean is None else f'{mean:.3f}'}" for scale, mean in means.items())
        console.print(
            f"fold {fold}: {name}: effect scale {best[name]:.3g}; scores {shown}", highlight=False, soft_wrap=True
        )


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


def _validation_scores(recipe: Recipe, fold: int, data: Dataset, console: Console) -> dict[str, dict[float, float]]:
    """Scaled mean of the metrics on the validation groups, by predictor and effect scale."""
    groups = data.split.groups("validation")
    if not groups:
        raise UserError("predict.effect_scale=validation needs validation groups, the split has none; give a number")
    asked = [Asked(0, context, label, data.split.cells[context, label]) for context, label in groups]
    uns = describe_counts(recipe, data)
    with tempfile.TemporaryDirectory() as scratch:
        truth = Path(scratch, "truth.h5ad")
        write_measured(truth, data.cells, groups, uns)
        predictors = {
            name: make_predictor(name, recipe, fold, data, 1.0, asked, console) for name in scaled_predictors(recipe)
        }
        entries = []
        for name, predictor in predictors.items():
            for scale in SCALES:
                predictor.effect_scale = scale
                entry = Entry(f"{name} {scale:g}", "model", Path(scratch, f"{name}-{scale:g}.h5ad"))
                with CountsFile(entry.path, data.cells.genes, uns | {"predictor": name}) as file:
                    emit_groups(file, recipe, data, predictor, asked)
                entries.append(entry)
        table = score(truth, entries, data.cells.control, recipe.score.preset, Path(scratch, "cache"))
    if reason := table.no_headline():
        console.print(f"fold {fold}: effect scale 1, the validation groups cannot tell: {reason}", markup=False)
    return {name: {scale: table.mean(f"{name} {scale:g}") for scale in SCALES} for name in predictors}
