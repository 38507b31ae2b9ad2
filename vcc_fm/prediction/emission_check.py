"""Whether emitted cells are like cells: control cells against control cells, perturbed ones against measured ones.

A rank test sees whatever an emitter gets wrong in every cell alike, and every prediction then carries it. So the check
emits control cells that nothing changed, and training perturbations with their own measured responses, and counts the
genes that tell them from real cells. Nothing of the test groups is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, mannwhitneyu

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import CellSet, control_sets
from vcc_fm.prediction.emission import emit_set
from vcc_fm.prediction.predictors import RatioPredictor
from vcc_fm.recipe.predict import PredictConfig

FEWEST_CELLS, MOST_CELLS = 10, 500
"""Cells on each side of a comparison."""
GROUPS = 3
"""Training groups a context, those with the most cells."""
FDR = 0.05
EXPRESSED = 0.1
"""UMI a cell from which a gene's variance and zeros are compared."""
CLOSE = 0.1
"""Relative difference of a variance, or of a share of zeros, that is not worth a word."""
BOUND = 0.02
"""Share of the genes that may differ beyond those in which real cells differ."""
GENES_AT_A_TIME = 2000


def check_emitter(
    data: Dataset, contexts: list[str], config: PredictConfig, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare emitted cells with real ones: the controls of each context, and some training groups.

    Args:
        data: one fold.
        contexts: those that are predicted.
        config: says which emitter; cells are emitted at their control cells' depth.
        seed: of the halves of the controls and of what is drawn.

    Returns:
        Records of :func:`_compare` with ``context`` and ``cells``, which says what was compared; a sentence for each
        context whose emitted controls differ from real ones in too many genes, or that has too few controls to tell.
    """
    config = config.model_copy(update={"depth": "control"})
    row_of = {group: row for row, group in enumerate(data.responses.groups)}
    records, warnings = [], []
    for context in contexts:
        rng = np.random.default_rng([seed, *context.encode()])
        # Halves alike in batches: one is emitted from, the other compared with.
        rows = rng.permutation(data.context_controls[context])
        rows = rows[np.argsort(data.cells.batch[rows], kind="stable")]
        ours, others = (rng.permutation(rows[half::2])[:MOST_CELLS] for half in (0, 1))
        if len(others) < FEWEST_CELLS:
            warnings.append(f"{context}: {len(rows)} control cells are too few to check emitted cells against")
            continue
        sets = (
            CellSet(context, data.cells.control, part, None, False, False, 0)
            for part in np.split(ours, range(config.set_size, len(ours), config.set_size))
        )
        emitted = _emitted(data, sets, np.zeros_like(data.log_shares[0]), len(ours), config, rng)
        real, apart = data.cells.dense(ours), data.cells.dense(others)
        differ_real = int((_adjusted(real, apart) < FDR).sum())
        one = {
            "context": context,
            "cells": "controls",
            **_compare(emitted, real, apart, differ_real, data.cells.genes),
        }
        records.append(one)
        if one["differ"] > differ_real + BOUND * one["genes"]:
            warnings.append(
                f"{context}: {one['differ']} of {one['genes']} genes tell emitted control cells from real ones "
                f"(real from real: {differ_real}), such as {', '.join(one['names'])}; every prediction carries the "
                "difference, and its significant genes are not to be trusted"
            )
        training = sorted((g for g in row_of if g[0] == context), key=lambda g: (-data.split.cells[g], g))
        for group in training[:GROUPS]:
            rows = rng.permutation(data.cells.rows(*group))[:MOST_CELLS]
            drawn = control_sets(data, *group, len(rows), config.set_size, seed)
            fresh = len(data.context_controls[context])
            emitted = _emitted(data, drawn, data.responses.ratio[row_of[group]], fresh, config, rng)
            measured = data.cells.dense(rows)
            # Their means agree by construction, so that no gene is expected to differ.
            compared = _compare(emitted, measured, measured, 0, data.cells.genes)
            records.append({"context": context, "cells": group[1], **compared})
    return records, warnings


def _emitted(
    data: Dataset,
    sets: Iterable[CellSet],
    log_ratio: np.ndarray,
    fresh: int,
    config: PredictConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """Counts [n, G] emitted from ``sets`` at a log ratio [G]; control cells after the first ``fresh`` come again."""
    predictor = RatioPredictor(data, lambda *_: log_ratio)
    emitted, done = [], 0
    for one in sets:
        again = done + np.arange(len(one.control_rows)) >= fresh
        emitted.append(emit_set(data, predictor.log_share(one, 1.0), predictor.dispersion, one, again, config, rng))
        done += len(again)
    return np.concatenate(emitted)


def _compare(
    emitted: np.ndarray, like: np.ndarray, apart: np.ndarray, differ_real: int, genes: list[str]
) -> dict[str, Any]:
    """Emitted cells [n, G] beside the real ones they should be like.

    Returns:
        ``genes`` that any cell expresses; ``differ`` of them between ``emitted`` and ``apart`` (rank test of shares,
        Benjamini-Hochberg), ``names`` of the clearest; ``differ_real``; of the ``expressed`` genes those whose
        ``variance`` or share of ``zeros`` is off, beside ``like``, by more than ``CLOSE``, and the median of either's
        ratio.
    """
    adjusted = _adjusted(emitted, apart)
    differing = np.flatnonzero(adjusted < FDR)
    expressed = like.mean(axis=0) > EXPRESSED
    ratios = {
        "variance": emitted[:, expressed].var(axis=0) / np.maximum(like[:, expressed].var(axis=0), 1e-12),
        # With one cell more on either side, so that genes without zeros can be compared.
        "zeros": ((emitted[:, expressed] == 0).mean(axis=0) + 1 / len(like))
        / ((like[:, expressed] == 0).mean(axis=0) + 1 / len(like)),
    }
    return {
        "genes": int(np.isfinite(adjusted).sum()),
        "differ": len(differing),
        "differ_real": differ_real,
        "names": [genes[i] for i in differing[np.argsort(adjusted[differing], kind="stable")][:5]],
        "expressed": int(expressed.sum()),
        **{f"{name}_off": int((np.abs(ratio - 1) > CLOSE).sum()) for name, ratio in ratios.items()},
        **{f"{name}_median": float(np.median(ratio)) if len(ratio) else None for name, ratio in ratios.items()},
    }


def _adjusted(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Adjusted p-values [G] of a rank test on shares of the counts; NaN for a gene that no cell expresses."""
    here = np.flatnonzero(one.any(axis=0) | other.any(axis=0))
    shares = [counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in (one, other)]
    adjusted = np.full(one.shape[1], np.nan)
    parts = [here[i : i + GENES_AT_A_TIME] for i in range(0, len(here), GENES_AT_A_TIME)]
    p = [mannwhitneyu(*(share[:, part] for share in shares), method="asymptotic").pvalue for part in parts]
    # All cells alike: nothing to rank.
    adjusted[here] = false_discovery_control(np.nan_to_num(np.concatenate(p), nan=1.0)) if p else []
    return adjusted
