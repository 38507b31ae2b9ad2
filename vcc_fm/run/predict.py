"""The stage `predict`: what is asked for, by the model and the baselines, and the truth of what was held out."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

from vcc_fm.ground.files import read_json, write_json
from vcc_fm.ground.processes import process_state
from vcc_fm.prediction.asking import Asking, asked_for, with_known_targets
from vcc_fm.prediction.emission import write_measured
from vcc_fm.prediction.emission_check import check_emitter
from vcc_fm.prediction.predict import MODEL, Fold, scaled_predictors
from vcc_fm.prediction.predict import predict as predict_groups
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import describe_counts, load_dataset, read_splits
from vcc_fm.run.outputs import Output
from vcc_fm.splits.groups import seen_before
from vcc_fm.store.cells import CellStore


def predict(recipe: Recipe, output: Output, console: Console) -> None:
    """Write a file of counts for each predictor, the truth, and what a reader should know of them.

    Raises:
        UserError: an earlier stage is missing, or what is asked for cannot be predicted.
    """
    layout, state = Layout(recipe), process_state()
    cells, splits = CellStore(layout.cells.require()), read_splits(recipe)
    asking = asked_for(recipe.predict, splits, cells.group_cells, cells.control, cells.separator)
    folds = [_fold(recipe, fold, asking) for fold in range(recipe.split.folds)]
    data = folds[0].data
    known = {*data.protein_rows, *data.learned_targets}
    asking = with_known_targets(asking, known, data.separator, data.missing)
    for note in asking.notes:
        console.print(f"asked: {note}", highlight=False, markup=False, soft_wrap=True)
    uns = describe_counts(recipe, data)
    for name in folds[0].scales:
        about = uns | {"predictor": name}
        predict_groups(
            name, layout.prediction(name), folds, asking.groups, recipe.predict, recipe.drawing_seed, about, console
        )
    if state.is_main_process:
        if asking.truth:
            write_measured(
                layout.truth,
                data.cells,
                [(one.context, one.perturbation) for one in asking.truth],
                # Nothing of the recipe: runs with the same held-out cells have the same file, and share its anchors.
                {key: uns[key] for key in ("values", "simulated")},
            )
        contexts = sorted({one.context for one in asking.groups})
        emitted, warnings = check_emitter(data, contexts, recipe.predict, recipe.drawing_seed)
        for number in range(recipe.split.folds):
            config = read_json(layout.decoder(number, "train").path / "config.json")
            truth = [(one.context, one.perturbation) for one in asking.truth if one.fold == number]
            warnings += seen_before(truth, config["trained_on"])
        _say_emitter(emitted, warnings, console)
        record = _record(folds, asking) | {"emitted": emitted}
        record["warnings"] += asking.notes + warnings
        write_json(layout.prediction_record, record)
    state.wait_for_everyone()


def _fold(recipe: Recipe, number: int, asking: Asking) -> Fold:
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
        scales = dict.fromkeys(names, 1.0) | dict.fromkeys(scaled_predictors(recipe.score.baselines), asked)
    data = load_dataset(recipe, number, asked=asking.labels())
    return Fold(data, partial(layout.decoder(number, "train").require, content=True), scales)


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


def _record(folds: list[Fold], asking: Asking) -> dict[str, Any]:
    """What a reader of the scores should know about the predictions."""
    asked = asking.groups
    without = [
        one for one in asking.truth if not folds[one.fold].data.responses.is_known(one.context, one.perturbation)
    ]
    return {
        "groups": len(asked),
        "scored": len(asking.truth),
        "cells": sum(one.cells for one in asked),
        "effect_scale": [fold.scales for fold in folds],
        "without_response_elsewhere": len(without),
        "warnings": sorted({warning for fold in folds for warning in fold.data.split.warnings}),
    }
