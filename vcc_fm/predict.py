"""Predict the counts of the held-out perturbations, by the decoder and by the baselines.

    accelerate launch vcc_fm/predict.py recipes/demo.yaml

Writes ``predictions.h5ad``, ``baselines/*.h5ad`` and ``truth.h5ad`` into the run folder: CSR, int32, on the recipe's
gene axis, streamed. Each process predicts a run of groups; what is drawn for a cell depends on the seed, its context,
its perturbation and its place, never on the process that draws it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from accelerate import PartialState
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.load import load_dataset
from vcc_fm.cellsets.sampler import CellSet, control_sets
from vcc_fm.decoder.emit import emit
from vcc_fm.errors import UserError
from vcc_fm.layout import Layout, is_done, mark_done
from vcc_fm.predictors import BASELINES, BaselinePredictor, DecoderPredictor, Predictor, fit_effect_scale
from vcc_fm.recipe import PredictConfig, Recipe, load_recipe
from vcc_fm.store.counts_file import CountsFile, join_counts_files
from vcc_fm.store.folder import write_json


def predict(recipe: Recipe, console: Console) -> None:
    """Predict all test groups of all folds, by the decoder and the recipe's baselines, and write the truth beside.

    Raises:
        UserError: an earlier stage is missing.
    """
    started = time.perf_counter()
    layout, state = Layout(recipe), PartialState()
    folds = [load_dataset(recipe, fold) for fold in range(recipe.split.folds)]
    for fold in range(len(folds)):
        if not is_done(layout.decoder(fold, "train"), layout.training_fingerprint(fold, "train")):
            raise UserError(f"{layout.decoder(fold, 'train')} is missing or of another recipe; run `vcc-fm train RECIPE`")
    scales = [_effect_scale(recipe, fold, data, state) for fold, data in enumerate(folds)]
    makers: dict[str, Callable[[int], Predictor]] = {
        "model": lambda fold: _decoder(recipe, fold, folds[fold], scales[fold], state),
        **{name: _baseline_maker(name, folds) for name in recipe.score.baselines},
    }
    asked = [(fold, c, p, _cells(recipe.predict, data, c, p)) for fold, data in enumerate(folds) for c, p in data.split.groups("test")]
    mine = [asked[i] for i in np.array_split(np.arange(len(asked)), state.num_processes)[state.process_index]]
    uns = _uns(recipe, folds[0])
    for name, make in makers.items():
        path = layout.prediction(name)
        part = path.with_name(f"{path.stem}.part-{state.process_index:05d}.h5ad")
        if mine:
            with CountsFile(part, folds[0].cells.genes, uns | {"predictor": name}) as file:
                _emit_groups(file, recipe, folds, mine, make, console, name)
        state.wait_for_everyone()
        if state.is_main_process:
            parts = sorted(path.parent.glob(f"{path.stem}.part-*.h5ad"))
            join_counts_files(parts, path)
            for done in parts:
                done.unlink()
    if state.is_main_process:
        write_truth(layout.truth, folds, uns)
        write_json(recipe.run_folder / "prediction.json", _record(folds, asked, scales))
        mark_done(layout.prediction("model"), layout.predictions_fingerprint, time.perf_counter() - started)
    state.wait_for_everyone()


def _emit_groups(
    file: CountsFile, recipe: Recipe, folds: list[Dataset], groups: list[tuple[int, str, str, int]],
    make: Callable[[int], Predictor], console: Console, name: str,
) -> None:
    predictors: dict[int, Predictor] = {}
    begin, total, done = time.perf_counter(), sum(group[3] for group in groups), 0
    for number, (fold, context, perturbation, cells) in enumerate(groups):
        if fold not in predictors:
            predictors = {fold: make(fold)}
        sets = control_sets(folds[fold], context, perturbation, cells, recipe.predict.set_size, recipe.seed)
        for place, one in enumerate(sets):
            rng = np.random.default_rng([recipe.seed, place, *context.encode(), 0, *perturbation.encode()])
            file.append(*_emit_set(predictors[fold], folds[fold], one, recipe.predict, rng))
            done += len(one.control_rows)
        if (number + 1) % max(1, len(groups) // 4) == 0:
            rate = done / (time.perf_counter() - begin)
            console.print(f"{name}: {done:,}/{total:,} cells  {rate:,.0f} cells/s  ETA {(total - done) / rate:.0f} s", highlight=False)


def _emit_set(
    predictor: Predictor, data: Dataset, one: CellSet, config: PredictConfig, rng: np.random.Generator
) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Counts [n, G] and labels of the cells predicted from one set."""
    depth = data.cells.depth[one.control_rows].astype(np.float64)
    if config.depth != "control":
        depth = np.full_like(depth, config.depth)
    counts = emit(predictor.log_share(one), depth, predictor.dispersion, rng)
    batches = np.asarray(data.cells.batches)[data.cells.batch[one.control_rows]]
    labels = pd.DataFrame({"context": one.context, "perturbation": one.perturbation, "batch": batches})
    return sp.csr_matrix(counts), labels


def write_truth(path: Path, folds: list[Dataset], uns: dict[str, Any]) -> None:
    """Write the measured cells of all test groups and the control cells of their contexts."""
    cells = folds[0].cells
    groups = [group for data in folds for group in data.split.groups("test")]
    contexts = sorted({context for context, _ in groups})
    with CountsFile(path, cells.genes, uns | {"predictor": "measured"}) as file:
        for context, perturbation in groups + [(context, cells.control) for context in contexts]:
            rows = cells.rows(context, perturbation)
            batches = np.asarray(cells.batches)[cells.batch[rows]]
            labels = pd.DataFrame({"context": context, "perturbation": perturbation, "batch": batches})
            file.append(cells.sparse(rows), labels)


def _decoder(recipe: Recipe, fold: int, data: Dataset, scale: float, state: PartialState) -> DecoderPredictor:
    return DecoderPredictor(data, Layout(recipe).decoder(fold, "train"), recipe.predict.set_size, scale, state.device)


def _baseline_maker(name: str, folds: list[Dataset]) -> Callable[[int], Predictor]:
    return lambda fold: BaselinePredictor(folds[fold], BASELINES[name])


def _effect_scale(recipe: Recipe, fold: int, data: Dataset, state: PartialState) -> float:
    if recipe.predict.effect_scale != "validation":
        return recipe.predict.effect_scale
    return fit_effect_scale(_decoder(recipe, fold, data, 1.0, state), recipe.predict.set_size, recipe.seed)


def _cells(config: PredictConfig, data: Dataset, context: str, perturbation: str) -> int:
    return data.split.cells[context, perturbation] if config.cells == "measured" else config.cells


def _uns(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """What the h5ad says of itself."""
    return {"recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint(), "values": "counts", "simulated": bool(data.cells.meta["simulated"])}


def _record(folds: list[Dataset], asked: list[tuple[int, str, str, int]], scales: list[float]) -> dict[str, Any]:
    """What a reader of the scores should know about the predictions."""
    without = [(c, p) for fold, c, p, _ in asked if folds[fold].responses.elsewhere(c, p) is None]
    return {
        "groups": len(asked),
        "cells": sum(cells for *_, cells in asked),
        "effect_scale": scales,
        "without_response_elsewhere": len(without),
        "warnings": sorted({warning for data in folds for warning in data.split.warnings}),
    }


def main() -> int:
    """Command line; the exit code is 2 for a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="path of the recipe")
    parser.add_argument("overrides", nargs="*", help="key.key=value")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    arguments = parser.parse_args()
    main_process = PartialState().is_main_process
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        predict(recipe, Console(quiet=arguments.quiet or not main_process))
    except UserError as error:
        if main_process:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
