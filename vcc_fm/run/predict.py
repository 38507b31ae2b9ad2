"""The stage `predict`: all test groups of all folds, by the model and the baselines, and the truth beside them."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

from vcc_fm.ground.files import read_json, write_json
from vcc_fm.ground.processes import process_state
from vcc_fm.prediction.emission import Asked, write_measured
from vcc_fm.prediction.emission_check import check_emitter
from vcc_fm.prediction.predict import MODEL, Fold
from vcc_fm.prediction.predict import predict as predict_groups
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import describe_counts, load_dataset
from vcc_fm.run.outputs import Output


def predict(recipe: Recipe, output: Output, console: Console) -> None:
    """Write a file of counts for each predictor, the truth, and what a reader should know of them.

    Raises:
        UserError: an earlier stage is missing.
    """
    layout, state = Layout(recipe), process_state()
    folds = [_fold(recipe, fold) for fold in range(recipe.split.folds)]
    cells = recipe.predict.cells
    asked = [
        Asked(number, *group, fold.data.split.cells[group] if cells == "measured" else cells)
        for number, fold in enumerate(folds)
        for group in fold.data.split.groups("test")
    ]
    data = folds[0].data
    uns = describe_counts(recipe, data)
    for name in folds[0].scales:
        about = uns | {"predictor": name}
        predict_groups(name, layout.prediction(name), folds, asked, recipe.predict, recipe.seed, about, console)
    if state.is_main_process:
        write_measured(layout.truth, data.cells, [(one.context, one.perturbation) for one in asked], uns)
        contexts = sorted({one.context for one in asked})
        emitted, warnings = check_emitter(data, contexts, recipe.predict, recipe.seed)
        _say_emitter(emitted, warnings, console)
        record = _record(folds, asked) | {"emitted": emitted}
        record["warnings"] += warnings
        write_json(layout.prediction_record, record)
    state.wait_for_everyone()


def _fold(recipe: Recipe, number: int) -> Fold:
    """A fold, with the factor on each predictor's log ratios: the recipe's, or what the calibrate stage found.

    Raises:
        UserError: a stage has not been run, or was run for another recipe.
    """
    layout, asked = Layout(recipe), recipe.predict.effect_scale
    names = [MODEL, *recipe.score.baselines]
    if asked == "validation":
        found = read_json(layout.calibration(number).require())["effect_scale"]
        scales = {name: found.get(name, 1.0) for name in names}
    else:
        scales = dict.fromkeys(names, asked)
    return Fold(load_dataset(recipe, number), partial(layout.decoder(number, "train").require, content=True), scales)


def _say_emitter(emitted: list[dict[str, Any]], warnings: list[str], console: Console) -> None:
    for one in emitted:
        if one["cells"] == "controls":
            console.print(
                f"emitter: {one['context']}: {one['differ']} of {one['genes']} genes tell emitted controls from real "
                f"ones, {one['differ_real']} real from real",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    for warning in warnings:
        console.print("[yellow]warning[/yellow]", end=" ")
        console.print(warning, markup=False, soft_wrap=True)


def _record(folds: list[Fold], asked: list[Asked]) -> dict[str, Any]:
    """What a reader of the scores should know about the predictions."""
    without = [one for one in asked if not folds[one.fold].data.responses.is_known(one.context, one.perturbation)]
    return {
        "groups": len(asked),
        "cells": sum(one.cells for one in asked),
        "effect_scale": [fold.scales for fold in folds],
        "without_response_elsewhere": len(without),
        "warnings": sorted({warning for fold in folds for warning in fold.data.split.warnings}),
    }
