"""Oracles: what a predictor would score that knew a part of the truth. They measure a scale, and are no rung.

Simulated cells alone have a truth; nothing but an oracle reads it.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from vcc_fm.baselines.baseline import Baseline
from vcc_fm.baselines.other_contexts import OtherContexts
from vcc_fm.ground.errors import UserError
from vcc_fm.sources.truth import Truth, read_truth


class Oracle(Baseline):
    """A predictor that reads the truth of simulated cells."""

    oracle: ClassVar[bool] = True

    @cached_property
    def truth(self) -> Truth:
        """The truth of the cell store's own cells.

        Raises:
            UserError: there is none, or it is that of other cells.
        """
        cells = self.data.cells
        truth = read_truth(cells.folder)
        if truth.sha256 != [source["sha256"] for source in cells.meta["sources"]] or truth.genes != cells.genes:
            raise UserError(f"{cells.folder}: its cells are not those whose truth lies beside them; run prepare again")
        return truth

    def beside_targets(self, perturbation: str) -> np.ndarray:
        """Which genes are no target gene, [G] bool: the size of an effect is the root mean square over these."""
        targets = self.data.targets(perturbation)
        return np.array([gene not in targets for gene in self.data.cells.genes])


class OracleMean(Oracle):
    """The true log ratio: what is lost to emission alone."""

    scaled = False

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """True log ratio, [G] float32."""
        return self.truth.of(context, perturbation)


class OracleDirection(Oracle):
    """The true direction, in the size that other contexts predict; target genes as they are."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """True log ratio times a factor, [G] float32."""
        true = self.truth.of(context, perturbation)
        return _in_size_of(true, _elsewhere(self, context, perturbation), self.beside_targets(perturbation))


class OracleSize(Oracle):
    """The direction that other contexts predict, in the true size; target genes as these predict them."""

    scaled = False

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Log ratio of other contexts times a factor, [G] float32."""
        true = self.truth.of(context, perturbation)
        return _in_size_of(_elsewhere(self, context, perturbation), true, self.beside_targets(perturbation))


def _elsewhere(oracle: Oracle, context: str, perturbation: str) -> np.ndarray:
    return OtherContexts(oracle.data).log_ratio(context, perturbation)


def _in_size_of(direction: np.ndarray, size: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``direction`` [G] with the root mean square of ``size`` [G] over the genes ``where``; zero if it has none."""
    own, wanted = (np.sqrt(np.mean(np.square(x[where], dtype=np.float64))) for x in (direction, size))
    return np.where(where, direction * (wanted / own if own > 0 else 0.0), direction).astype(np.float32)
