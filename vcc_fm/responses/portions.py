"""Mixed models of more groups than one can solve: one for each portion of the perturbations.

A mixed model takes n^3 operations for n groups. Most of what it knows of a perturbation it has from the perturbation's
own groups and from its single perturbations; what the others tell is known from some thousands of groups nearly as
well as from all (docs/scaling.md). So above ``PORTION`` groups the perturbations are dealt out, each with all its
groups, and time and memory grow as the number of groups does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from vcc_fm.responses.evidence import Evidence
from vcc_fm.responses.kernels import Kernels
from vcc_fm.responses.mixed_model import MixedModel, Predicted

PORTION = 4000
"""Groups of one, about: minutes of a core on 18,080 genes."""


class Portions:
    """One mixed model up to ``PORTION`` groups, or half as many again; above that several, fitted when asked.

    Args:
        evidence: responses of the training groups.
        kernels: how alike perturbations are.
        fit: makes the model of a portion.
        size: see ``PORTION``.
    """

    def __init__(
        self,
        evidence: Evidence,
        kernels: Kernels,
        fit: Callable[[Evidence, Kernels], MixedModel] = MixedModel,
        size: int = PORTION,
    ):
        self.evidence, self.kernels, self._fit = evidence, kernels, fit
        self._labels = np.array([label for _, label in evidence.groups])
        names = np.unique(self._labels)
        number = max(min(round(len(self._labels) / size), len(names)), 1)
        # Dealt like cards in the order of names, so that each portion is a sample of all.
        self._portion = {str(name): place % number for place, name in enumerate(names)}
        # What a target gene does alone is known where it was measured alone, or else in combinations.
        self._knows: dict[str, set[int]] = {}
        for label, one in self._portion.items():
            for gene in kernels.targets(label):
                self._knows.setdefault(gene, set()).add(self._portion.get(gene, one))
        self._rows, self._models = dict[int, np.ndarray](), dict[int, MixedModel]()

    def __len__(self) -> int:
        return len(set(self._portion.values()))

    def models(self) -> Iterator[MixedModel]:
        """The models of all portions, one after the other; each takes its time where it was not yet asked."""
        return map(self._model, range(len(self)))

    @cached_property
    def reliability(self) -> np.ndarray:
        """[G] float32, see :class:`MixedModel`; of the first portion, as one is much like another."""
        return self._model(0).reliability

    def model_of(self, perturbation: str) -> MixedModel:
        """The one that answers for a training perturbation; the first, of any other."""
        return self._model(self._portion.get(perturbation, 0))

    def predict(self, context: str, perturbation: str) -> tuple[np.ndarray, np.ndarray, float]:
        """As :meth:`MixedModel.predict`, of any perturbation in any context.

        Of a perturbation without a training group those portions tell, in the mean, that know all its target genes,
        but for genes that none knows. Where there is no such portion, it does what its genes do, added up, with what
        all perturbations do only once; its deviation is that of a sum of independent effects.
        """
        if perturbation in self._portion:
            return self.model_of(perturbation).predict(context, perturbation)
        genes = self.kernels.targets(perturbation)
        known = [self._knows[gene] for gene in genes if gene in self._knows] or [set(range(len(self)))]
        if portions := sorted(set.intersection(*known)):
            each = [self._model(one).predict(context, perturbation) for one in portions]
        else:
            each = [self.predict(context, gene) for gene in genes]
        means, deviations, amplitudes = (np.stack(one) for one in zip(*each, strict=True))
        if portions:
            return means.mean(axis=0), np.sqrt(np.square(deviations).mean(axis=0)), float(amplitudes.mean())
        amplitude = float(np.sqrt(np.mean(np.square(amplitudes))))
        shared, _, mean_amplitude = self.predict(context, "")  # of a gene that is like no other
        mean = means.sum(axis=0) - (amplitudes.sum() - amplitude) / mean_amplitude * shared
        return mean.astype(np.float32), np.sqrt(np.square(deviations).sum(axis=0)), amplitude

    def left_out(self, perturbation: str, everywhere: bool) -> tuple[np.ndarray, Predicted]:
        """Signals of training groups as if they had not been measured.

        Returns:
            Rows of the groups, and their signals: of all groups of a portion, ``perturbation`` in it, each without
            itself; or, ``everywhere``, of all groups of ``perturbation``, without these.
        """
        number = self._portion[perturbation]
        model, asked = self._model(number), [perturbation] if everywhere else self._own(number)
        rows = np.flatnonzero(np.isin(self._labels, asked))
        inside = np.searchsorted(self._rows[number], rows)
        return rows, model.leave_together_out(inside) if everywhere else model.leave_one_out(inside)

    def _own(self, number: int) -> list[str]:
        """Perturbations of a portion."""
        return [label for label, one in self._portion.items() if one == number]

    def _model(self, number: int) -> MixedModel:
        """The model of a portion's perturbations, and of the single perturbations of its combinations."""
        if number not in self._models:
            own = self._own(number)
            genes = [gene for label in own for gene in self.kernels.targets(label)]
            rows = np.flatnonzero(np.isin(self._labels, [*own, *genes]))
            evidence = self.evidence if len(rows) == len(self._labels) else self.evidence.of(rows)
            self._rows[number], self._models[number] = rows, self._fit(evidence, self.kernels)
        return self._models[number]
