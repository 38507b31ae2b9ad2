"""Predict groups of cells by the model and by the baselines: counts on the gene axis, CSR, int32, streamed.

Each process predicts a run of groups; what is drawn for a cell does not depend on which.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.load import load_decoder
from vcc_fm.ground.files import empty_folder
from vcc_fm.ground.processes import process_state
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.prediction.asking import Asked
from vcc_fm.prediction.emission import emit_groups
from vcc_fm.prediction.predictors import DecoderPredictor, Predictor, RatioPredictor
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.recipe.predict import PredictConfig
from vcc_fm.store.counts_file import CountsFile, join_counts_files

MODEL = "model"


@dataclass(frozen=True)
class Fold:
    """What one fold predicts from.

    Attributes:
        data: cells, vectors and split.
        decoder: gives the folder of its decoder, after a look at all of its weights.
        scales: factor on the log ratios of each predictor.
    """

    data: Dataset
    decoder: Callable[[], Path]
    scales: dict[str, float]


def predict(
    name: str,
    path: Path,
    folds: list[Fold],
    asked: list[Asked],
    config: PredictConfig,
    seed: int,
    uns: dict[str, Any],
    console: Console,
) -> None:
    """Predict ``asked`` by one predictor into ``path``; every process calls it and takes its share of the groups.

    Args:
        name: ``model``, or a baseline.
        path: of the h5ad file.
        folds: by number.
        asked: groups, in their order in the file.
        config: says how cells are emitted.
        seed: of what is drawn.
        uns: what the file says of itself.
        console: where progress goes.
    """
    state, parts = process_state(), path.with_name(f"{path.name}.parts")
    mine = [asked[i] for i in np.array_split(np.arange(len(asked)), state.num_processes)[state.process_index]]
    if state.is_main_process:
        empty_folder(parts)
    state.wait_for_everyone()
    try:
        if mine:
            progress = ProgressLines(f"predict: {name}", "cells", console)
            with CountsFile(parts / f"{state.process_index:05d}.h5ad", folds[0].data.cells.genes, uns) as file:
                done, total = 0, sum(one.cells for one in mine)
                # One fold at a time: a predictor may be large.
                for number, run in groupby(mine, key=lambda one: one.fold):
                    groups, fold = list(run), folds[number]
                    predictor = make_predictor(name, fold.data, fold.decoder, groups, config, console)
                    for one in groups:
                        emit_groups(file, fold.data, predictor, fold.scales[name], [one], config, seed)
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
    name: str,
    data: Dataset,
    decoder: Callable[[], Path],
    groups: Collection[Asked],
    config: PredictConfig,
    console: Console,
) -> Predictor:
    """The decoder of a fold (``model``) or a baseline, ready to predict ``groups``.

    Raises:
        UserError: the decoder cannot be loaded, or does not fit the data.
    """
    device = process_state().device
    if name == MODEL:
        return DecoderPredictor(data, load_decoder(decoder()), config.set_size, device)
    baseline = BASELINES[name](data)
    baseline.prepare([(one.context, one.perturbation) for one in groups], device, console)
    return RatioPredictor(data, baseline.log_ratio)


def scaled_predictors(baselines: Collection[str]) -> list[str]:
    """The model and those of ``baselines`` that predict an effect, whose size can then be scaled."""
    return [MODEL, *(name for name in baselines if BASELINES[name].scaled)]
