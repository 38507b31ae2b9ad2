r"""The mixed model without one of its parts each, as rungs of the ladder: what a part is worth in a table.

    PYTHONPATH=benchmarks vcc-fm run recipes/demo.yaml --worlds 10 --first-world 300 "plugins=[_ablations]" \
        "score.baselines=[mixed-model,one-amplitude,own-mean,no-tables,no-co-response,sure-size]"

They are plugins of the recipe, and go through the same calibration, emitter and scorer as the mixed model.
``endless-cells`` is an oracle, of simulated cells alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from vcc_fm.baselines.mixed_model import Mixed
from vcc_fm.baselines.oracles import Oracle
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.responses.expected import ExpectedResponses, likely_tables
from vcc_fm.responses.kernels import Kernels, Vectors
from vcc_fm.responses.mixed_model import MixedModel
from vcc_fm.responses.portions import Portions


class _OneAmplitude(MixedModel):
    def _fit_amplitudes(self, product: np.ndarray, genes: np.ndarray, noise: np.ndarray) -> None:
        """All perturbations are as strong as the mean one."""


class _Other(Mixed):
    """The mixed model, made otherwise."""

    expected: ExpectedResponses

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32."""
        return self.expected.of(context, perturbation).in_size


class OneAmplitude(_Other):
    """No perturbation is inert, and none is strong."""

    @cached_property
    def expected(self) -> ExpectedResponses:
        """The same responses, another model of them."""
        whole = self.data.expected
        found = replace(whole)
        found.__dict__["model"] = Portions(whole.evidence, Kernels(whole.targets, whole.tables), _OneAmplitude)
        return found


class NoTables(_Other):
    """Perturbations are alike by shared targets alone."""

    @cached_property
    def tables(self) -> Sequence[Vectors]:
        """Vectors of genes."""
        return ()

    @cached_property
    def expected(self) -> ExpectedResponses:
        """The same responses, other tables of likeness."""
        return replace(self.data.expected, tables=self.tables)


class NoCoResponse(NoTables):
    """Likeness knows proteins and control cells, and not what other perturbations do to a target."""

    @cached_property
    def tables(self) -> Sequence[Vectors]:
        """Those of the others that make the responses clearly likelier."""
        evidence = self.data.expected.evidence
        tables = self.data.likeness(evidence)
        del tables["co-response"]
        return likely_tables(evidence, self.data.targets, tables)


class OwnMean(Mixed):
    """The posterior mean as it is, which has the least squared error, not brought to the size of its signal."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32."""
        return self.data.expected.of(context, perturbation).mean


class EndlessCells(_Other, Oracle):
    """Of training responses as endless cells would show them: what their noise costs the mixed model."""

    @cached_property
    def expected(self) -> ExpectedResponses:
        """The true responses of the training groups, all but without noise."""
        whole, more = self.data.expected, 1e4
        true = np.stack([self.truth.of(*group) for group in whole.evidence.groups])
        evidence = replace(
            whole.evidence,
            ratio=np.where(whole.evidence.measured, true, 0.0).astype(np.float32),
            depth=whole.evidence.depth * more,
            control_depth={context: depth * more for context, depth in whole.evidence.control_depth.items()},
        )
        tables = likely_tables(evidence, self.data.targets, self.data.likeness(evidence))
        return replace(whole, evidence=evidence, tables=tables)


class SureSize(Mixed):
    """Brought to that size only as far as the perturbation's amplitude is sure: by E[A]^2 / E[A^2], 1 where it is."""

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32."""
        found = self.data.expected.of(context, perturbation)
        return (found.mean + self._sure(perturbation) * (found.in_size - found.mean)).astype(np.float32)

    def _sure(self, perturbation: str) -> float:
        """Of a perturbation that was measured nowhere, as the distribution of all has it."""
        model = self.data.expected.model.model_of(perturbation)
        sizes = model._sizes
        if sizes is None:
            return 1.0
        weight = sizes.weight
        if perturbation in model._names:
            mine = sizes.at == model._names.index(perturbation)
            certain = sizes.certain[mine].sum()
            found = (sizes.size * sizes.certain)[mine].sum() / certain
            weight = weight * sizes._density(np.array([found]), np.array([certain]))[0]
        weight = weight / weight.sum()
        square = float(weight @ sizes.grid**2)
        return float(weight @ sizes.grid) ** 2 / square if square else 0.0


for _name, _rung in (
    ("one-amplitude", OneAmplitude),
    ("own-mean", OwnMean),
    ("no-tables", NoTables),
    ("no-co-response", NoCoResponse),
    ("sure-size", SureSize),
    ("endless-cells", EndlessCells),
):
    BASELINES.register(_name, _rung)
