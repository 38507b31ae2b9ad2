"""The Virtual Cell Challenge 2026 score, computed by cell-eval2.

Nothing is measured here: the scorer computes the six metrics (`compute_metrics`), the two ends of their scale (its
mean-response baseline and its replicate anchor), and the scaled value with its clamps (`score_one`). This module
reads the files, appends the truth's controls to a prediction as the competition's platform does, and keeps the books.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.anchors import (
    NO_VALUE,
    SCORER,
    Anchors,
    aggregate,
    anchors_folder,
    load_anchors,
    quiet,
    scorer_config,
    threads,
)
from vcc_fm.scoring.inputs import Labels, check_pair, check_truth, read_context, read_labels
from vcc_fm.scoring.means import scaled_means, uncertain
from vcc_fm.scoring.table import LABELS, MEAN_RESPONSE, REPLICATE, Entry, ScoreTable

if TYPE_CHECKING:
    from cell_eval2 import EvalConfig

#: metric -> (raw value, number of perturbations that have one)
Raw = dict[str, tuple[float, int]]


def score(truth: Path, entries: list[Entry], control: str, preset: str, cache: Path) -> ScoreTable:
    """Score predictions against measured cells, each context by itself.

    Every file holds raw counts with obs ``context`` and ``perturbation`` and gene symbols as var index, the same gene
    axis in all. The truth holds the measured cells of every (context, perturbation) asked for and the measured
    controls of these contexts; a prediction holds the same pairs and no controls.

    A perturbation label that is a gene of the axis loses that gene in the metrics (the scorer's rule); the label of a
    combination names no single gene and loses none.

    Args:
        truth: h5ad file of measured cells.
        entries: the predictions; the scorer's own mean response and replicate are added as rows of their own.
        control: label of the control cells in ``obs.perturbation``.
        preset: the scorer's preset, vcc2026.
        cache: folder for anchors and the truth's own tables, keyed by the truth's SHA-256 and the scorer's version.

    Returns:
        The table. A scaled value is (u - b) / (r - b) with b the mean response and r the replicate, clamped as the
        scorer does; a context's scaled mean is taken over the members that are defined, and says how many.

    Raises:
        UserError: names repeat, a file is missing or no h5ad, labels or genes do not fit, values are no counts.
    """
    started = time.perf_counter()
    names = [entry.name for entry in entries] + [MEAN_RESPONSE, REPLICATE]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"entries to score: name {repeated[0]!r} is used twice; every row needs a name of its own")
    measured = read_labels(truth)
    check_truth(measured, control)
    predicted = [read_labels(entry.path) for entry in entries]
    for labels in predicted:
        check_pair(measured, labels, control)
    with truth.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()

    base = scorer_config(preset, control)
    rows: list[dict[str, Any]] = []
    scales: list[pd.DataFrame] = []
    significant: list[pd.DataFrame] = []
    notes: list[str] = []
    for context in measured.contexts():
        real = read_context(measured, context)
        folder = anchors_folder(cache, digest, context, control, preset)
        controls = int((real.obs["perturbation"] == control).sum())
        config = replace(base, cache_real=str(folder / "truth"), num_threads=threads(real.n_vars, controls))
        if not real.obs["perturbation"].isin(real.var_names).any():
            # Without this the scorer refuses, for fear that its rule was switched off by a misspelt label.
            config = replace(config, target_gene_map={"*": None})
            notes.append(f"{context}: no perturbation label is a gene of the axis, so no target gene is left out")
        with quiet():
            anchors = load_anchors(real, config, folder)
            for entry, labels in zip(entries, predicted, strict=True):
                raw = _raw(labels, context, real, config, anchors)
                rows += _rows(entry.name, entry.kind, context, raw, anchors)
        rows += _rows(MEAN_RESPONSE, "baseline", context, _ends(anchors, "baseline", "perturbations"), anchors)
        rows += _rows(REPLICATE, "ceiling", context, _ends(anchors, "replicate", "replicate_perturbations"), anchors)
        notes += _unsure(context, anchors)
        scales.append(anchors.frame.rename_axis("metric").reset_index().assign(context=context))
        counts = pd.Series(anchors.significant, name="significant").rename_axis("perturbation").reset_index()
        significant.append(counts.assign(context=context))

    table = pd.DataFrame(rows).assign(scorer=SCORER, version=version(SCORER))
    ends = pd.concat(scales, ignore_index=True)
    return ScoreTable(
        rows=table,
        means=scaled_means(table, ends),
        anchors=ends,
        significant=pd.concat(significant, ignore_index=True),
        notes=notes,
        preset=preset,
        scorer=SCORER,
        version=version(SCORER),
        seconds=time.perf_counter() - started,
    )


def _raw(labels: Labels, context: str, real: ad.AnnData, config: EvalConfig, anchors: Anchors) -> Raw:
    """Raw metrics of one prediction in one context, of the members that the truth can give."""
    from cell_eval2 import compute_metrics

    metrics = list(anchors.frame.dropna(subset=["baseline", "replicate"], how="all").index)
    if not metrics:
        return {}
    controls = real[real.obs["perturbation"] == config.control]
    submission = ad.concat([read_context(labels, context), controls], index_unique="-")
    return aggregate(compute_metrics(submission, real, config=replace(config, metrics=metrics)), metrics)


def _ends(anchors: Anchors, value: str, size: str) -> Raw:
    """One end of the scale as if it had been a prediction."""
    return {str(m): (float(row[value]), int(row[size])) for m, row in anchors.frame.iterrows()}


def _unsure(context: str, anchors: Anchors) -> list[str]:
    """A note for every member whose scale is hardly known: the splits differ by as much as the scale is long."""
    return [
        f"{context}, {LABELS[str(metric)]}: the replicate is {row['replicate']:.3f} with sd {row['replicate_sd']:.3f} "
        f"over the splits, the mean response {row['baseline']:.3f}; its scaled values are uncertain"
        for metric, row in anchors.frame[uncertain(anchors.frame)].iterrows()
    ]


def _rows(entry: str, kind: str, context: str, raw: Raw, anchors: Anchors) -> list[dict[str, Any]]:
    from cell_eval2.catalog import CATALOG
    from cell_eval2.scoring import score_one

    rows = []
    for metric in LABELS:
        value, size = raw.get(metric, (np.nan, 0))
        anchor = anchors.frame.loc[metric]
        scaled, reason = np.nan, str(anchor["reason"])
        if not reason:
            # The scorer's own substitution: a scale whose 1 is the replicate instead of the perfect value.
            policy = replace(CATALOG[metric].scoring, anchor=anchor["replicate"], allow_negative_baseline=False)
            scaled = score_one(value, anchor["baseline"], policy)
            reason = "" if np.isfinite(value) else f"{NO_VALUE[metric]}; scored as the scorer scores a missing value"
        rows.append(
            {
                "entry": entry,
                "kind": kind,
                "context": context,
                "metric": metric,
                "raw": value,
                "scaled": float(scaled),
                "perturbations": size,
                "reason": reason,
            }
        )
    return rows
