"""Predict the counts of the held-out perturbations, by the decoder and by the baselines.

Writes ``predictions.h5ad``, ``baselines/*.h5ad`` and ``truth.h5ad`` into the run folder: CSR, int32, on the recipe's
gene axis, streamed. Each process predicts a run of groups; what is drawn for a cell does not depend on which.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vcc_fm.baselines.embedding_transfer import NAME as EMBEDDING_TRANSFER
from vcc_fm.baselines.embedding_transfer import load_embedding_transfer
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.files import empty_folder, read_json, write_json
from vcc_fm.ground.processes import process_state
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.prediction.emission import Asked, describe_counts, emit_groups, write_measured
from vcc_fm.prediction.emission_check import check_emitter
from vcc_fm.prediction.predictors import BASELINES, BaselinePredictor, DecoderPredictor, Predictor
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.outputs import Output
from vcc_fm.store.counts_file import CountsFile, join_counts_files


def predict(recipe: Recipe, output: Output, console: Console) -> None:
    """Predict all test groups of all folds, by the decoder and the recipe's baselines, and write the truth beside.

    Raises:
        UserError: an earlier stage is missing.
    """
    layout, state = Layout(recipe), process_state()
    folds = [load_dataset(recipe, fold) for fold in range(recipe.split.folds)]
    scales = [effect_scales(recipe, fold) for fold in range(len(folds))]
    asked = [
        Asked(fold, context, perturbation, _cells(recipe, data, context, perturbation))
        for fold, data in enumerate(folds)
        for context, perturbation in data.split.groups("test")
    ]
    uns = describe_counts(recipe, folds[0])
    for name in scales[0]:

        def make(fold: int, groups: list[Asked], name: str = name) -> Predictor:
            return make_predictor(name, recipe, fold, folds[fold], scales[fold][name], groups, console)

        progress = ProgressLines(f"predict: {name}", "cells", console)
        _predict_shared(layout.prediction(name), recipe, folds, asked, make, uns | {"predictor": name}, progress)
    if state.is_main_process:
        write_measured(layout.truth, folds[0].cells, [(one.context, one.perturbation) for one in asked], uns)
        emitted, warnings = check_emitter(
            folds[0], sorted({one.context for one in asked}), recipe.predict, recipe.seed
        )
        _say_emitter(emitted, warnings, console)
        record = _record(folds, asked, scales) | {"emitted": emitted}
        record["warnings"] += warnings
        write_json(layout.prediction_record, record)
    state.wait_for_everyone()


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


def _predict_shared(
    path: Path,
    recipe: Recipe,
    folds: list[Dataset],
    asked: list[Asked],
    make: Callable[[int, list[Asked]], Predictor],
    uns: dict[str, Any],
    progress: ProgressLines,
) -> None:
    """Predict ``asked`` in equal runs of groups, one a process, and join the parts in order."""
    state, parts = process_state(), path.with_name(f"{path.name}.parts")
    mine = [asked[i] for i in np.array_split(np.arange(len(asked)), state.num_processes)[state.process_index]]
    if state.is_main_process:
        empty_folder(parts)
    state.wait_for_everyone()
    try:
        if mine:
            with CountsFile(parts / f"{state.process_index:05d}.h5ad", folds[0].cells.genes, uns) as file:
                done, total = 0, sum(one.cells for one in mine)
                # One fold at a time: a predictor may be large.
                for fold, run in groupby(mine, key=lambda one: one.fold):
                    groups = list(run)
                    predictor = make(fold, groups)
                    for one in groups:
                        emit_groups(file, recipe, folds[fold], predictor, [one])
                        done += one.cells
                        progress(done, total)
        state.wait_for_everyone()
        if state.is_main_process:
            join_counts_files(sorted(parts.iterdir()), path)
        state.wait_for_everyone()
    finally:
        if state.is_main_process:
            shutil.rmtree(parts)


def make_predictor(
    name: str, recipe: Recipe, fold: int, data: Dataset, scale: float, groups: list[Asked], console: Console
) -> Predictor:
    """The decoder of a fold (``model``) or a baseline, ready to predict ``groups``.

    Raises:
        UserError: the decoder has not been trained, or was trained from another recipe.
    """
    device = process_state().device
    if name == EMBEDDING_TRANSFER:
        asked = [(one.context, one.perturbation) for one in groups]
        return BaselinePredictor(
            data, load_embedding_transfer(data, recipe.embed.cells, asked, device, console), scale
        )
    if name != "model":
        return BaselinePredictor(data, BASELINES[name], scale)
    folder = Layout(recipe).decoder(fold, "train").require(content=True)
    return DecoderPredictor(data, folder, recipe.predict.set_size, scale, device)


def scaled_predictors(recipe: Recipe) -> list[str]:
    """The model and those of the recipe's baselines that predict an effect, whose size can then be scaled."""
    return ["model", *(name for name in recipe.score.baselines if name != "control")]


def effect_scales(recipe: Recipe, fold: int) -> dict[str, float]:
    """The factor on the log ratios of each predictor: the recipe's, or what the calibrate stage found.

    Raises:
        UserError: the recipe leaves it to the validation split, and the calibrate stage has not been run.
    """
    names = ["model", *recipe.score.baselines]
    if recipe.predict.effect_scale != "validation":
        return dict.fromkeys(names, recipe.predict.effect_scale)
    found = read_json(Layout(recipe).calibration(fold).require())["effect_scale"]
    return {name: found.get(name, 1.0) for name in names}


def _cells(recipe: Recipe, data: Dataset, context: str, perturbation: str) -> int:
    asked = recipe.predict.cells
    return data.split.cells[context, perturbation] if asked == "measured" else asked


def _record(folds: list[Dataset], asked: list[Asked], scales: list[dict[str, float]]) -> dict[str, Any]:
    """What a reader of the scores should know about the predictions."""
    without = [one for one in asked if not folds[one.fold].responses.is_known(one.context, one.perturbation)]
    return {
        "groups": len(asked),
        "cells": sum(one.cells for one in asked),
        "effect_scale": scales,
        "without_response_elsewhere": len(without),
        "warnings": sorted({warning for data in folds for warning in data.split.warnings}),
    }
