"""What a response is expected to be, and how sure that is: the mixed model of the training responses.

The decoder corrects it, and the baseline ``mixed-model`` is it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from vcc_fm.responses.evidence import Evidence
from vcc_fm.responses.kernels import Kernels, Vectors, principal_features
from vcc_fm.responses.mixed_model import MixedModel
from vcc_fm.responses.portions import Portions
from vcc_fm.responses.responses import Responses
from vcc_fm.splits.split import Group
from vcc_fm.store.cells import evenly_spaced

WIDTHS = (4, 8, 16, 32)
"""Principal components of a table of vectors that are tried, beside a model without it; the likeliest, if clear."""
CLEAR = 3.0
"""Standard errors; the best of several widths of vectors that say nothing gains two and a half."""
LARGEST = 2.0
"""Factor on a mean that brings it to the size of its signal."""
SOME = 800
"""Training groups by which it is chosen, about."""


@dataclass(frozen=True)
class Expected:
    """A response before it is measured.

    Attributes:
        mean: [G] float32, natural log; at the target genes the knock-down that training perturbations show.
        deviation: [G] float32, posterior standard deviation; 0 at the target genes.
        reliability: [G] float32, how well genes are measured, see :class:`MixedModel`; the same array in all answers.
    """

    mean: np.ndarray
    deviation: np.ndarray
    reliability: np.ndarray

    @cached_property
    def power(self) -> float:
        """Expected square of the signal, summed over all genes but the targets, each by its reliability."""
        each = np.square(self.mean, dtype=np.float64) + np.square(self.deviation, dtype=np.float64)
        return float((self.reliability * each)[self.deviation > 0].sum())

    @property
    def in_size(self) -> np.ndarray:
        """The mean [G] times one factor, but at the targets: its square is then what the signal's is expected to be.

        A posterior mean is shrunken by all that is not known, that of a perturbation that was measured nowhere most of
        all. A score that compares sets of significant genes wants the direction in its likely size. Genes count by
        their reliability: those of few counts, whose deviation is nearly the prior's, would double what is well known
        of the others. The factor is at most ``LARGEST``: a direction of which nearly nothing is known is not blown up.
        """
        there = self.deviation > 0
        known = float((self.reliability * np.square(self.mean, dtype=np.float64))[there].sum())
        factor = np.clip(np.sqrt(self.power / max(known, 1e-30)), 1.0, LARGEST)
        return np.where(there, self.mean * np.float32(factor), self.mean)


class Expects(Protocol):
    """Tells what is expected: a mixed model, or what one said."""

    def of(self, context: str, perturbation: str) -> Expected:
        """See :meth:`ExpectedResponses.of`."""

    def left_out(self, context: str, perturbation: str, everywhere: bool = False) -> Expected:
        """See :meth:`ExpectedResponses.left_out`."""


@dataclass(frozen=True)
class ExpectedResponses:
    """Expected responses of any perturbation in any context, from those of training groups.

    Each answer is computed once and kept, since every set of a group asks for it: 2 G x 4 bytes. Nobody may write
    into it.

    Attributes:
        responses: of the training groups.
        evidence: the same, with their noise at expected counts.
        targets: perturbation -> its target genes.
        tables: vectors of genes by which perturbations are alike, as :func:`likely_tables` chose them.
        axis: symbol -> position on the gene axis.
    """

    responses: Responses
    evidence: Evidence
    targets: Callable[[str], Sequence[str]]
    tables: Sequence[Vectors]
    axis: Mapping[str, int]
    _kept: dict[tuple[str, str, bool | None], Expected] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @cached_property
    def model(self) -> Portions:
        """Fitted when it is first asked."""
        return Portions(self.evidence, Kernels(self.targets, self.tables))

    def of(self, context: str, perturbation: str) -> Expected:
        """Given all training responses, its own included where it is a training group."""
        key = context, perturbation, None
        with self._lock:  # batches are assembled by several threads
            if key not in self._kept:
                mean, deviation, _ = self.model.predict(context, perturbation)
                self._kept[key] = self._with_knock_down(context, perturbation, mean, deviation)
        return self._kept[key]

    def left_out(self, context: str, perturbation: str, everywhere: bool = False) -> Expected:
        """What is expected of a training group as if it had not been measured: what a held-out group would get.

        Kept, with all that are computed at once.

        Args:
            context: of the group.
            perturbation: of the group.
            everywhere: as if its perturbation had been measured in no context.
        """
        key = context, perturbation, everywhere
        with self._lock:
            if key not in self._kept:
                found = self._left_out(perturbation, everywhere)
                self._kept.update({(*group, everywhere): one for group, one in found})
        return self._kept[key]

    def each_left_out(self, groups: Iterable[Group], everywhere: bool = False) -> Iterator[dict[Group, Expected]]:
        """As :meth:`left_out`, of many groups: those that are computed at once together, and none is kept."""
        left = dict.fromkeys(groups)
        while left:
            _, perturbation = next(iter(left))
            found = {group: one for group, one in self._left_out(perturbation, everywhere) if group in left}
            for group in found:
                del left[group]
            if not found:
                raise KeyError(next(iter(left)))
            yield found

    def _left_out(self, perturbation: str, everywhere: bool) -> Iterator[tuple[Group, Expected]]:
        """What is so expected of all groups that are computed together with those of a perturbation."""
        rows, found = self.model.left_out(perturbation, everywhere)
        for row, mean, deviation in zip(rows, found.mean, found.deviation, strict=True):
            context, label = self.evidence.groups[row]
            yield (context, label), self._with_knock_down(context, label, mean, deviation, everywhere)

    def _with_knock_down(
        self, context: str, perturbation: str, mean: np.ndarray, deviation: np.ndarray, nowhere: bool = False
    ) -> Expected:
        for gene in self.targets(perturbation):
            if gene in self.axis:
                place = self.axis[gene]
                mean[place], deviation[place] = self._knock_down(context, perturbation, gene, nowhere), 0.0
        return Expected(mean, deviation, self.model.reliability)

    def _knock_down(self, context: str, perturbation: str, gene: str, nowhere: bool) -> float:
        """Log ratio of a target gene: of the perturbation elsewhere, or of its single one, or of all training ones."""
        responses, place = self.responses, self.axis[gene]
        elsewhere = None if nowhere else responses.target_elsewhere(context, perturbation, place)
        if elsewhere is not None:
            return elsewhere
        if gene != perturbation and responses.has_single([gene]):
            return responses.target_here_or_elsewhere(context, gene, place)
        return responses.knock_down


def likely_tables(
    evidence: Evidence, targets: Callable[[str], Sequence[str]], tables: Mapping[str, Vectors]
) -> list[Vectors]:
    """Those of ``tables``, as principal components, with which leave-one-out predicts the responses clearly better.

    Args:
        evidence: responses of training groups.
        targets: perturbation -> its target genes.
        tables: name -> vectors of genes; tried one after the other.
    """
    labels = np.array([label for _, label in evidence.groups])
    contexts = len({context for context, _ in evidence.groups})
    some = evenly_spaced(np.unique(labels), max(SOME // contexts, 1))
    part = evidence.of(np.flatnonzero(np.isin(labels, some)))
    genes = {gene for label in some for gene in targets(label)}
    chosen: list[Vectors] = []
    best = MixedModel(part, Kernels(targets))
    for vectors in tables.values():
        if not genes & vectors.keys():
            continue
        tried = [[*chosen, features] for width in WIDTHS if (features := principal_features(vectors, width))]
        models = [MixedModel(part, Kernels(targets, one)) for one in tried]
        likely = max(models, key=lambda one: float(one.log_density.mean()), default=best)
        if _is_better(likely, best):
            best, chosen = likely, list(likely.kernels.tables)
    return chosen


def _is_better(one: MixedModel, other: MixedModel) -> bool:
    """Whether a model makes the responses likelier, by ``CLEAR`` standard errors over perturbations."""
    _, at = np.unique([label for _, label in one.evidence.groups], return_inverse=True)
    gain = np.bincount(at, one.log_density - other.log_density) / np.bincount(at)
    return bool(gain.mean() > CLEAR * gain.std() / np.sqrt(len(gain)))
