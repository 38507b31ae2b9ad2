"""Cells into files: predicted ones drawn set by set, measured ones copied from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import CellSet, control_sets
from vcc_fm.prediction.asking import Asked
from vcc_fm.prediction.emit import emit, emit_from_controls
from vcc_fm.prediction.predictors import Predictor
from vcc_fm.recipe.predict import PredictConfig
from vcc_fm.scoring.inputs import check_measured
from vcc_fm.store.cells import CellStore
from vcc_fm.store.counts_file import CountsFile


def emit_groups(
    file: CountsFile,
    data: Dataset,
    predictor: Predictor,
    effect_scale: float,
    groups: list[Asked],
    config: PredictConfig,
    seed: int,
) -> None:
    """Predict ``groups`` of one fold in their order and append them to ``file``.

    What is drawn depends on the seed, the context, the perturbation and the place of a set among its group's, not on
    the predictor: two predictors differ by what they predict alone.
    """
    for _, context, perturbation, cells in groups:
        sets = control_sets(data, context, perturbation, cells, config.set_size, seed)
        # Control cells come in rounds, each of them once a round.
        round_ = len(data.context_controls[context])
        for place, one in enumerate(sets):
            rng = np.random.default_rng([seed, place, *context.encode(), 0, *perturbation.encode()])
            again = place * config.set_size + np.arange(len(one.control_rows)) >= round_
            counts = emit_set(
                data, predictor.log_share(one, effect_scale), predictor.dispersion, one, again, config, rng
            )
            file.append(sp.csr_matrix(counts), _labels(data.cells, context, perturbation, one.control_rows))


def emit_set(
    data: Dataset,
    log_share: np.ndarray,
    dispersion: np.ndarray,
    one: CellSet,
    again: np.ndarray,
    config: PredictConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """Counts [n, G] int32 of the cells predicted from one set.

    Args:
        data: one fold.
        log_share: [n, G], what is predicted.
        dispersion: [G], negative-binomial.
        one: the set.
        again: [n] bool, control cells that were used before.
        config: says how cells are emitted.
        rng: draws them.
    """
    depth = data.cells.depth[one.control_rows].astype(np.float64)
    if config.depth != "control":
        depth = np.full_like(depth, config.depth)
    if config.emitter == "negative-binomial":
        return emit(log_share, depth, dispersion, rng)
    profile = data.log_shares[data.cells.batch[one.control_rows]]
    counts = data.cells.dense(one.control_rows)
    return emit_from_controls(counts, log_share, profile, depth, dispersion, again, rng)


def write_measured(path: Path, cells: CellStore, groups: list[tuple[str, str]], uns: dict[str, Any]) -> None:
    """Write the measured cells of ``groups`` and the control cells of their contexts.

    Raises:
        UserError: as :func:`check_measured`.
    """
    check_measured({context for context, _ in groups}, cells.context_sources, cells.measured_of)
    controls = [(context, cells.control) for context in sorted({context for context, _ in groups})]
    with CountsFile(path, cells.genes, uns | {"predictor": "measured"}) as file:
        for context, perturbation in groups + controls:
            rows = cells.rows(context, perturbation)
            file.append(cells.sparse(rows), _labels(cells, context, perturbation, rows))


def _labels(cells: CellStore, context: str, perturbation: str, rows: np.ndarray) -> pd.DataFrame:
    batches = np.asarray(cells.batches)[cells.batch[rows]]
    return pd.DataFrame({"context": context, "perturbation": perturbation, "batch": batches})
