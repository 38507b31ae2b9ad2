"""Score predictions against measured cells, each context by itself, by any preset."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import sha256_file
from vcc_fm.scoring.inputs import Labels, check_pair, check_truth, read_context, read_labels
from vcc_fm.scoring.means import scaled_means, uncertain
from vcc_fm.scoring.preset import ContextScorer, Measured, Preset, preset_named
from vcc_fm.scoring.table import Entry, ScoreTable


def score(truth: Path, entries: list[Entry], control: str, preset_name: str, cache: Path) -> ScoreTable:
    """Score predictions against measured cells, each context by itself.

    Every file holds raw counts with obs ``context`` and ``perturbation`` and gene symbols as var index, the same gene
    axis in all. The truth holds the measured cells of every (context, perturbation) asked for and the measured
    controls of these contexts; a prediction holds the same pairs and no controls.

    Args:
        truth: h5ad file of measured cells.
        entries: the predictions; the two ends of the scale are added as rows of their own.
        control: label of the control cells in ``obs.perturbation``.
        preset_name: what is measured.
        cache: folder for what is measured of the truth alone, keyed by its SHA-256 and the scorer's version.

    Returns:
        The table; a context's scaled mean is taken over the metrics that are defined, and says how many.

    Raises:
        UserError: names repeat, a file is missing or no h5ad, labels or genes do not fit, values are no counts, or
            there is no such preset.
    """
    started = time.perf_counter()
    preset = preset_named(preset_name)
    measured, predicted = _checked(truth, entries, control, preset)
    digest = sha256_file(truth)
    rows: list[dict[str, Any]] = []
    scales: list[pd.DataFrame] = []
    significant: list[pd.DataFrame] = []
    notes: list[str] = []
    for context in measured.contexts():
        scorer = preset.open(read_context(measured, context), context, control, cache, digest)
        rows += _context_rows(entries, predicted, context, scorer, preset)
        notes += scorer.notes + _unsure(context, scorer, preset)
        scales.append(scorer.anchors.rename_axis("metric").reset_index().assign(context=context))
        counts = pd.Series(scorer.significant, name="significant").rename_axis("perturbation").reset_index()
        significant.append(counts.assign(context=context))

    scored_by = version(preset.scorer)
    table = pd.DataFrame(rows).assign(scorer=preset.scorer, version=scored_by)
    ends = pd.concat(scales, ignore_index=True)
    return ScoreTable(
        rows=table,
        means=scaled_means(table, ends, preset.needed),
        anchors=ends,
        significant=pd.concat(significant, ignore_index=True),
        notes=notes,
        preset=preset_name,
        scorer=preset.scorer,
        version=scored_by,
        seconds=time.perf_counter() - started,
        metrics=dict(preset.metrics),
        needed=preset.needed,
        low=preset.low,
        high=preset.high,
    )


def _checked(truth: Path, entries: list[Entry], control: str, preset: Preset) -> tuple[Labels, list[Labels]]:
    """Labels of the truth, and of the predictions, which fit it and each other."""
    names = [entry.name for entry in entries] + [preset.low, preset.high]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"entries to score: name {repeated[0]!r} is used twice; every row needs a name of its own")
    measured = read_labels(truth)
    check_truth(measured, control)
    preset.check_axis(measured.genes)
    predicted = [read_labels(entry.path) for entry in entries]
    for labels in predicted:
        check_pair(measured, labels, control)
    return measured, predicted


def _context_rows(
    entries: list[Entry], predicted: list[Labels], context: str, scorer: ContextScorer, preset: Preset
) -> list[dict[str, Any]]:
    """Of every entry in one context, and of the two ends of the scale."""
    rows = []
    for entry, labels in zip(entries, predicted, strict=True):
        values = scorer.measure(read_context(labels, context))
        rows += _rows(entry.name, entry.kind, context, values, scorer)
    rows += _rows(preset.low, "baseline", context, _end(scorer, "baseline", "perturbations"), scorer)
    return rows + _rows(preset.high, "ceiling", context, _end(scorer, "replicate", "replicate_perturbations"), scorer)


def _end(scorer: ContextScorer, value: str, size: str) -> dict[str, Measured]:
    """One end of the scale as if it had been a prediction."""
    return {str(m): Measured(float(row[value]), int(row[size])) for m, row in scorer.anchors.iterrows()}


def _unsure(context: str, scorer: ContextScorer, preset: Preset) -> list[str]:
    """A note for every metric whose scale is hardly known: the splits differ by as much as the scale is long."""
    return [
        f"{context}, {preset.metrics[str(metric)].label}: the replicate is {row['replicate']:.3f} with sd "
        f"{row['replicate_sd']:.3f} over the splits, the mean response {row['baseline']:.3f}; its scaled values are "
        "uncertain"
        for metric, row in scorer.anchors[uncertain(scorer.anchors)].iterrows()
    ]


def _rows(
    entry: str, kind: str, context: str, values: dict[str, Measured], scorer: ContextScorer
) -> list[dict[str, Any]]:
    rows = []
    for metric, anchor in scorer.anchors.iterrows():
        value, size = values.get(str(metric), Measured(np.nan, 0))
        scaled, reason = np.nan, str(anchor["reason"])
        if not reason:
            scaled, reason = scorer.scale(str(metric), value)
        rows.append(
            {
                "entry": entry,
                "kind": kind,
                "context": context,
                "metric": metric,
                "raw": value,
                "scaled": scaled,
                "perturbations": size,
                "reason": reason,
            }
        )
    return rows
