"""Score predictions against measured cells, each context by itself, by any preset."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import sha256_file
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.ground.words import listed, many
from vcc_fm.scoring.inputs import Labels, check_pair, check_truth, read_context, read_labels
from vcc_fm.scoring.means import Members, scaled_means, uncertain
from vcc_fm.scoring.preset import NO_VALUE, Ceiling, ContextScorer, Measured, Preset, Scale, preset_named
from vcc_fm.scoring.table import VALUES, Entry, ScoreTable

FOLDS = (
    "a fold trained on the perturbations of the others: its predictions resemble those, and tell their own from them "
    "worse than by chance"
)
"""Why a metric that depends on the panel says nothing of several folds.

What fits the mean of all perturbations but one is unlike that one. Were all effects independent, the mean response of
the other folds would have a PDS of 0.19 among 25 perturbations in five folds, where chance has 0.5.
"""


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Leave torch its number of threads.

    The first parallel loop of numba sets OpenMP's number, which is torch's too, to that of all cores. Two threads that
    share a core with the loader's wait for each other: a small model was seen to train twenty times slower.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(before)


@_threads_kept()
def score(
    truth: Path,
    entries: list[Entry],
    control: str,
    preset_name: str,
    cache: Path,
    members: Members = None,
    console: Console | None = None,
    folds: bool = False,
) -> ScoreTable:
    """Score predictions against measured cells, each context by itself.

    Every file holds raw counts with obs ``context`` and ``perturbation`` and gene symbols as var index, the same gene
    axis in all. The truth holds the measured cells of every (context, perturbation) asked for and the measured
    controls of these contexts; a prediction holds the same pairs and no controls.

    Args:
        truth: h5ad file of measured cells.
        entries: the predictions; what is scaled 0 and the replicate are added as rows of their own.
        control: label of the control cells in ``obs.perturbation``.
        preset_name: what is measured.
        cache: folder for what is measured of the truth alone, keyed by its SHA-256 and the scorer's version.
        members: metrics of a second mean; see :data:`Members`.
        console: where progress goes, if anywhere.
        folds: whether perturbations of a context were predicted by several folds, each trained on those of the others.
            Then metrics with ``panel`` have no value, see :data:`FOLDS`.

    Returns:
        The table; a context's scaled mean is taken over the metrics that are defined, and says how many.

    Raises:
        UserError: names repeat, a file is missing or no h5ad, labels or genes do not fit, values are no counts, or
            there is no such preset.
    """
    started = time.perf_counter()
    _keep_compiled()
    preset = preset_named(preset_name)
    measured, predicted, notes = _checked(truth, entries, control, preset)
    digest = sha256_file(truth)
    among = {name for name, metric in preset.metrics.items() if metric.panel and folds}
    parts: list[_Context] = []
    contexts, done = measured.contexts(), itertools.count(1)
    lines = ProgressLines("score", "predictions", console or Console(quiet=True))

    def cells(context: str) -> Iterator[ad.AnnData]:
        """One prediction in memory at a time."""
        asked = set(measured.groups(context).index)
        for labels in predicted:
            yield read_context(labels, context, asked)
            lines(next(done), len(contexts) * len(predicted))

    for context in contexts:
        scorer = preset.open(read_context(measured, context), context, control, cache, digest)
        parts.append(_context(entries, cells(context), context, scorer, preset, among))

    scored_by = version(preset.scorer)
    rows = pd.DataFrame([row for part in parts for row in part.rows]).assign(scorer=preset.scorer, version=scored_by)
    anchors = pd.DataFrame([row for part in parts for row in part.anchors])
    return ScoreTable(
        rows=rows,
        means=scaled_means(rows, anchors, preset.needed, members),
        anchors=anchors,
        values=pd.DataFrame([row for part in parts for row in part.values], columns=list(VALUES)),
        significant=pd.DataFrame([row for part in parts for row in part.significant]),
        notes=list(dict.fromkeys(notes + [note for part in parts for note in part.notes])),
        preset=preset_name,
        scorer=preset.scorer,
        version=scored_by,
        parameters={**preset.parameters(), "truth_sha256": digest},
        seconds=time.perf_counter() - started,
        metrics=dict(preset.metrics),
        needed=preset.needed,
        members=members,
        low=preset.low,
        high=preset.high,
        ceiling=preset.ceiling,
    )


def _keep_compiled() -> None:
    """Let numba keep the rank tests of the scorers on disk; each process would compile them for eight seconds."""
    import pdex  # noqa: F401  loads them
    from numba.core.dispatcher import Dispatcher

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "numba_mwu":
            continue
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.stats.cache_path is None:
                with contextlib.suppress(RuntimeError):  # there is no folder to keep it in
                    function.enable_caching()


def _checked(
    truth: Path, entries: list[Entry], control: str, preset: Preset
) -> tuple[Labels, list[Labels], list[str]]:
    """Labels of the truth, and of the predictions, which fit it and each other; notes on what is not scored."""
    names = [entry.name for entry in entries] + [preset.low, preset.ceiling]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"entries to score: name {repeated[0]!r} is used twice; every row needs a name of its own")
    measured = read_labels(truth)
    check_truth(measured, control)
    preset.check_axis(measured.genes)
    predicted = [read_labels(entry.path) for entry in entries]
    beyond = [check_pair(measured, labels, control) for labels in predicted]
    without = {name: len(names) for names in beyond for name in [listed(names)] if names}
    notes = [
        f"predicted without a truth, and not scored: {many(number, 'group')} ({some})"
        for some, number in without.items()
    ]
    return measured, predicted, notes


class _Context(NamedTuple):
    """Records of one context for the table."""

    rows: list[dict[str, Any]]
    anchors: list[dict[str, Any]]
    values: list[dict[str, Any]]
    significant: list[dict[str, Any]]
    notes: list[str]


def _context(
    entries: list[Entry],
    predicted: Iterable[ad.AnnData],
    context: str,
    scorer: ContextScorer,
    preset: Preset,
    among: set[str],
) -> _Context:
    """Every entry in one context, what is scaled 0, and the replicate; metrics ``among`` have no value."""
    scorer.scales = {name: Scale(reason=FOLDS) if name in among else one for name, one in scorer.scales.items()}
    scorer.ceiling = {name: one for name, one in scorer.ceiling.items() if name not in among}
    found = [(entry.name, entry.kind, scorer.measure(cells)) for entry, cells in zip(entries, predicted, strict=True)]
    found.append((preset.low, "baseline", scorer.low))
    measured: list[tuple[str, str, Mapping[str, Measured]]] = [
        (entry, kind, {name: one for name, one in values.items() if name not in among})
        for entry, kind, values in found
    ]
    replicate = {name: Measured(one.value, one.perturbations) for name, one in scorer.ceiling.items()}
    if replicate:  # a preset may have none
        measured.append((preset.ceiling, "ceiling", replicate))
    anchors = [_anchor(context, metric, scorer) for metric in preset.metrics]
    return _Context(
        rows=[row for entry, kind, values in measured for row in _rows(entry, kind, context, values, scorer)],
        anchors=anchors,
        values=[
            dict(zip(VALUES, (entry, context, metric, label, *part), strict=True))
            for entry, _, values in measured
            for metric, one in values.items()
            for label, part in one.parts.items()
        ],
        significant=[
            {"perturbation": label, "significant": number, "context": context}
            for label, number in scorer.significant.items()
        ],
        notes=[*_responding(context, scorer), *scorer.notes, *_unsure(context, pd.DataFrame(anchors), preset)],
    )


def _responding(context: str, scorer: ContextScorer) -> list[str]:
    """How many perturbations differ from the controls at all: more than that no prediction can be right about."""
    number, those = len(scorer.significant), sum(count > 0 for count in scorer.significant.values())
    if not number:
        return []
    return [f"{context}: {those} of {many(number, 'perturbation')} have a significant gene in the truth"]


def _anchor(context: str, metric: str, scorer: ContextScorer) -> dict[str, Any]:
    ceiling = scorer.ceiling.get(metric, Ceiling())
    return {
        "context": context,
        "metric": metric,
        **{name: np.nan if value is None else value for name, value in asdict(scorer.scales[metric]).items()},
        "ceiling": ceiling.value,
        "ceiling_sd": ceiling.sd,
        "ceiling_lowest": ceiling.lowest,
        "ceiling_highest": ceiling.highest,
        "ceiling_perturbations": ceiling.perturbations,
    }


def _unsure(context: str, anchors: pd.DataFrame, preset: Preset) -> list[str]:
    """A note for every metric whose scale is hardly known: the splits differ by as much as the scale is long."""
    return [
        f"{context}, {preset.metrics[row['metric']].label}: the replicate is {row['ceiling']:.3f} with sd "
        f"{row['ceiling_sd']:.3f} over the splits, the {preset.low} {row['low']:.3f}; its scaled values are uncertain"
        for _, row in anchors[uncertain(anchors)].iterrows()
    ]


def _rows(
    entry: str, kind: str, context: str, values: Mapping[str, Measured], scorer: ContextScorer
) -> list[dict[str, Any]]:
    rows = []
    for metric, scale in scorer.scales.items():
        one = values.get(metric, Measured(np.nan, 0))
        unclamped, reason = np.nan, scale.reason
        if not reason:
            unclamped = (one.value - scale.low) / (scale.high - scale.low)
        scaled = unclamped if np.isnan(unclamped) else within(unclamped, scale)
        if not reason and np.isnan(one.value):
            scaled, reason = scale.missing, scorer.why_none.get(metric, NO_VALUE)
            reason += "" if np.isnan(scaled) else "; scored as the scorer scores a missing value"
        rows.append(
            {
                "entry": entry,
                "kind": kind,
                "context": context,
                "metric": metric,
                "raw": one.value,
                "scaled": scaled,
                "unclamped": unclamped,
                "perturbations": one.perturbations,
                "reason": reason,
            }
        )
    return rows


def within(scaled: float, scale: Scale) -> float:
    """A scaled value within the limits of its scale."""
    low = -np.inf if scale.floor is None else scale.floor
    # Adding 0 turns -0, which the low end of a falling scale would give, into 0.
    return float(np.clip(scaled, low, np.inf if scale.cap is None else scale.cap)) + 0.0
