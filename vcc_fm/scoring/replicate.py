"""What a replicate of the measured cells scores: halves of them, one against the other, in several splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anndata as ad
import numpy as np

from vcc_fm.scoring.preset import Ceiling, Measured

SEEDS = [int(seed) for seed in np.random.SeedSequence(0).generate_state(5)]
"""Of the five splits; those of cell-eval2's replicate anchor."""


def halves(cells: ad.AnnData, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Two disjoint halves of every group, the controls too; the last cell of an odd group is in neither.

    The draws are those of cell-eval2's replicate anchor.

    Args:
        cells: obs ``perturbation``; every group has two cells or more.
        seed: of the split.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(rows) for rows in cells.obs.groupby("perturbation", observed=True).indices.values()]
    first = np.concatenate([rows[: len(rows) // 2] for rows in drawn])
    second = np.concatenate([rows[len(rows) // 2 : len(rows) // 2 * 2] for rows in drawn])
    return cells[first].copy(), cells[second].copy()


def replicate(
    cells: ad.AnnData, measure: Callable[[ad.AnnData, ad.AnnData, int], Mapping[str, Measured]]
) -> dict[str, Ceiling]:
    """Mean and spread over the splits; a metric that lacks a value in one of them is left out.

    Args:
        cells: measured cells of one context with their controls, obs ``perturbation``.
        measure: (one half as a prediction with controls of its own, the other as the truth, seed) -> raw values. Were
            the controls shared, their noise would pass for agreement.
    """
    found = []
    for seed in SEEDS:
        truth, prediction = halves(cells, seed)
        found.append(measure(prediction, truth, seed))
    ceiling = {}
    for metric in found[0]:
        values = np.array([split[metric].value if metric in split else np.nan for split in found])
        if np.isfinite(values).all():
            number = min(split[metric].perturbations for split in found)
            ceiling[metric] = Ceiling(
                float(values.mean()), float(values.std()), float(values.min()), float(values.max()), number
            )
    return ceiling
