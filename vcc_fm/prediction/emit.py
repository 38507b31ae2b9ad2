"""Emission: from predicted shares to integer cells, out of a control cell or of a distribution."""

from __future__ import annotations

import numpy as np

from vcc_fm.ground.errors import UserError


def emit(log_share: np.ndarray, depth: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw negative-binomial counts as a gamma-Poisson mixture.

    Args:
        log_share: [n, G] natural log of each gene's share of a cell's counts; -inf for a gene that cannot appear.
        depth: [n] expected UMI total of each cell.
        dispersion: [G] alpha of ``variance = mu + alpha mu^2``, above zero.
        rng: source of randomness.

    Returns:
        [n, G] int32 counts.
    """
    mean = depth[:, None] * np.exp(log_share.astype(np.float64))
    rate = rng.gamma(1.0 / dispersion, dispersion * mean)
    return _integers(rng.poisson(rate))


def emit_from_controls(
    counts: np.ndarray,
    log_share: np.ndarray,
    control_log_share: np.ndarray,
    depth: np.ndarray,
    dispersion: np.ndarray,
    again: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Change each control cell's own counts by the predicted ratio to the control profile.

    What the ratio does not touch stays as it is in that cell: how composition follows depth, and which genes go
    together. A cell's counts ``x`` are Poisson around rates, which have a gamma prior with the control profile as its
    mean and ``dispersion``. ``rate`` is drawn from their posterior. Counts of a gene with ratio ``r`` below one are
    thinned, ``Binomial(x, r)``; above one they grow, ``x + Poisson((r - 1) rate)``. Under that prior both are exactly
    ``Poisson(r rate)``. A cell that gave a predicted cell before gives ``Poisson(r rate)`` itself, not another copy.

    Args:
        counts: [n, G] of control cells, integers.
        log_share: [n, G] natural log of each gene's predicted share; -inf for a gene that cannot appear.
        control_log_share: [n, G] the same in the control profile of each cell's batch.
        depth: [n] expected UMI total of each predicted cell; where nothing changes, that of its control cell.
        dispersion: [G] alpha of ``variance = mu + alpha mu^2`` among control cells, above zero.
        again: [n] bool, whether the control cell gave a predicted cell before.
        rng: source of randomness.

    Returns:
        [n, G] int32 counts.
    """
    own_depth = counts.sum(axis=1, keepdims=True, dtype=np.float64)
    mean = own_depth * np.exp(control_log_share.astype(np.float64))
    can = np.isfinite(control_log_share) & np.isfinite(log_share)
    ratio = np.exp(np.where(can, log_share - np.where(can, control_log_share, 0.0), -np.inf).astype(np.float64))
    shape, scale = counts + 1.0 / dispersion, dispersion * mean / (1.0 + dispersion * mean)
    # A cell's composition is not the profile's: its own shares are brought to a sum of one.
    expected = shape * scale
    kept = expected.sum(axis=1) / np.maximum((expected * ratio).sum(axis=1), 1e-300)
    ratio *= (kept * depth / np.maximum(own_depth[:, 0], 1.0))[:, None]
    rate = rng.gamma(shape, scale)
    changed = rng.binomial(counts.astype(np.int64), np.minimum(ratio, 1.0))
    changed += rng.poisson(np.maximum(ratio - 1.0, 0.0) * rate)
    if again.any():
        changed[again] = rng.poisson(ratio[again] * rate[again])
    return _integers(changed)


def _integers(counts: np.ndarray) -> np.ndarray:
    """The counts as int32.

    Raises:
        UserError: one does not fit.
    """
    if counts.size and counts.max() > np.iinfo(np.int32).max:
        raise UserError(
            f"a predicted count is {counts.max():,}, which no cell has; look at predict.depth and predict.effect_scale"
        )
    return counts.astype(np.int32)
