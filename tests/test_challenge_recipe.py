"""`recipes/vcc2026.yaml` on small files of the form that the real ones have, to the file that the challenge takes."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pandas as pd
import pytest
from rich.console import Console

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.run.submission import write
from vcc_fm.sources.simulate import simulate

RECIPE = Path(__file__).parents[1] / "recipes" / "vcc2026.yaml"
REPLOGLE = {
    "K562": "replogle2022/K562_gwps_raw_singlecell_01.h5ad",
    "RPE1": "replogle2022/rpe1_raw_singlecell_01.h5ad",
    "HepG2": "nadig2024/GSE264667_hepg2_raw_singlecell_01.h5ad",
    "Jurkat": "nadig2024/GSE264667_jurkat_raw_singlecell_01.h5ad",
}
ASKED = ("A", "B", "C")
SMALL = [
    "data.names.symbols=null",
    "data.minimum_cells=5",
    "embed.cells.width=4",
    "train.steps=4",
    "train.set_size=8",
    "train.batch_sets=4",
    "train.precision=fp32",
    "train.eval_every=2",
    "train.checkpoint_every=4",
    "decoder.gene_rank=4",
    "decoder.backbone={model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, vocab_size: 1}",
]


def write_files(folder: Path) -> list[str]:
    """Every file that the recipe names, in small; its targets. Of a target, no screen has a cell."""
    contexts = [*REPLOGLE, "H1", *ASKED]
    config = SimulateConfig(contexts=contexts, perturbations=8, genes=40, cells=12, controls=40, depth=2000.0)
    simulate(config, 0, folder)
    for place in ("replogle2022", "nadig2024", "vcc2025", "vcc2026"):
        (folder / place).mkdir()
    targets: list[str] = []
    for context in contexts:
        data = anndata.read_h5ad(folder / f"{context}.h5ad")
        labels = data.obs["perturbation"].astype(str)
        targets = targets or sorted(set(labels) - {"non-targeting"})
        gone = targets if context in ASKED else targets[:1]
        data = data[~labels.isin(gone).to_numpy()].copy()
        symbols, batch, label = data.var_names, data.obs["batch"].astype(str), data.obs["perturbation"].astype(str)
        if context in REPLOGLE:
            var = pd.DataFrame({"gene_name": symbols}, index=[f"ENSG{i:011d}" for i in range(data.n_vars)])
            obs, name = pd.DataFrame({"gene": label, "gem_group": batch}), REPLOGLE[context]
        elif context == "H1":
            var, obs = pd.DataFrame(index=symbols), pd.DataFrame({"target_gene": label, "batch": batch})
            name = "vcc2025/adata_Training.h5ad"
        else:
            ntc = [f"NTC_{i % 4}" for i in range(data.n_obs)]
            var, obs = (
                pd.DataFrame(index=symbols),
                pd.DataFrame({"target_gene": label, "context": context, "ntc_id": ntc}),
            )
            name = f"vcc2026/context_{context}.h5ad"
        anndata.AnnData(data.X, obs=obs, var=var).write_h5ad(folder / name)
    (folder / "vcc2026/gene_names.csv").write_text("\n".join(["gene_name", *symbols]) + "\n")
    (folder / "vcc2026/pert_counts.csv").write_text("\n".join(["target_gene", *targets]) + "\n")
    manifest = {"contexts": list(ASKED), "partition": "validation", "panel_id": "small-1"}
    (folder / "vcc2026/manifest.json").write_text(json.dumps(manifest))
    return targets


@pytest.mark.slow
def test_the_recipe_of_the_challenge_runs_to_the_file_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vcc", reason="needs the challenge's program: pip install -e '.[submit]'")
    targets = write_files(tmp_path)
    monkeypatch.setenv("VCC_FM_DATA", str(tmp_path))
    proteins = (
        f"embed.proteins={{encoder: composition, kmer: 1, fasta: {tmp_path / 'proteins.fasta'}, missing: learned}}"
    )
    recipe = load_recipe(RECIPE, [*SMALL, proteins, f"output={tmp_path}"])
    assert make_plan(recipe, 1)["problems"] == []
    for stage in stages_of(recipe):
        run_stage(stage, recipe, Console(quiet=True))
    predicted = anndata.read_h5ad(recipe.run_folder / "predictions.h5ad", backed="r")
    found = predicted.obs.groupby(["context", "perturbation"], observed=True).size()
    assert found.to_dict() == {(context, target): 400 for context in ASKED for target in targets}
    lists = (tmp_path / "vcc2026/gene_names.csv", tmp_path / "vcc2026/pert_counts.csv")
    made = write(recipe, "vcc2026", "model", *lists, None, None, 4.0, lambda step: lambda done, total: None)
    assert made["accepted"], made["said"]
    assert made["cells"] == 3 * 8 * 400
