"""Every metric that cell-eval2 offers under the conventions of 2026, between its mean response and a replicate.

The six of :mod:`vcc_fm.scoring.presets.vcc2026` are among them and have the same raw values. A scaled value has no
limits. cell-eval's e-distance and clustering agreement are not there: cell-eval2 has neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anndata as ad
import numpy as np

from vcc_fm.scoring.anchors import (
    SCORER,
    SIGNIFICANT,
    Anchors,
    aggregate,
    anchors_folder,
    for_context,
    given,
    load_anchors,
    mean_response,
    quiet,
    scale_of,
    scorer_config,
)
from vcc_fm.scoring.preset import NO_VALUE, ContextScorer, Measured, Metric, Preset, Scale
from vcc_fm.scoring.presets.vcc2026 import WHY_NONE as WHY_NONE_OF_SIX
from vcc_fm.scoring.replicate import replicate

if TYPE_CHECKING:
    from cell_eval2 import EvalConfig

UNDIRECTED = {
    "expr_mse_unbiased",
    "expr_mse_unbiased_capped",
    "expr_distance_unbiased",
    "expr_real_mass_ratio",
    "de_wilcoxon_nsig_counts_real",
    "de_wilcoxon_nsig_counts_pred",
}
"""Metrics that the scorer does not score: neither a large nor a small value is better."""

TOGETHER = "de_wilcoxon_nsig_spearman"
"""One correlation over all perturbations, which the scorer repeats for each."""

RATIO = "expr_mse_unbiased_capped_norm"
"""A ratio of sums, which the scorer refuses to form where the truth has no effect beyond its noise."""

REPLICATED = "de_wilcoxon_lfc_nmae"
"""Of a replicate it is taken over the genes that are significant in all cells, not in a half of them."""

WHY_NONE = WHY_NONE_OF_SIX | {
    TOGETHER: "fewer than 10 perturbations have a significant gene in the truth, or all have equally many",
    RATIO: "the truth has no effect beyond the noise of its cells",
}
"""Why the scorer has no value for a metric."""


class Full(Preset):
    """The scorer's profile ``full``, by its own names."""

    scorer = SCORER
    metrics: ClassVar[dict[str, Metric]] = {
        "expr_mae": Metric("Expression MAE", low_is_good=True),
        "pds_l1": Metric("Discrimination (L1)", panel=True),
        "pds_l2": Metric("Discrimination (L2)", panel=True),
        "pds_cosine": Metric("Discrimination (cosine)", panel=True),
        "delta_pearson": Metric("Effect correlation"),
        "expr_mse": Metric("Expression MSE", low_is_good=True),
        "expr_mse_unbiased": Metric("Expression MSE, bias-corrected"),
        "expr_mse_unbiased_capped": Metric("Expression MSE, capped correction"),
        "expr_distance_unbiased": Metric("Real effect size, bias-corrected"),
        "expr_real_mass_ratio": Metric("Real expression mass ratio"),
        "expr_mse_unbiased_capped_norm": Metric("Normalized expression error", low_is_good=True),
        "delta_mse": Metric("Effect MSE", low_is_good=True),
        "delta_mae": Metric("Effect MAE", low_is_good=True),
        "de_wilcoxon_overlap": Metric("DE gene overlap", significant=True),
        "de_wilcoxon_overlap_top50": Metric("DE gene overlap, top 50"),
        "de_wilcoxon_overlap_top100": Metric("DE gene overlap, top 100"),
        "de_wilcoxon_overlap_top200": Metric("DE gene overlap, top 200"),
        "de_wilcoxon_overlap_top500": Metric("DE gene overlap, top 500"),
        "de_wilcoxon_precision": Metric("DE gene precision", significant=True),
        "de_wilcoxon_precision_top50": Metric("DE gene precision, top 50"),
        "de_wilcoxon_precision_top100": Metric("DE gene precision, top 100"),
        "de_wilcoxon_precision_top200": Metric("DE gene precision, top 200"),
        "de_wilcoxon_precision_top500": Metric("DE gene precision, top 500"),
        "de_wilcoxon_nsig_counts_real": Metric("Real significant genes"),
        "de_wilcoxon_nsig_counts_pred": Metric("Predicted significant genes"),
        "de_wilcoxon_nsig_spearman": Metric("Significant-gene count correlation"),
        "de_wilcoxon_sig_recall": Metric("DE gene recall", significant=True),
        "de_wilcoxon_direction_match": Metric("Direction agreement", significant=True),
        "de_wilcoxon_model_direction_match": Metric("Predicted-gene direction agreement"),
        "de_wilcoxon_lfc_spearman": Metric("LFC correlation"),
        "de_wilcoxon_lfc_spearman_pos": Metric("LFC correlation, up genes"),
        "de_wilcoxon_lfc_spearman_neg": Metric("LFC correlation, down genes"),
        "de_wilcoxon_lfc_nmae": Metric("LFC normalized MAE", low_is_good=True),
        "de_wilcoxon_pr_auc": Metric("Significance PR AUC"),
        "de_wilcoxon_roc_auc": Metric("Significance ROC AUC"),
        "de_wilcoxon_overlap_adjusted": Metric("DE overlap, chance-corrected"),
        "de_wilcoxon_precision_adjusted": Metric("DE precision, chance-corrected"),
        "de_wilcoxon_sig_recall_adjusted": Metric("DE recall, chance-corrected"),
        "de_wilcoxon_sig_mcc": Metric("DE significance MCC", significant=True),
        "de_wilcoxon_direction_precision": Metric("Direction precision"),
        "de_wilcoxon_direction_sensitivity": Metric("Direction sensitivity"),
        "de_wilcoxon_direction_sensitivity_universe": Metric("Direction sensitivity, all genes"),
        "de_wilcoxon_direction_fidelity": Metric("Direction fidelity"),
        "de_wilcoxon_direction_fidelity_raw": Metric("Direction fidelity, raw"),
        "de_wilcoxon_direction_coverage": Metric("Direction coverage"),
        "de_wilcoxon_direction_yield": Metric("Direction yield"),
        "de_wilcoxon_direction_yield_raw": Metric("Direction yield, raw"),
        "de_wilcoxon_direction_fidelity_yield": Metric("Direction fidelity-yield"),
        "de_wilcoxon_direction_fidelity_yield_raw": Metric("Direction fidelity-yield, raw"),
        "de_wilcoxon_direction_reach": Metric("Direction reach"),
        "de_wilcoxon_direction_reach_raw": Metric("Direction reach, raw"),
        "de_wilcoxon_direction_reach_unbounded": Metric("Direction reach, all genes"),
        "de_wilcoxon_direction_reach_unbounded_raw": Metric("Direction reach, all genes, raw"),
        "de_wilcoxon_sig_jaccard": Metric("DE gene Jaccard", significant=True),
    }
    needed = 24
    low = "cell-eval2 mean response"
    high = "a replicate (split halves)"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return given(scorer_config("vcc2026", list(self.metrics), ""))

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        folder = anchors_folder(cache, digest, context, control, self)
        alone = real.obs["perturbation"].nunique() == 2
        metrics = [name for name in self.metrics if not (alone and name.startswith("pds_"))]
        config, notes = for_context(scorer_config("vcc2026", metrics, control), real, context, folder)
        with quiet():
            anchors = load_anchors(folder, lambda: _measure(real, config, alone))
        return _Context(real, config, anchors, notes)


class _Context(ContextScorer):
    why_none = WHY_NONE

    def __init__(self, real: ad.AnnData, config: EvalConfig, anchors: Anchors, notes: list[str]):
        anchors.give(self)
        self._real, self._config, self.notes = real, config, notes
        self._controls = real[real.obs["perturbation"] == config.control]

    def measure(self, predicted: ad.AnnData) -> Mapping[str, Measured]:
        """Measure with the truth's controls, as in 2026."""
        submission = ad.concat([predicted, self._controls], index_unique="-")
        with quiet():
            return _compare(submission, self._real, self._config)


def _compare(predicted: ad.AnnData, truth: ad.AnnData, config: EvalConfig, **given: Any) -> dict[str, Measured]:
    """Raw values of the metrics that the scorer can form; cells with controls on both sides."""
    from cell_eval2 import compute_metrics

    tidy = compute_metrics(predicted, truth, config=config, **given)
    names = list(dict.fromkeys(config.metrics))
    try:
        found = aggregate(tidy, names)
    except ValueError:
        found = aggregate(tidy, [name for name in names if name != RATIO])
    return found | {TOGETHER: replace(found[TOGETHER], parts={})}


def _measure(real: ad.AnnData, config: EvalConfig, alone: bool) -> Anchors:
    """Both ends of every scale, each measured once for all metrics.

    Args:
        real: measured cells of one context with their controls, raw counts.
        config: of the scorer, with all metrics.
        alone: there is one perturbation, which is itself the mean response.
    """
    from cell_eval2 import compute_lfc_nmae_reference
    from cell_eval2.baseline import baseline_config

    halved = replace(config, control_source="pred", cache_real=None)
    with tempfile.TemporaryDirectory(prefix="vcc-fm-") as folder:
        tables = replace(baseline_config(config), outdir=folder)
        low = _compare(real if alone else mean_response(real, config), real, tables, write_de=True)
        tested = Path(folder) / "de_real.parquet"

        def of_halves(half: ad.AnnData, other: ad.AnnData, seed: int) -> dict[str, Measured]:
            found = _compare(half, other, halved)
            _, whole = compute_lfc_nmae_reference(real, config=config, seed=seed, de_real=tested)
            value, number = whole.row(0)[1], whole.row(0)[-1]
            return found | {REPLICATED: Measured(np.nan if value is None else float(value), int(number))}

        ceiling = replicate(real, of_halves)
    counts = low[SIGNIFICANT].parts
    significant = {label: int(number) for label, (number, _) in counts.items()}
    scales = {}
    for name in Full.metrics:
        if name in UNDIRECTED:
            scales[name] = Scale(reason="neither a high nor a low value is better; raw values only")
        elif alone:
            scales[name] = Scale(reason="there is one perturbation, which is itself the mean response")
        elif name not in ceiling or name not in low or np.isnan(low[name].value):
            scales[name] = Scale(reason=WHY_NONE.get(name, NO_VALUE))
        else:
            scales[name] = replace(scale_of(name, low[name].value, ceiling[name].value), floor=None, cap=None)
    return Anchors(scales, {} if alone else low, ceiling, significant)
