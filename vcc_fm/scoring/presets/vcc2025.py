"""The Virtual Cell Challenge 2025 score, as the contest computed it: cell-eval2's convention ``v1``.

DES is `overlap_at_N`, PDS `discrimination_score_l1`. Significance is one Benjamini-Hochberg correction over all pairs
of perturbation and gene. A prediction is scaled to the median depth of its own file, the truth to that of its own,
and both are log-transformed, as the contest's `cell-eval prep` did with counts. Equal distances in PDS are ranked as
the sorting routine leaves them, which differs between processors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anndata as ad
import numpy as np

from vcc_fm.scoring.anchors import (
    SCORER,
    Anchors,
    anchors_folder,
    given,
    load_anchors,
    quiet,
    threads,
)
from vcc_fm.scoring.preset import ContextScorer, Measured, Metric, Preset, Scale
from vcc_fm.scoring.profiles import label_means, log_normalized
from vcc_fm.scoring.replicate import replicate

if TYPE_CHECKING:
    from cell_eval2 import EvalConfig

COUNT = "de_nsig_counts_real"
"""Number of significant genes in the truth, as the 2025 convention calls it; not scored."""


def cell_mean(truth: ad.AnnData, control: str) -> ad.AnnData:
    """The contest's baseline (`cell-eval baseline`): one profile for every cell, beside the truth's controls.

    The profile is the mean over labels, the control among them, of their mean cells.

    Args:
        truth: log-normalised cells with controls, float32 CSR.
        control: label of the control cells.
    """
    controls = (truth.obs["perturbation"] == control).to_numpy()
    # Dense, since a mean over many cells has no zeros.
    values = np.empty(truth.shape, dtype=np.float32)
    values[~controls] = label_means(truth).mean()
    values[controls] = truth.X[controls].toarray()
    return ad.AnnData(values, obs=truth.obs[["perturbation"]], var=truth.var)


class Contest2025(Preset):
    """The contest's three metrics and its scale, whatever measures them."""

    metrics: ClassVar[dict[str, Metric]] = {
        "overlap_at_N": Metric("DES", significant=True),
        "discrimination_score_l1": Metric("PDS", panel=True),
        "mae": Metric("MAE", low_is_good=True),
    }
    needed = 3
    low = "cell mean of the truth"
    high = "a perfect prediction"

    @abstractmethod
    def compare(
        self, predicted: ad.AnnData, truth: ad.AnnData, control: str, threads: int, kept: Path | None = None
    ) -> dict[str, Measured]:
        """Raw metrics, and ``COUNT``; log-normalised cells with controls on both sides.

        Args:
            predicted: what is scored.
            truth: against which.
            control: label of the control cells.
            threads: for rank tests.
            kept: folder for what is measured of this truth alone; None: it is not kept.
        """

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        folder = anchors_folder(cache, digest, context, control, self)
        controls = real[real.obs["perturbation"] == control].copy()
        compare = partial(self.compare, control=control, threads=threads(real.n_vars, controls.n_obs))
        truth = log_normalized(real)

        def measure() -> Anchors:
            low = compare(cell_mean(truth, control), truth, kept=folder)
            significant = {label: int(number) for label, (number, _) in low.pop(COUNT).parts.items()}
            ceiling = replicate(real, lambda half, other, _: compare(log_normalized(half), log_normalized(other)))
            scales = {name: self._scale(name, low[name]) for name in self.metrics}
            return Anchors(scales, low, {name: ceiling[name] for name in self.metrics}, significant)

        with quiet():
            return _Context(load_anchors(folder, measure), partial(compare, truth=truth, kept=folder), controls)

    def _scale(self, name: str, low: Measured) -> Scale:
        """1 - u/b where 0 is best, (u - b)/(1 - b) where 1 is; not below 0, and 0 where there is no value."""
        if name == "discrimination_score_l1" and low.perturbations < 2:
            return Scale(reason="there is one perturbation, and no other to tell it from")
        high = 0.0 if self.metrics[name].low_is_good else 1.0
        if low.value == high:
            return Scale(reason=f"the {self.low} is perfect")
        return Scale(low.value, high, floor=0.0, missing=0.0)


class _Context(ContextScorer):
    def __init__(self, anchors: Anchors, compare: partial[dict[str, Measured]], controls: ad.AnnData):
        anchors.give(self)
        self._compare, self._controls = compare, controls
        self.notes = [
            "0 is the mean over the labels of the measured cells, controls among them, which knows the held-out "
            "responses; the contest's was that of its training data",
            "a prediction has no controls of its own, as the contest's had: the measured ones are added before it is "
            "scaled to the median depth of its cells",
        ]

    def measure(self, predicted: ad.AnnData) -> Mapping[str, Measured]:
        submission = ad.concat([predicted, self._controls], index_unique="-")
        with quiet():
            found = self._compare(log_normalized(submission))
        return {name: found[name] for name in self.scales}


class Vcc2025(Contest2025):
    """The scores of cell-eval2, which reproduces the contest's numbers."""

    scorer = SCORER

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return given(_config()) | {"scaled": "log1p of counts scaled to the median depth of each file"}

    def compare(
        self, predicted: ad.AnnData, truth: ad.AnnData, control: str, threads: int, kept: Path | None = None
    ) -> dict[str, Measured]:
        """See :class:`Contest2025`."""
        from cell_eval2 import compute_metrics

        config = replace(_config(), control=control, num_threads=threads)
        if kept is not None:
            config = replace(config, cache_real=str(kept / "truth"))
        if not truth.obs["perturbation"].isin(truth.var_names).any():
            # The contest left out no gene then; this scorer refuses where it is not said.
            config = replace(config, target_gene_map={"*": None})
        tidy = compute_metrics(predicted, truth, config=config).to_pandas()
        return {
            str(name): Measured.mean(dict(zip(part["perturbation"], part["value"], strict=True)))
            for name, part in tidy.groupby("metric")
        }


def _config() -> EvalConfig:
    """The scorer's 2025 convention; its engine and device are pinned, as in :func:`scorer_config`."""
    from cell_eval2 import EvalConfig

    config = EvalConfig.v1()
    return replace(
        config,
        metrics=[*Vcc2025.metrics, COUNT],
        pert_col="perturbation",
        device="cpu",
        de=replace(config.de, backend="pdex"),
    )
