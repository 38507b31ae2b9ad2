"""The Virtual Cell Challenge 2026 score, computed by cell-eval2.

Nothing is measured here: the scorer computes the six metrics (`compute_metrics`), the two ends of their scale (its
mean-response baseline and its replicate anchor), and says the limits of a scaled value (`score_one`). A perturbation
label that is a gene of the axis loses that gene in the metrics (the scorer's rule); the label of a combination names
no single gene and loses none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anndata as ad
import numpy as np

from vcc_fm.scoring.anchors import (
    SCORER,
    Anchors,
    aggregate,
    anchors_folder,
    for_context,
    given,
    load_anchors,
    measure_anchors,
    quiet,
    scorer_config,
)
from vcc_fm.scoring.preset import NO_VALUE, ContextScorer, Measured, Metric, Preset

if TYPE_CHECKING:
    from cell_eval2 import EvalConfig


class Vcc2026(Preset):
    """The six members of cell-eval2's preset, in the order of the competition's table."""

    scorer = SCORER
    metrics: ClassVar[dict[str, Metric]] = {
        "pds_cosine": Metric("PDS", panel=True),
        "expr_mse_unbiased_capped_norm": Metric("MSE", low_is_good=True),
        "de_wilcoxon_lfc_nmae": Metric("NMAE", low_is_good=True),
        "de_wilcoxon_direction_fidelity_yield_raw": Metric("fidelity", significant=True),
        "de_wilcoxon_direction_reach_raw": Metric("reach", significant=True),
        "de_wilcoxon_sig_jaccard": Metric("Jaccard", significant=True),
    }
    needed = 4
    low = "cell-eval2 mean response"
    high = "a replicate (split halves)"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return given(scorer_config("vcc2026", list(self.metrics), ""))

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        folder = anchors_folder(cache, digest, context, control, self)
        config, notes = for_context(scorer_config("vcc2026", list(self.metrics), control), real, context, folder)
        with quiet():
            anchors = load_anchors(folder, lambda: measure_anchors(real, config))
        return _Context(real, config, anchors, notes)


WHY_NONE = {
    "de_wilcoxon_lfc_nmae": "no perturbation has 10 significant genes in the truth, its own target left out",
    "de_wilcoxon_direction_fidelity_yield_raw": "no perturbation has a significant gene",
    "de_wilcoxon_direction_reach_raw": "no perturbation has a significant gene in the truth",
}
"""Why the scorer has no value for a member, where it returns none instead of refusing."""


class _Context(ContextScorer):
    why_none = WHY_NONE

    def __init__(self, real: ad.AnnData, config: EvalConfig, anchors: Anchors, notes: list[str]):
        anchors.give(self)
        self.scales = {
            metric: replace(scale, reason=WHY_NONE.get(metric, NO_VALUE)) if scale.reason == NO_VALUE else scale
            for metric, scale in anchors.scales.items()
        }
        self.notes, self._real, self._config = notes, real, config
        self._controls = real[real.obs["perturbation"] == config.control]

    def measure(self, predicted: ad.AnnData) -> dict[str, Measured]:
        """Measure the members that the truth can give, with the truth's controls, as the platform does."""
        from cell_eval2 import compute_metrics

        metrics = [
            metric
            for metric in self.scales
            if metric in self.ceiling or (metric in self.low and np.isfinite(self.low[metric].value))
        ]
        if not metrics:
            return {}
        submission = ad.concat([predicted, self._controls], index_unique="-")
        with quiet():
            found = compute_metrics(submission, self._real, config=replace(self._config, metrics=metrics))
        return aggregate(found, metrics)
