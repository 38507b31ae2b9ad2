"""The stage `score`: the model, the baselines and the scale, one table and one report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from vcc_fm.ground.files import read_json
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import forget_dataset
from vcc_fm.run.outputs import Output
from vcc_fm.run.provenance import sections
from vcc_fm.scoring.compare import Side, paired
from vcc_fm.scoring.report.page import write_report
from vcc_fm.scoring.report.record import Record
from vcc_fm.scoring.score import score as score_files
from vcc_fm.scoring.table import Entry, ScoreTable
from vcc_fm.training.checkpoint import read_log


def score(recipe: Recipe, output: Output, console: Console) -> None:
    """Score what the predict stage wrote; writes ``scores.json``, ``scores.csv``, ``report.html`` and ``report/``.

    Raises:
        UserError: the predictions are missing or were made from another recipe, or truth and predictions differ in
            genes or labels.
    """
    forget_dataset()
    layout = Layout(recipe)
    entries = [Entry("model", "model", layout.predictions.require())]
    for name in recipe.score.baselines:
        entries.append(Entry(name, "oracle" if BASELINES[name].oracle else "baseline", layout.prediction(name)))
    control = read_json(layout.cells.path / "store.json")["control"]
    table = without_twins(
        score_files(
            layout.truth,
            entries,
            control,
            recipe.score.preset,
            layout.anchors,
            recipe.score.members,
            console,
            folds=recipe.split.folds > 1 and recipe.split.hold_out == "perturbations",
        )
    )
    # Before anything is drawn or printed: what fails there must not take the scores along.
    table.write_csv(output.path.with_suffix(".csv"))
    table.write_json(output.path)
    table.print(console)
    if reason := table.no_headline():
        console.print(f"no headline number: {reason}", highlight=False, markup=False, soft_wrap=True)
    else:
        best = max(table.baselines(), key=table.mean)
        console.print(
            f"model {table.mean('model'):+.3f}; best baseline {best} {table.mean(best):+.3f}", highlight=False
        )
        found = paired(Side("model", "model", [table]), Side(best, best, [table]))
        for line in (f"model against {best}: {found.verdict()}", *found.notes):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    report = output.path.with_name("report.html")
    said = read_json(layout.prediction_record)
    record = Record(recipe.name, _notes(recipe, said), _log(recipe), said["emitted"], sections(recipe, table))
    write_report(report, table, layout.truth, layout.prediction("model"), control, record)
    console.print(f"report: {report}", soft_wrap=True)


def without_twins(table: ScoreTable) -> ScoreTable:
    """The table without baselines whose raw scores are those of an earlier one, which a note names.

    Where a perturbation was measured in no other context, other-contexts is mean-response; where there is no other
    perturbation, mean-response is control. Such a row would look like a rung of its own.
    """
    raw = table.rows.set_index(["entry", "context", "metric"])["raw"]
    kept: list[str] = []
    notes = []
    for name in table.baselines():
        scored = raw[name].notna().any()
        twin = next((other for other in kept if scored and _same(raw[other], raw[name])), None)
        if twin is None:
            kept.append(name)
        else:
            notes.append(f"baseline {name} is left out: here it is {twin}")
    gone = set(table.baselines()) - set(kept)
    rows, means, values = (
        frame[~frame["entry"].isin(gone)].reset_index(drop=True) for frame in (table.rows, table.means, table.values)
    )
    return replace(table, rows=rows, means=means, values=values, notes=table.notes + notes)


def _same(one: pd.Series[float], other: pd.Series[float]) -> bool:
    """Whether scores are those of the same cells: the scorer's sums, which threads share, end in other last digits."""
    return len(one) == len(other) and np.allclose(one, other.reindex(one.index), rtol=1e-9, atol=0, equal_nan=True)


def _log(recipe: Recipe) -> list[dict[str, Any]]:
    """Training and validation lines of all phases of the first fold."""
    layout = Layout(recipe)
    return [line for phase in ("pretrain", "train") for line in read_log(layout.phase(0, phase) / "metrics.jsonl")]


def _notes(recipe: Recipe, record: dict[str, Any]) -> list[str]:
    seed = f"seed {recipe.seed}" + (f", repeat {recipe.repeat}" if recipe.repeat else "")
    notes = ["All cells are simulated."] if recipe.data.simulate else []
    notes.append(f"{record['groups']} held-out groups, {record['cells']:,} predicted cells; {seed}.")
    if record["without_response_elsewhere"]:
        notes.append(
            f"{record['without_response_elsewhere']} of the held-out groups have no training cells of the same "
            "perturbation in another context; the baseline other-contexts predicts the mean response for them."
        )
    return notes + record["warnings"]
