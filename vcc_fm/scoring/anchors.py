"""The two ends of the competition's scale, measured once per truth and context by cell-eval2, and cached.

0 is the scorer's mean-response baseline, 1 its replicate anchor: the mean of five splits of the measured cells into
halves, one half scored against the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from vcc_fm.ground.files import write_json

if TYPE_CHECKING:
    from cell_eval2 import EvalConfig

SCORER = "cell-eval2"

#: Not scored: the number of significant genes of each perturbation in the truth, which explains missing values.
SIGNIFICANT = "de_wilcoxon_nsig_counts_real"

#: Two empty sets agree: this member has a value for every truth, so where the scorer refuses it, something else is
#: wrong than too weak a truth, and the error is not taken for one.
ALWAYS_DEFINED = "de_wilcoxon_sig_jaccard"

#: It ranks a perturbation among the others, of which there must be some.
DISCRIMINATION = "pds_cosine"

#: The reason of a member of which the scorer returns no value, where it does not refuse.
NO_VALUE = "no value"


@dataclass(frozen=True)
class Anchors:
    """The scale of one context.

    Attributes:
        frame: one row per metric (the index): baseline, replicate, replicate_sd, replicate_min,
            replicate_max, perturbations (that have a value in the baseline), replicate_perturbations, and reason
            (empty where the scale is defined).
        significant: perturbation -> number of significant genes in the truth.
    """

    frame: pd.DataFrame
    significant: dict[str, int]


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


def threads(genes: int, controls: int) -> int:
    """Threads for the scorer's rank tests: all of them, or one where a test (one perturbation) is short.

    A test over 320 genes takes 5 ms on one core and 3 ms on two idle ones, but up to 20 ms where another process holds
    one of the two, since the threads wait for each other at its end.
    """
    from numba import config

    return int(config.NUMBA_NUM_THREADS) if genes * controls > 5_000_000 else 1


def anchors_folder(cache: Path, digest: str, context: str, control: str, preset: str) -> Path:
    """The folder of one truth and context under ``cache``; it changes with the file, the labels and the versions.

    Args:
        cache: folder of all cached anchors.
        digest: SHA-256 of the truth, hexadecimal.
        context: the context.
        control: label of the control cells.
        preset: the scorer's preset.
    """
    identity = [digest, context, control, preset, version(SCORER), version("pdex")]
    return cache / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def load_anchors(real: ad.AnnData, config: EvalConfig, folder: Path) -> Anchors:
    """The anchors of one context, from the cache or measured now and cached (in one rename).

    Args:
        real: measured cells of one context with their controls, raw counts (cells, genes).
        config: from :func:`scorer_config`; its ``cache_real`` is used for the truth's own tables.
        folder: from :func:`anchors_folder`.
    """
    file = folder / "anchors.json"
    if not file.exists():
        anchors = measure_anchors(real, config)
        content = {
            "anchors": json.loads(anchors.frame.to_json(orient="index", double_precision=15)),
            "significant": anchors.significant,
        }
        write_json(file, content)
    content = json.loads(file.read_text())
    frame = pd.DataFrame.from_dict(content["anchors"], orient="index")
    numbers = frame.columns.drop("reason")
    return Anchors(frame.astype({column: float for column in numbers}), content["significant"])


def measure_anchors(real: ad.AnnData, config: EvalConfig) -> Anchors:
    """Measure both ends of the scale of one context with the scorer's own producers.

    A member that the scorer cannot anchor (too few significant genes, no effect beyond noise, no headroom between the
    two ends) keeps a reason instead of a scale; the others are not touched by it. A single perturbation has no scale
    at all, as it is itself the mean response; it keeps the replicates, beside which raw values can be read.
    """
    from cell_eval2.catalog import CATALOG
    from cell_eval2.scoring import is_degenerate

    if real.obs["perturbation"].nunique() > 2:
        baselines, significant = _baseline(real, config)
        defined = [metric for metric, row in baselines.items() if not row["reason"]]
    else:
        baselines, significant = _alone(real, config)
        defined = [metric for metric in baselines if metric != DISCRIMINATION]
    replicates = _tolerant(lambda part: _replicate(real, part), config, defined)
    rows: dict[str, dict[str, Any]] = {}
    for metric in _scored(config):
        row = {**_UNMEASURED, **baselines[metric], **replicates.get(metric, {})}
        if not row["reason"]:
            policy = replace(CATALOG[metric].scoring, anchor=row["replicate"])
            if is_degenerate(row["baseline"], policy):
                row["reason"] = (
                    f"a replicate ({row['replicate']:.3f}) is no better than the mean response ({row['baseline']:.3f})"
                )
        rows[metric] = row
    return Anchors(pd.DataFrame.from_dict(rows, orient="index"), significant)


def aggregate(tidy: Any, metrics: list[str]) -> dict[str, tuple[float, int]]:
    """The scorer's aggregate of a tidy result: metric -> (value, number of perturbations that have one)."""
    from cell_eval2 import aggregate_metrics
    from cell_eval2.catalog import CATALOG
    from cell_eval2.run import metric_cohorts

    values = aggregate_metrics(tidy, metrics=metrics)
    found = dict(zip(values["metric"], values["mean"], strict=True))
    # A ratio of sums has no value per perturbation of its own: its cohort is its numerator's.
    source = {m: CATALOG[m].derived.numerator if CATALOG[m].derived else m for m in metrics}
    cohorts = metric_cohorts(tidy)
    sizes = dict(zip(cohorts["metric"], cohorts["n_used"], strict=True))
    return {m: (float(found.get(m, np.nan)), int(sizes.get(source[m], 0))) for m in metrics}


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


_UNMEASURED: dict[str, Any] = {
    "baseline": np.nan,
    "perturbations": 0,
    "reason": "",
    "replicate": np.nan,
    "replicate_sd": np.nan,
    "replicate_min": np.nan,
    "replicate_max": np.nan,
    "replicate_perturbations": 0,
}


def _baseline(real: ad.AnnData, config: EvalConfig) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    significant: dict[str, int] = {}

    def measure(part: EvalConfig) -> dict[str, dict[str, Any]]:
        from cell_eval2 import build_generic_baseline

        built = build_generic_baseline(real, config=part, allow_degenerate=True).results
        counts = built.filter(built["metric"] == SIGNIFICANT)
        significant.update({p: int(n) for p, n in zip(counts["perturbation"], counts["value"], strict=True)})
        return {
            metric: {
                "baseline": value,
                "perturbations": size,
                "reason": "" if np.isfinite(value) else NO_VALUE,
            }
            for metric, (value, size) in aggregate(built, _scored(part)).items()
        }

    return _tolerant(measure, config, _scored(config)), significant


def _alone(real: ad.AnnData, config: EvalConfig) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Of a single perturbation: reasons in place of baselines, and its number of significant genes."""
    from cell_eval2 import compute_metrics

    found = compute_metrics(real, real, config=replace(config, metrics=[SIGNIFICANT]))
    reason = "there is one perturbation, and the mean response, where the scale begins, is that perturbation itself"
    baselines = {metric: {"reason": reason} for metric in _scored(config)}
    baselines[DISCRIMINATION] = {"reason": "there is one perturbation, and no other to tell it from"}
    return baselines, {p: int(n) for p, n in zip(found["perturbation"], found["value"], strict=True)}


def _replicate(real: ad.AnnData, config: EvalConfig) -> dict[str, dict[str, Any]]:
    from cell_eval2.anchor import compute_replicate_anchor

    _, anchor = compute_replicate_anchor(real, config=replace(config, metrics=_scored(config)))
    return {
        row["metric"]: {
            "replicate": row["replicate"],
            "replicate_sd": row["replicate_sd"],
            "replicate_min": row["replicate_min"],
            "replicate_max": row["replicate_max"],
            # A ratio of sums has no value per perturbation; the scorer takes all perturbations or raises.
            "replicate_perturbations": row["n_perturbations_min"] or real.obs["perturbation"].nunique() - 1,
        }
        for row in anchor.iter_rows(named=True)
    }


def _scored(config: EvalConfig) -> list[str]:
    return [metric for metric in config.metrics if metric != SIGNIFICANT]


def _tolerant(
    measure: Callable[[EvalConfig], dict[str, dict[str, Any]]], config: EvalConfig, metrics: list[str]
) -> dict[str, dict[str, Any]]:
    """Measure all metrics in one go; where the scorer refuses, one at a time, to learn which it refuses and why."""
    try:
        return measure(replace(config, metrics=[*metrics, SIGNIFICANT]))
    except ValueError:
        results: dict[str, dict[str, Any]] = {}
        for metric in metrics:
            try:
                results |= measure(replace(config, metrics=[metric, SIGNIFICANT]))
            except ValueError as error:
                if metric == ALWAYS_DEFINED:
                    raise
                results[metric] = {"reason": str(error).split(". ")[0].removeprefix(f"{metric}: ")}
        return results
