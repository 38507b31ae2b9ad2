"""The stage `calibrate`: the effect scale of each predictor, from the validation split of a fold."""

from __future__ import annotations

import json
from functools import partial

from rich.console import Console

from vcc_fm.ground.files import write_json
from vcc_fm.prediction.calibrate import PRIOR, SCALES, best_scales, validation_table
from vcc_fm.prediction.predict import scaled_predictors
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import describe_counts, load_dataset
from vcc_fm.run.outputs import Output
from vcc_fm.scoring.compare import MEAN
from vcc_fm.scoring.table import number


def calibrate(recipe: Recipe, output: Output, console: Console) -> None:
    """Write the effect scales of one fold, and the scores that they were chosen by."""
    fold = output.fold
    decoder, data = Layout(recipe).decoder(fold, "train"), load_dataset(recipe, fold)
    names, uns = scaled_predictors(recipe.score.baselines), describe_counts(recipe, data)
    table = validation_table(
        data,
        partial(decoder.require, content=True),
        names,
        SCALES,
        recipe.score.preset,
        recipe.predict,
        recipe.drawing_seed,
        uns,
        console,
    )
    if unsure := table.no_headline():
        console.print(
            f"fold {fold}: effect scale {PRIOR:g}, the validation groups cannot tell: {unsure}", markup=False
        )
    best, tried = best_scales(table, names)
    write_json(output.path, {"effect_scale": best, "tried": json.loads(tried.to_json(orient="records"))})
    for name, part in tried.groupby("predictor", sort=False):
        shown = "  ".join(f"{scale:g}: {number(mean)}" for scale, mean in zip(part["scale"], part[MEAN], strict=True))
        console.print(
            f"fold {fold}: {name}: effect scale {best[str(name)]:.3g}; scores {shown}", highlight=False, soft_wrap=True
        )
