"""What is true of simulated cells, written beside them: for oracles and tests, never for what trains or predicts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from vcc_fm.ground.errors import UserError, reading

FOLDER = "simulated"
"""Where the simulated files are, beside the cell store."""
FILE = "truth.npz"

ESCAPE = 0.07
"""Probability that a perturbed cell is none."""
EFFICIENCY = (17.0, 3.0)
"""Beta distribution of the others' efficiency."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """The truth about C contexts, T perturbations, G genes.

    Attributes:
        contexts: names.
        labels: of perturbations.
        genes: the axis.
        sha256: of the files of cells, one a context.
        log_ratio: [C, T, G] float32, see :func:`expected_log_ratio`.
    """

    contexts: list[str]
    labels: list[str]
    genes: list[str]
    sha256: list[str]
    log_ratio: NDArray[np.float32]

    @cached_property
    def _place(self) -> tuple[dict[str, int], dict[str, int]]:
        return {name: c for c, name in enumerate(self.contexts)}, {name: t for t, name in enumerate(self.labels)}

    def of(self, context: str, perturbation: str) -> NDArray[np.float32]:
        """The log ratios of one group, [G]."""
        contexts, labels = self._place
        found: NDArray[np.float32] = self.log_ratio[contexts[context], labels[perturbation]]
        return found


def read_truth(cells: Path) -> Truth:
    """The truth of the simulated cells of a store.

    Args:
        cells: folder of the cell store, which has the simulated files beside it.

    Raises:
        UserError: there is no such file, or an older version wrote it.
    """
    path = cells.parent / FOLDER / FILE
    if not path.exists():
        raise UserError(f"{path}: no such file; oracles know simulated cells only: run prepare with data.simulate")
    with reading(path, "the truth of a simulation", "run prepare again"), np.load(path, allow_pickle=False) as file:
        names = {name: file[name].tolist() for name in ("contexts", "labels", "genes", "sha256")}
        return Truth(**names, log_ratio=file["log_ratio"])


def expected_log_ratio(delta: Floats, knocked_down: Floats, log_expression: Floats, depth: Floats) -> Floats:
    """Natural log of each gene's expected counts over those that it would have if it did not respond, [T, G].

    Escaped cells and the distribution of efficiencies are in it: it is what endless cells would show beside controls
    of the same kind, but for one constant per perturbation, since when some genes rise the shares of all others fall.
    It is 0 for a gene that does not respond.

    Args:
        delta: [T, G] log fold change at full efficiency.
        knocked_down: [T, G], 1 at target genes.
        log_expression: [K, G] of control cells, over which the expectation is taken.
        depth: [K] of these cells.
    """
    shape, rate = EFFICIENCY
    nodes, weights = special.roots_jacobi(8, rate - 1, shape - 1)
    efficiency = np.append((1 + nodes) / 2, 0.0)[:, None]
    weights = np.append(weights / weights.sum() * (1 - ESCAPE), ESCAPE)[:, None]
    control = special.softmax(log_expression, axis=1)
    found = np.zeros_like(delta)
    for t in np.flatnonzero(delta.any(axis=1) | knocked_down.any(axis=1)):
        change = np.exp(efficiency * delta[t] + np.log1p(-efficiency) * knocked_down[t])  # [nodes, G]
        unchanged = weights * ((depth[:, None] / (control @ change.T)).T @ control)
        found[t] = np.log((unchanged * change).sum(axis=0) / unchanged.sum(axis=0))
    return found
