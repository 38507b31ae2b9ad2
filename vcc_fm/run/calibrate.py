"""The stage `calibrate`: the effect scale of each predictor, from the validation split of a fold."""

from __future__ import annotations

import math
from functools import partial

from rich.console import Console

from vcc_fm.ground.files import write_json
from vcc_fm.prediction.calibrate import best_scale, validation_scores
from vcc_fm.prediction.predict import scaled_predictors
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import describe_counts, load_dataset
from vcc_fm.run.outputs import Output


def calibrate(recipe: Recipe, output: Output, console: Console) -> None:
    """Write the effect scales of one fold, and the scores that they were chosen by."""
    fold = output.fold
    decoder, data = Layout(recipe).decoder(fold, "train"), load_dataset(recipe, fold)
    names, uns = scaled_predictors(recipe.score.baselines), describe_counts(recipe, data)
    scores, unsure = validation_scores(
        data,
        partial(decoder.require, content=True),
        names,
        recipe.score.preset,
        recipe.predict,
        recipe.drawing_seed,
        uns,
        console,
    )
    if unsure:
        console.print(f"fold {fold}: effect scale 1, the validation groups cannot tell: {unsure}", markup=False)
    best = {name: best_scale(means) for name, means in scores.items()}
    by_scale = {
        name: {f"{scale:g}": None if math.isnan(mean) else mean for scale, mean in means.items()}
        for name, means in scores.items()
    }
    write_json(output.path, {"effect_scale": best, "scaled_means": by_scale})
    for name, means in by_scale.items():
        shown = "  ".join(f"{scale}: {'none' if mean is None else f'{mean:.3f}'}" for scale, mean in means.items())
        console.print(
            f"fold {fold}: {name}: effect scale {best[name]:.3g}; scores {shown}", highlight=False, soft_wrap=True
        )
