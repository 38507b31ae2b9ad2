"""Recipes that judge embeddings of cells as cz-benchmarks does: read, refused, and run to their scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml
from encoders.state_se_checkpoints import random_names, random_tensors, tiny, write_folder
from rich.console import Console
from test_challenge_recipe import SMALL

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.read import load_any, load_recipe
from vcc_fm.recipe.recipe import CzRecipe
from vcc_fm.run.cz import CzLayout, read_labels
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.sources.simulate import simulate
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore

CZ = Path(__file__).parents[1] / "recipes/cz"
NEEDS = "needs the extra cz: pip install -e '.[cz]'"
GENES = 120


def written(folder: Path, **changes) -> Path:
    """A recipe on two files: 60 cells of man and 40 of mouse, three types, four donors, days; two encoders."""
    geometry = tiny(GENES)
    names = random_names(geometry)
    checkpoint = write_folder(folder / "se", random_tensors(geometry), names)
    rng = np.random.default_rng(0)
    rates = rng.gamma(1, 2, (3, GENES)) + 0.1
    for species, number in {"human": 60, "mouse": 40}.items():
        kinds = rng.integers(0, 3, number)
        obs = pd.DataFrame(
            {"cell_type": np.array(["alpha", "beta", "delta"])[kinds], "day": rng.integers(1, 4, number)}
        )
        obs["donor"] = [f"{species}-{row % 2}" for row in range(number)]
        obs.index = [f"cell{row}" for row in range(number)]
        counts, genes = rng.poisson(rates[kinds]), names
        if species == "mouse":
            counts, genes = np.hstack([counts, np.zeros((number, 1))]), [*names, "ELSEWHERE"]
            counts[7] = 5 * (np.arange(GENES + 1) == GENES)  # a cell without a gene that SE knows has no vector
        cells = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))
        cells.write_h5ad(folder / f"{species}.h5ad")
    content = {
        "name": "cz-tiny",
        "output": str(folder),
        "data": {
            "sources": [
                {"name": name, "path": f"{folder}/{name}.h5ad", "values": "counts", "perturbation_column": None,
                 "context": name, "batch_column": "donor"}
                for name in ("human", "mouse")
            ]
        },
        "encoders": {
            "PCA": {"cells": {"encoder": "expression", "width": 5}},
            "SE": {"cells": {"encoder": "state-se", "model": str(checkpoint), "pad_length": 64}},
        },
        "cz": {"tasks": ["clustering", "embedding"], "labels": "cell_type"},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def run(recipe: CzRecipe) -> list[bool]:
    return [run_stage(stage, recipe, Console(quiet=True)) for stage in stages_of(recipe)]


@pytest.mark.parametrize("path", sorted(CZ.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_parses_and_says_where_its_file_is_and_how_it_is_launched(path):
    recipe = load_any(path)
    assert recipe.name == f"cz-{path.stem}"
    assert f"vcc-fm run recipes/cz/{path.name}" in path.read_text().split("\nname:")[0]
    assert all(source.get for source in recipe.data.sources)
    if not isinstance(recipe, CzRecipe):
        assert recipe.score.preset == "cz"


def test_a_command_for_runs_refuses_it_and_a_key_is_found_by_its_section(tmp_path):
    with pytest.raises(UserError, match="a recipe on cz, which this command does not take; use `vcc-fm run`"):
        load_recipe(CZ / "baron.yaml")
    for override, said in {
        "cz.label=x": "unknown key cz.label .did you mean labels",
        "encoders.expression-32.cells.widht=3": "unknown key encoders.expression-32.cells.widht .did you mean width",
        "encoders.a/b.cells.width=3": "should match pattern",
        "encoders={}": "at least 1 item",
        "cz.time=day": "sequential and cz.time belong together",
        "cz.tasks=[sequential]": "sequential and cz.time belong together",
        "data={store: x}": "data.sources names none",
    }.items():
        with pytest.raises(UserError, match=said):
            load_any(CZ / "baron.yaml", [override])


def test_labels_are_read_in_the_order_of_the_files_with_the_stores_barcodes(tmp_path):
    path = written(tmp_path, cz={"tasks": ["sequential"], "labels": "cell_type", "time": "day"})
    recipe = load_any(path)
    assert isinstance(recipe, CzRecipe)
    found = read_labels(recipe)
    files = [ad.read_h5ad(tmp_path / f"{name}.h5ad").obs for name in ("human", "mouse")]
    assert found["label"].tolist() == [kind for obs in files for kind in obs["cell_type"]]
    assert found["time"].tolist() == [str(day) for obs in files for day in obs["day"]]
    assert found["batch"].tolist() == [donor for obs in files for donor in obs["donor"]]
    assert found["context"].tolist() == ["human"] * 60 + ["mouse"] * 40
    assert found.index[[0, 60]].tolist() == ["human:cell0", "mouse:cell0"]
    with pytest.raises(UserError, match="obs has no column 'celltype'; did you mean 'cell_type'"):
        read_labels(load_any(path, ["cz.labels=celltype"]))


def test_without_the_scorer_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("vcc_fm.scoring.cz.SCORER", "cz-benchmarks-of-nobody")
    with pytest.raises(UserError, match=r"pip install 'vcc-fm\[cz\]'"):
        stages_of(load_any(written(tmp_path)))
    assert not (tmp_path / "embeddings").exists()


@pytest.mark.slow
def test_a_recipe_runs_to_scores_of_each_encoder_that_are_the_packages(tmp_path):
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    from czbenchmarks.tasks import EmbeddingTask, EmbeddingTaskInput

    path = written(tmp_path)
    recipe = load_any(path)
    assert run(recipe) == [True, True, True]
    scores = json.loads((recipe.run_folder / "scores.json").read_text())
    assert (scores["cells"], scores["without_vector"]) == (99, 1)
    layout, labels = CzLayout(recipe), read_labels(recipe).drop(index="mouse:cell7")
    store = CellStore(layout.cells.require())
    rows = pd.Series(np.arange(100), index=store.barcodes)[labels.index].to_numpy()
    for name, output in layout.vectors.items():
        vectors = EmbeddingStore(output.require()).take(rows)
        expected = EmbeddingTask().run(vectors, EmbeddingTaskInput(input_labels=labels["label"].to_numpy(str)))
        found = [one["value"] for one in scores["values"] if (one["entry"], one["task"]) == (name, "embedding")]
        assert found == [pytest.approx(float(expected[0].value), abs=1e-6)]
    assert {one["entry"] for one in scores["values"]} == {"PCA", "SE", "cz-benchmarks PCA"}
    assert run(recipe) == [False, False, False]
    assert run(load_any(path, ["cz.tasks=[embedding]"])) == [False, False, True]


@pytest.mark.slow
def test_counts_of_the_blood_cells_are_made_by_the_script_beside_the_recipe(tmp_path):
    pytest.importorskip("scanpy", reason=NEEDS)
    subprocess.run([sys.executable, "-W", "ignore", CZ / "pbmc68k.py"], cwd=tmp_path, check=True)
    cells = ad.read_h5ad(tmp_path / "pbmc68k.h5ad")
    assert cells.shape == (700, 765)
    assert (cells.X.sum(axis=1) <= cells.obs["n_counts"]).all()
    assert cells.X.max() == 259


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tasks"), [("tabula-sapiens", 4), ("spermatogenesis", 2)])
def test_a_recipe_on_published_atlases_runs_to_scores(tmp_path, monkeypatch, name, tasks):
    """On files of the published form: Ensembl identifiers, symbols in var.feature_name, donors and types in obs."""
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    geometry = tiny(GENES)
    names, rng = random_names(geometry), np.random.default_rng(1)
    model = write_folder(tmp_path / "se", random_tensors(geometry), names)
    monkeypatch.setenv("CZ_DATA", str(tmp_path))
    recipe = load_any(CZ / f"{name}.yaml", [f"encoders.SE-600M.cells.model={model}", f"output={tmp_path}"])
    rates = rng.gamma(1, 2, (3, GENES)) + 0.1
    var = pd.DataFrame({"feature_name": names}, index=[f"ENSG{row:011d}" for row in range(GENES)])
    for source in recipe.data.sources:
        kinds = np.arange(75) % 3
        obs = pd.DataFrame(
            {"cell_type": np.array(["spermatid", "spermatocyte", "Sertoli cell"])[kinds], "donor_id": "TSP1"},
            index=[f"cell{row}" for row in range(75)],
        )
        obs.loc[obs.index[40:], "donor_id"] = "TSP2"
        counts = sp.csr_matrix(rng.poisson(rates[kinds]).astype(np.float32))
        ad.AnnData(counts, obs=obs, var=var).write_h5ad(tmp_path / Path(source.path).name)
    run(recipe)
    scores = pd.read_csv(recipe.run_folder / "scores.csv")
    assert scores["task"].nunique() == tasks
    assert {"expression-50", "SE-600M", "cz-benchmarks PCA"} <= set(scores["entry"])
    assert np.isfinite(scores["value"]).all()


@pytest.mark.slow
def test_a_recipe_on_perturbations_runs_to_both_kinds_of_scores(tmp_path, monkeypatch):
    """On a file of the published form: labels ctrl, GENE+ctrl, ctrl+GENE and A+B, symbols in var.gene_name."""
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    config = SimulateConfig(contexts=["K562"], perturbations=12, combinations=8, genes=120, cells=24, controls=60)
    simulate(config, 0, tmp_path)
    cells = ad.read_h5ad(tmp_path / "K562.h5ad")
    labels = cells.obs["perturbation"].astype(str).replace("non-targeting", "ctrl")
    single = ~labels.str.contains("+", regex=False) & (labels != "ctrl")
    labels[single] = np.where(labels[single] < "M", labels[single] + "+ctrl", "ctrl+" + labels[single])
    var = pd.DataFrame({"gene_name": cells.var_names}, index=[f"ENSG{row:011d}" for row in range(cells.n_vars)])
    obs = pd.DataFrame({"condition": labels, "split": "train"})
    ad.AnnData(cells.X, obs=obs, var=var).write_h5ad(tmp_path / "norman_perturbation.h5ad")
    monkeypatch.setenv("CZ_DATA", str(tmp_path))
    protein = (
        f"embed.proteins={{encoder: composition, kmer: 1, fasta: {tmp_path / 'proteins.fasta'}, missing: learned}}"
    )
    recipe = load_recipe(CZ / "norman.yaml", [*SMALL, protein, "predict.effect_scale=1.0", f"output={tmp_path}"])
    assert make_plan(recipe, 1)["problems"] == []
    run(recipe)
    scores = pd.read_csv(recipe.run_folder / "scores.csv")
    wanted = {"model", *recipe.score.baselines}
    assert wanted <= set(scores["entry"])
    assert {"spearman", "mse", "mse_top20", "pearson", "pearson_top20", "jaccard_top20"} <= set(scores["metric"])


@pytest.mark.slow
def test_real_cells_of_two_species_run_to_scores(tmp_path, real_data):
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    recipe = load_any(CZ / "baron.yaml", [f"output={tmp_path}"])
    run(recipe)
    found = (
        pd.read_csv(recipe.run_folder / "scores.csv").fillna({"of": ""}).set_index(["entry", "metric", "of"])["value"]
    )
    assert found["expression-50", "mean_fold_accuracy", "MEAN(knn,lr,rf)"].item() > 0.9
    assert found["cz-benchmarks PCA", "adjusted_rand_index", ""].item() == pytest.approx(0.6326, abs=0.05)
