"""Changes of mean expression, as papers report them: Pearson correlation and squared error.

Values are means over cells of log1p of counts per 10,000. A delta is taken against the control, or against the mean
perturbed cell, the mean of all perturbations with the weight 1 each: what perturbations have in common is in the first
and not in the second. The perturbation itself is among them; were it left out, a predictor that always answers with
their mean would have a delta of 1/n of the true one, and so a correlation of 1. An error does not depend on what a
delta is taken against. The target gene counts as any other.

The 20 genes that respond most are those with the smallest p of the rank-sum test in the truth, whatever their sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import pearsonr

from vcc_fm.ground.files import write_json
from vcc_fm.scoring.anchors import (
    SCORER,
    Anchors,
    anchors_folder,
    for_context,
    load_anchors,
    mean_response,
    quiet,
    scorer_config,
    threads,
)
from vcc_fm.scoring.preset import NO_VALUE, ContextScorer, Measured, Metric, Preset, Scale
from vcc_fm.scoring.profiles import label_means, log_normalized
from vcc_fm.scoring.replicate import replicate

TOTAL = 10_000.0
TOP = 20


class Delta(Preset):
    """Correlation and error of deltas, over all genes and over those that respond most."""

    scorer = "scipy"
    metrics: ClassVar[dict[str, Metric]] = {
        "pearson_control": Metric("r ctrl"),
        "pearson_control_top20": Metric("r ctrl 20"),
        "pearson_mean": Metric("r mean", panel=True),
        "pearson_mean_top20": Metric("r mean 20", panel=True),
        "mse": Metric("MSE", low_is_good=True),
        "mse_top20": Metric("MSE 20", low_is_good=True),
    }
    needed = 4
    low = "cell-eval2 mean response"
    high = "a replicate (split halves)"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return {
            "values": "mean over cells of log1p of counts per 10,000",
            "top_genes": TOP,
            "top_genes_by": f"p of the rank-sum test, pdex {version('pdex')}",
            "control_source": "real",
            "target_gene": "counts as any other",
            "mean_of": "all perturbations of the truth",
            "mean_response": f"{SCORER} {version(SCORER)}",
        }

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        folder = anchors_folder(cache, digest, context, control, self)
        config, _ = for_context(scorer_config("vcc2026", [], control), real, context, folder)
        with quiet():
            truth = _Truth.of(real, control, folder / "top_genes.json")

            def measure() -> Anchors:
                ceiling = replicate(
                    real, lambda half, other, _: _Truth.of(other, control).measure(half, own_reference=True)
                )
                low = {}
                if len(truth.top) > 1:
                    cells = mean_response(real, config)
                    low = truth.measure(cells[cells.obs["perturbation"] != control].copy())
                scales = {
                    name: _scale(low.get(name), ceiling[name].value if name in ceiling else np.nan, metric.low_is_good)
                    for name, metric in self.metrics.items()
                }
                return Anchors(scales, low, ceiling, truth.significant)

            return _Context(truth, load_anchors(folder, measure))


class _Context(ContextScorer):
    def __init__(self, truth: _Truth, anchors: Anchors):
        anchors.give(self)
        self._truth, self.notes = truth, []

    def measure(self, predicted: ad.AnnData) -> Mapping[str, Measured]:
        """Against the truth's control and mean."""
        with quiet():
            return self._truth.measure(predicted)


@dataclass(frozen=True)
class _Truth:
    """Measured cells.

    Attributes:
        means: float64 [perturbations, genes].
        control: mean of the control cells, float64 [genes].
        label: their label.
        top: perturbation -> positions of the genes that respond most.
        significant: perturbation -> number of significant genes.
    """

    means: pd.DataFrame
    control: np.ndarray
    label: str
    top: dict[str, list[int]]
    significant: dict[str, int]

    @classmethod
    def of(cls, cells: ad.AnnData, control: str, kept: Path | None = None) -> _Truth:
        """Measure cells with controls, raw counts; rank tests are read from ``kept`` where it is there, or kept."""
        log = log_normalized(cells, TOTAL)
        if kept is not None and kept.exists():
            top, significant = json.loads(kept.read_text(encoding="utf-8"))
        else:
            top, significant = responding(log, control)
            if kept is not None:
                write_json(kept, [top, significant])
        means = label_means(log)
        return cls(means.drop(index=control), means.loc[control].to_numpy(), control, top, significant)

    def measure(self, predicted: ad.AnnData, own_reference: bool = False) -> dict[str, Measured]:
        """Raw values of predicted cells, raw counts.

        Args:
            predicted: cells of the same perturbations.
            own_reference: they have controls, and their deltas are taken against what is theirs; otherwise against the
                truth's control and mean, as those of the truth.
        """
        found = label_means(log_normalized(predicted, TOTAL))
        real = {"control": self.control, "mean": self.means.to_numpy().mean(axis=0)}
        ours = real
        if own_reference:
            control, found = found.loc[self.label].to_numpy(), found.drop(index=self.label)
            ours = {"control": control, "mean": found.to_numpy().mean(axis=0)}
        values: dict[str, dict[str, float]] = {name: {} for name in Delta.metrics}
        for label, genes in self.top.items():
            measured, predicted_mean = self.means.loc[label].to_numpy(), found.loc[label].to_numpy()
            for suffix, at in (("", slice(None)), ("_top20", genes)):
                values[f"mse{suffix}"][label] = float(np.mean(np.square(measured[at] - predicted_mean[at])))
                for name in ("control", "mean"):
                    deltas = (measured - real[name])[at], (predicted_mean - ours[name])[at]
                    values[f"pearson_{name}{suffix}"][label] = correlation(*deltas)
        return {name: Measured.mean(one) for name, one in values.items()}


def responding(log: ad.AnnData, control: str) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Positions of the ``TOP`` genes that respond most to each perturbation, and the number of significant ones.

    Genes are ordered by p of the rank-sum test against the controls; where p is equal, as where it is too small to be
    told from 0, by the share of pairs of cells that the test finds in order; then by position. Significant is what has
    a false discovery rate below 0.05 within the perturbation.

    Args:
        log: log-normalised cells with controls.
        control: label of the controls.
    """
    from pdex import pdex

    number = threads(log.n_vars, int((log.obs["perturbation"] == control).sum()))
    tests = pdex(
        log, groupby="perturbation", mode="ref", reference=control, threads=number, is_log1p=True, as_pandas=True
    )
    tests = tests.assign(position=log.var_names.get_indexer(tests["feature"]))
    pairs = tests["target_membership"] * tests["ref_membership"]
    tests["order"] = -(tests["statistic"] / pairs - 0.5).abs()
    groups = tests.sort_values(["p_value", "order", "position"]).groupby("target", sort=True)
    top = {str(label): [int(at) for at in part["position"][:TOP]] for label, part in groups}
    return top, {str(label): int((part["fdr"] < 0.05).sum()) for label, part in groups}


def correlation(real: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's r over genes; NaN where the truth does not vary, and 0 where the prediction alone does not."""
    if np.ptp(real) == 0:
        return np.nan
    return 0.0 if np.ptp(predicted) == 0 else float(pearsonr(real, predicted).statistic)


def _scale(low: Measured | None, high: float, low_is_good: bool) -> Scale:
    if low is None:
        return Scale(reason="there is one perturbation, which is itself the mean response")
    if np.isnan(low.value) or np.isnan(high):
        return Scale(reason=NO_VALUE)
    scale = Scale(low.value, high)
    if (high >= low.value) if low_is_good else (high <= low.value):
        reason = f"a replicate ({high:.3f}) is no better than the mean response ({low.value:.3f})"
        return replace(scale, reason=reason)
    return scale
