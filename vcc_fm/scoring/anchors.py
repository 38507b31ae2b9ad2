"""What is measured of the truth of a context alone: cached, and the two ends of the 2026 scale, by cell-eval2.

There 0 is the scorer's mean-response baseline, 1 its replicate anchor: the mean of five splits of the measured cells
into halves, one half scored against the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anndata as ad
import numpy as np
from pydantic import TypeAdapter

from vcc_fm.ground.files import write_text
from vcc_fm.scoring.preset import NO_VALUE, Ceiling, ContextScorer, Measured, Preset, Scale

if TYPE_CHECKING:
    from cell_eval2 import EvalConfig

SCORER = "cell-eval2"

T = TypeVar("T")

#: Not scored: the number of significant genes of each perturbation in the truth, which explains missing values.
SIGNIFICANT = "de_wilcoxon_nsig_counts_real"

#: Two empty sets agree: this member has a value for every truth, so where the scorer refuses it, something else is
#: wrong than too weak a truth, and the error is not taken for one.
ALWAYS_DEFINED = "de_wilcoxon_sig_jaccard"

#: It ranks a perturbation among the others, of which there must be some.
DISCRIMINATION = "pds_cosine"


#: Raised whenever what is cached, or its form, changes by the same scorer.
FORMAT = 3


@dataclass(frozen=True)
class Anchors:
    """What is measured of the truth of one context alone; see :class:`ContextScorer` for the fields."""

    scales: dict[str, Scale]
    low: dict[str, Measured]
    ceiling: dict[str, Ceiling]
    significant: dict[str, int]

    def give(self, scorer: ContextScorer) -> None:
        """Set the scorer's fields of these names."""
        scorer.scales, scorer.low, scorer.ceiling = self.scales, self.low, self.ceiling
        scorer.significant = self.significant


def scorer_config(preset: str, metrics: list[str], control: str) -> EvalConfig:
    """The scorer's preset with this project's column and control label.

    The differential-expression engine and the device are pinned to the CPU ones, so that a table is the same on every
    machine; the competition's rule leaves both open.
    """
    from cell_eval2 import EvalConfig

    config = EvalConfig.from_preset(preset)
    return replace(
        config,
        metrics=[*metrics, SIGNIFICANT],
        pert_col="perturbation",
        control=control,
        device="cpu",
        de=replace(config.de, backend="pdex"),
    )


def for_context(config: EvalConfig, real: ad.AnnData, context: str, folder: Path) -> tuple[EvalConfig, list[str]]:
    """The same settings for the cells of one context, and what a reader must know of them.

    Args:
        config: from :func:`scorer_config`.
        real: measured cells of the context with their controls.
        context: its name.
        folder: from :func:`anchors_folder`; the scorer keeps the truth's own tables there.
    """
    controls = int((real.obs["perturbation"] == config.control).sum())
    config = replace(config, cache_real=str(folder / "truth"), num_threads=threads(real.n_vars, controls))
    labels = set(real.obs["perturbation"]) - {config.control}
    if genes := labels.intersection(real.var_names):
        found = f"{len(genes)} of {len(labels)} perturbations are genes of the axis"
        note = f"{context}: {found}, which the metrics leave out for them"
        return config, [note] if len(genes) < len(labels) else []
    # Without this the scorer refuses, for fear that its rule was switched off by a misspelt label.
    note = f"{context}: no perturbation label is a gene of the axis, so no target gene is left out"
    return replace(config, target_gene_map={"*": None}), [note]


def mean_response(real: ad.AnnData, config: EvalConfig) -> ad.AnnData:
    """Cells of the scorer's mean response beside the truth's controls, float counts.

    A cell is a control cell, drawn with replacement, of which each gene is multiplied by the ratio of its mean count
    over perturbations to that in controls.

    Args:
        real: measured cells of one context with their controls, raw counts.
        config: from :func:`for_context`.
    """
    from cell_eval2.baseline import build_baseline_prediction, generic_response_profile

    columns = {"pert_col": config.pert_col, "control": config.control}
    profile = generic_response_profile(real, target_gene_map=config.target_gene_map, **columns)
    return build_baseline_prediction(profile, real, **columns)


def threads(genes: int, controls: int) -> int:
    """Threads for the scorer's rank tests: all of them, or one where a test (one perturbation) is short.

    A test over 320 genes takes 5 ms on one core and 3 ms on two idle ones, but up to 20 ms where another process holds
    one of the two, since the threads wait for each other at its end.
    """
    from numba import config

    return int(config.NUMBA_NUM_THREADS) if genes * controls > 5_000_000 else 1


def given(config: EvalConfig) -> dict[str, Any]:
    """The scorer's settings that numbers depend on, for the record beside them."""
    machine = {"metrics", "pert_col", "control", "num_threads", "gather_threads", "pert_chunk", "outdir"}
    machine |= {"cache_real", "cache_pred", "cache_strict"}
    return {name: value for name, value in config.to_dict().items() if name not in machine}


def anchors_folder(cache: Path, digest: str, context: str, control: str, preset: Preset) -> Path:
    """The folder of one truth and context under ``cache``; it changes with the file, the labels and the versions.

    Args:
        cache: folder of all cached anchors.
        digest: SHA-256 of the truth, hexadecimal.
        context: the context.
        control: label of the control cells.
        preset: what is measured.
    """
    packages = [version(package) for package in (preset.scorer, SCORER, "pdex")]
    identity = [FORMAT, digest, context, control, type(preset).__qualname__, preset.version, *packages]
    return cache / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def load_anchors(folder: Path, measure: Callable[[], Anchors]) -> Anchors:
    """The anchors of one context, from the cache or measured now and cached (in one rename).

    Args:
        folder: from :func:`anchors_folder`.
        measure: measures them.
    """
    file = folder / "anchors.json"
    if not file.exists():
        # A number that is missing is NaN, which strict JSON has not; this file is read here alone.
        write_text(file, json.dumps(asdict(measure())))
    return TypeAdapter(Anchors).validate_json(file.read_bytes())


def measure_anchors(real: ad.AnnData, config: EvalConfig) -> Anchors:
    """Measure both ends of the scale of one context with the scorer's own producers.

    Args:
        real: measured cells of one context with their controls, raw counts (cells, genes).
        config: from :func:`scorer_config`; its ``cache_real`` is used for the truth's own tables.

    A member that the scorer cannot anchor (too few significant genes, no effect beyond noise, no headroom between the
    two ends) keeps a reason instead of a scale; the others are not touched by it. A single perturbation has no scale
    at all, as it is itself the mean response; it keeps the replicates, beside which raw values can be read.
    """
    if real.obs["perturbation"].nunique() > 2:
        low, reasons, significant = _baseline(real, config)
        defined = [metric for metric in low if metric not in reasons]
    else:
        low, reasons, significant = _alone(real, config)
        defined = [metric for metric in reasons if metric != DISCRIMINATION]
    ceiling, why = _tolerant(lambda part: _replicate(real, part), config, defined)
    reasons = why | reasons
    scales = {
        metric: Scale(reason=reasons[metric])
        if metric in reasons
        else scale_of(metric, low[metric].value, ceiling[metric].value)
        for metric in _scored(config)
    }
    return Anchors(scales, low, ceiling, significant)


def scale_of(metric: str, low: float, high: float) -> Scale:
    """The scorer's scale of one of its metrics between two raw values, with the scorer's limits.

    Its own substitution (`score_metrics` with a replicate): the scale's 1 is ``high`` instead of the perfect value.
    """
    from cell_eval2.catalog import CATALOG
    from cell_eval2.scoring import is_degenerate, score_one

    policy = CATALOG[metric].scoring
    # The scorer takes no 1 at the worst value that there is: beside that a mean response is never worse.
    worst = policy.metric_min is not None and high <= policy.metric_min
    if not worst:
        policy = replace(policy, anchor=high, allow_negative_baseline=False)
    if worst or is_degenerate(low, policy):
        return Scale(low, high, reason=f"a replicate ({high:.3f}) is no better than the mean response ({low:.3f})")
    floor = policy.effective_clamp_low()
    return Scale(
        low,
        high,
        floor=floor if np.isfinite(floor) else None,
        cap=policy.clamp_high,
        missing=float(score_one(np.nan, low, policy)),
    )


def aggregate(tidy: Any, metrics: list[str]) -> dict[str, Measured]:
    """The scorer's aggregate of a tidy result (columns perturbation, metric, value), and its parts."""
    from cell_eval2 import aggregate_metrics
    from cell_eval2.catalog import CATALOG
    from cell_eval2.run import metric_cohorts

    values = aggregate_metrics(tidy, metrics=metrics)
    found = dict(zip(values["metric"], values["mean"], strict=True))
    cohorts = metric_cohorts(tidy)
    sizes = dict(zip(cohorts["metric"], cohorts["n_used"], strict=True))
    wide = tidy.to_pandas().pivot(index="perturbation", columns="metric", values="value").astype(float)
    measured = {}
    for metric in metrics:
        # A ratio of sums has no value per perturbation of its own: its cohort is its numerator's.
        derived = CATALOG[metric].derived
        names = (derived.numerator, derived.denominator) if derived else (metric,)
        parts = wide.reindex(columns=names).dropna()
        measured[metric] = Measured(
            float(found.get(metric, np.nan)),
            int(sizes.get(names[0], 0)),
            {str(label): (row[0], row[1] if derived else 1.0) for label, *row in parts.itertuples(name=None)},
        )
    return measured


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the scorer's progress bars (one per rank test) and its notes on the baseline's fractions off the screen."""
    logger = logging.getLogger("cell_eval2")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _baseline(real: ad.AnnData, config: EvalConfig) -> tuple[dict[str, Measured], dict[str, str], dict[str, int]]:
    """The mean response: raw values, reasons of metrics without one, and numbers of significant genes."""
    significant: dict[str, int] = {}

    def measure(part: EvalConfig) -> dict[str, Measured]:
        from cell_eval2 import build_generic_baseline

        built = build_generic_baseline(real, config=part, allow_degenerate=True).results
        counts = built.filter(built["metric"] == SIGNIFICANT)
        significant.update({p: int(n) for p, n in zip(counts["perturbation"], counts["value"], strict=True)})
        return aggregate(built, _scored(part))

    low, reasons = _tolerant(measure, config, _scored(config))
    reasons |= {metric: NO_VALUE for metric, one in low.items() if not np.isfinite(one.value)}
    return low, reasons, significant


def _alone(real: ad.AnnData, config: EvalConfig) -> tuple[dict[str, Measured], dict[str, str], dict[str, int]]:
    """A single perturbation: reasons in place of raw values, and its number of significant genes."""
    from cell_eval2 import compute_metrics

    found = compute_metrics(real, real, config=replace(config, metrics=[SIGNIFICANT]))
    reason = "there is one perturbation, and the mean response, where the scale begins, is that perturbation itself"
    reasons = dict.fromkeys(_scored(config), reason)
    reasons[DISCRIMINATION] = "there is one perturbation, and no other to tell it from"
    return {}, reasons, {p: int(n) for p, n in zip(found["perturbation"], found["value"], strict=True)}


def _replicate(real: ad.AnnData, config: EvalConfig) -> dict[str, Ceiling]:
    from cell_eval2.anchor import compute_replicate_anchor

    _, anchor = compute_replicate_anchor(real, config=replace(config, metrics=_scored(config)))
    return {
        row["metric"]: Ceiling(
            row["replicate"],
            row["replicate_sd"],
            row["replicate_min"],
            row["replicate_max"],
            # A ratio of sums has no value per perturbation; the scorer takes all perturbations or raises.
            row["n_perturbations_min"] or real.obs["perturbation"].nunique() - 1,
        )
        for row in anchor.iter_rows(named=True)
    }


def _scored(config: EvalConfig) -> list[str]:
    return [metric for metric in config.metrics if metric != SIGNIFICANT]


def _tolerant(
    measure: Callable[[EvalConfig], dict[str, T]], config: EvalConfig, metrics: list[str]
) -> tuple[dict[str, T], dict[str, str]]:
    """Measure all metrics in one go; where the scorer refuses, one at a time, to learn which it refuses and why."""
    try:
        return measure(replace(config, metrics=[*metrics, SIGNIFICANT])), {}
    except ValueError:
        results: dict[str, T] = {}
        reasons: dict[str, str] = {}
        for metric in metrics:
            try:
                results |= measure(replace(config, metrics=[metric, SIGNIFICANT]))
            except ValueError as error:
                if metric == ALWAYS_DEFINED:
                    raise
                reasons[metric] = str(error).split(". ")[0].removeprefix(f"{metric}: ")
        return results, reasons
