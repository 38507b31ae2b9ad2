"""What the score stage puts into the table, and what it leaves out and says so."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from rich.console import Console
from scoring_screens import table_of

from vcc_fm.ground.files import read_json
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.score import without_twins
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.scoring.presets.vcc2026 import Vcc2026
from vcc_fm.scoring.table import ScoreTable, read_table

PATIENTS = ["P1", "P2", "P3"]


def drug_in_patients(folder: Path, **keys: Any) -> Recipe:
    """A recipe of one drug in three patients, 40 cells and 60 controls each, 40 genes, no protein of the drug's."""
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(40)]
    base, effect = rng.lognormal(0, 1, 40), np.exp(rng.normal(0, 1, 40) * (rng.random(40) < 0.5))
    obs = pd.DataFrame(
        [(patient, label) for patient in PATIENTS for label, n in (("ctrl", 60), ("drug", 40)) for _ in range(n)],
        columns=["patient", "condition"],
    )
    obs.index = [f"cell{i}" for i in range(len(obs))]
    share = base * np.where((obs["condition"] == "drug").to_numpy()[:, None], effect, 1.0)
    counts = rng.poisson(1000 * share / share.sum(axis=1, keepdims=True)).astype(np.float32)
    anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / "s.h5ad")
    (folder / "p.fasta").write_text(">G0\nMKV\n")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = {"name": "s", "path": str(folder / "s.h5ad"), "perturbation_column": "condition", "control": "ctrl"}
    content = {
        "name": "drug",
        "output": str(folder),
        "data": {"sources": [{**source, "context_column": "patient"}]},
        "embed": {
            "cells": {"width": 4},
            "proteins": {"kmer": 1, "fasta": str(folder / "p.fasta"), "missing": "learned"},
        },
        "split": {"hold_out": "contexts", "contexts": PATIENTS, "folds": 3, "validation": 0.5},
        "decoder": {"gene_rank": 4, "backbone": {"model_type": "llama", "vocab_size": 1, **small}},
        "train": {"steps": 2, "set_size": 8, "batch_sets": 2, "tracker": "none"},
        "score": {"baselines": ["control", "mean-response", "other-contexts"]},
    }
    return Recipe.model_validate(content | keys)


@pytest.fixture(scope="module")
def drug_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, str]:
    """The recipe of a drug in three patients, run, and what the run printed."""
    recipe, out = drug_in_patients(tmp_path_factory.mktemp("drug")), io.StringIO()
    console = Console(file=out, width=200)
    for stage in stages_of(recipe):
        run_stage(stage, recipe, console)
    return recipe, out.getvalue()


@pytest.mark.slow
def test_a_drug_in_patients_runs_to_a_table_that_names_what_is_undefined(drug_run):
    recipe, printed = drug_run
    table = read_table(recipe.run_folder / "scores.json")
    assert sorted(table.contexts()) == PATIENTS
    raw = table.rows.set_index(["entry", "context", "metric"])["raw"]
    for entry in ("model", "control", "other-contexts"):
        for metric in Vcc2026.metrics:
            assert raw[entry].xs(metric, level="metric").isna().all() == (metric == "pds_cosine"), (entry, metric)
    # What the drug did to the other patients is near what it did to this one.
    jaccard = raw.xs("de_wilcoxon_sig_jaccard", level="metric").groupby("entry").mean()
    assert jaccard["other-contexts"] > 0.5 > jaccard["control"]
    said = " ".join(printed.split())
    assert "missing P1, P2, P3, PDS, every entry: there is one perturbation, and no other to tell it from" in said
    assert "no headline number: P1, P2, P3: 0 of 6 metrics have a scale, a mean needs 4" in said
    assert "no perturbation has a protein sequence (drugs and stimuli have none)" in said
    assert "No headline number can be given." in (recipe.run_folder / "report.html").read_text()


@pytest.mark.slow
def test_the_report_says_what_the_run_was_made_from_and_no_folder_of_this_machine(drug_run):
    recipe, layout = drug_run[0], Layout(drug_run[0])
    page = (recipe.run_folder / "report.html").read_text()
    for fold in range(3):
        counts = read_json(layout.split(fold))["counts"]["test"]
        cells = "".join(f"<td>{text}</td>" for text in (fold, "test", *counts.values()))
        assert cells in page
    source = read_json(layout.cells.path / "store.json")["sources"][0]
    for said in (recipe.fingerprint(), layout.predictions.fingerprint, source["sha256"], "weight_decay: "):
        assert said in page
    assert str(recipe.run_folder.parents[1]) not in page
    assert (recipe.run_folder / "report" / "training.png").exists()
    assert layout.scores.fault(content=True) is None


def test_a_predictor_is_one_line_of_the_log_however_many_folds_there_are(drug_run):
    lines = [line for line in drug_run[1].splitlines() if line.startswith("predict: ") and "cells/s" in line]
    assert [line.split(": ")[1] for line in lines] == ["model", "control", "mean-response", "other-contexts"]
    assert all("120/120 cells" in line for line in lines)


def test_a_baseline_that_is_another_one_here_is_no_rung_of_its_own(drug_run):
    # There is one perturbation: the mean response of the others is no response.
    table = read_table(drug_run[0].run_folder / "scores.json")
    assert table.baselines() == ["control", "other-contexts", Vcc2026.low]
    assert "baseline mean-response is left out: here it is control" in table.notes
    assert without_twins(table).baselines() == table.baselines()
    assert "baseline mean-response is left out: here it is control" in drug_run[1]
    assert "mean-response is left out" in (drug_run[0].run_folder / "report.html").read_text()


def test_a_twin_is_one_whose_scores_differ_in_their_last_digits():
    def table(metric: float) -> ScoreTable:
        scored = [("control", 0.1), ("mean-response", 0.96), ("other-contexts", metric)]
        raw = [
            {"entry": name, "kind": "baseline", "context": "K", "metric": one, "raw": value}
            for name, value in scored
            for one, value in (("m", value), ("undefined", np.nan))
        ]
        means = pd.DataFrame([{"entry": name, "kind": "baseline"} for name, _ in scored])
        return table_of(rows=pd.DataFrame(raw), means=means)

    twin = without_twins(table(np.nextafter(0.96, 1)))
    assert twin.baselines() == ["control", "mean-response"]
    (note,) = twin.notes
    assert "other-contexts" in note
    assert "mean-response" in note
    assert without_twins(table(0.96001)).baselines() == ["control", "mean-response", "other-contexts"]
