"""`recipes/myllia.yaml` on small files of the form that the real ones have, to the table that the platform takes."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_challenge_recipe import SMALL

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.run.submission import write
from vcc_fm.scoring.presets.myllia import score_table
from vcc_fm.sources.simulate import simulate

RECIPE = Path(__file__).parents[1] / "recipes" / "myllia.yaml"
FORMS = {
    "line": ("myllia/training_cells.h5ad", "sgrna_symbol"),
    "H1": ("vcc2025/adata_Training.h5ad", "target_gene"),
    "K562": ("replogle2022/K562_gwps_raw_singlecell_01.h5ad", "gene"),
}


def write_files(folder: Path) -> tuple[list[str], list[str]]:
    """Every file that the recipe names, in small: genes of the sample, and perturbations asked for."""
    simulate(SimulateConfig(contexts=list(FORMS), perturbations=20, genes=60, cells=24, controls=80), 0, folder)
    asked: list[str] = []
    for context, (name, column) in FORMS.items():
        data = anndata.read_h5ad(folder / f"{context}.h5ad")
        labels = data.obs["perturbation"].astype(str)
        if context == "line":
            asked = sorted(set(labels) - {"non-targeting"})[:6]
            keep, genes = ~labels.isin(asked).to_numpy(), data.var_names.tolist()
        else:  # other screens measured other genes
            keep = np.ones(data.n_obs, bool)
            data = data[:, np.arange(data.n_vars) % 7 > 0]
        var = pd.DataFrame({"gene_name": data.var_names}, index=data.var_names)
        batch = data.obs["batch"].astype(str)
        obs = pd.DataFrame({column: labels, "batch": batch, "gem_group": batch})
        (folder / name).parent.mkdir(exist_ok=True)
        anndata.AnnData(data.X, obs=obs, var=var)[keep].copy().write_h5ad(folder / name)
    ids = pd.Index([f"pert_{number + 1}" for number in range(len(asked))], name="pert_id")
    table = pd.DataFrame({"pert": asked, "class": ["val", "test"] * 3}, index=ids)
    table.to_csv(folder / "myllia/pert_ids_all.csv")
    sample = pd.DataFrame(0.0, index=ids, columns=genes[5:45])
    sample.to_csv(folder / "myllia/sample_submission.csv")
    return genes[5:45], asked


@pytest.mark.slow
def test_the_recipe_runs_to_scores_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genes, asked = write_files(tmp_path)
    monkeypatch.setenv("VCC_FM_DATA", str(tmp_path))
    proteins = (
        f"embed.proteins={{encoder: composition, kmer: 1, fasta: {tmp_path / 'proteins.fasta'}, missing: learned}}"
    )
    smaller = ["split.test=5", "split.validation=0.4", "predict.effect_scale=1.0", "predict.ask.1.cells=20"]
    recipe = load_recipe(RECIPE, [*SMALL, proteins, *smaller, f"output={tmp_path}"])
    assert make_plan(recipe, 1)["problems"] == []
    for stage in stages_of(recipe):
        run_stage(stage, recipe, Console(quiet=True))
    scores = pd.read_csv(recipe.run_folder / "scores.csv")
    assert {"model", "mixed-model", "control"} <= set(scores["entry"])
    lists = (tmp_path / "myllia/sample_submission.csv", tmp_path / "myllia/pert_ids_all.csv")
    found = write(recipe, "myllia", "model", *lists, None, None, 1.0, lambda _: lambda *__: None)
    table = pd.read_csv(found["file"])
    assert (found["rows"], table.columns.tolist()) == (len(asked), ["pert_id", *genes])
    # The platform's own score of it, beside a truth of its form: the table itself.
    weights = pd.DataFrame(1.0, index=table.index, columns=[f"w_{gene}" for gene in genes])
    solution = pd.concat([table, weights], axis=1).assign(baseline_wmae=0.1)
    assert score_table(solution, table) == 5.0 * len(asked)
