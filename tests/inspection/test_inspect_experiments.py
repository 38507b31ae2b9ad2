"""Experiments that are no CRISPR screens: drugs, stimuli, genotypes; donors and cell types as contexts."""

import numpy as np
import pandas as pd
import pytest
import yaml
from inspections import only, opened, prepared, text_of
from program import vcc_fm
from tiny_screens import write_store

from vcc_fm.inspection.inspect import inspect_file
from vcc_fm.recipe.read import load_recipe

ROW = np.arange(240)
TYPE = np.array(["CD4 T cells", "B cells", "CD14+ Monocytes", "NK cells", "Dendritic cells"])[ROW % 5]
DONOR = np.array([101, 1015])[ROW // 5 % 2]
DONE = np.array(["ctrl", "stim"])[ROW // 10 % 2]


def joined(*parts):
    return ["_".join(map(str, row)) for row in zip(*parts, strict=True)]


# Stimulated blood cells as scanpy, Seurat, pertpy and scGen name them.
LAYOUTS = {
    "sample last": {"cell_type": TYPE, "donor": DONOR, "stim": DONE, "sample": joined(DONOR, DONE)},
    "sample first": {"sample": joined(DONE, DONOR), "cell_type": TYPE, "donor_id": DONOR.astype(str), "stim": DONE},
    "plain words": {"sample": joined(DONE, DONOR), "label": DONE, "cell_type": TYPE, "ind": DONOR},
    "Seurat": {
        "orig.ident": np.char.add("IMMUNE_", np.char.upper(DONE)),
        "nCount_RNA": 100 + ROW,
        "stim": np.char.upper(DONE),
        "seurat_clusters": ROW % 5,
        "seurat_annotations": TYPE,
        "ind": DONOR,
    },
    "pertpy": {"label": DONE, "cluster": ROW % 5, "cell_type": TYPE, "replicate": joined(["patient"] * 240, DONOR)},
    "drug": {
        "Drug.Name": np.where(DONE == "ctrl", "DMSO", "dexamethasone"),
        "CellType": TYPE,
        "patient": DONOR,
        "sample_id": joined(DONOR, DONE),
    },
    "genotype": {
        "genotype": np.where(DONE == "ctrl", "WT", "Trp53-/-"),
        "celltype": TYPE,
        "mouse": joined("m" * 240, DONOR),
    },
}


@pytest.fixture
def cells():
    """[240 cells, 60 genes] counts."""
    return np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.8, 3.0, 60), (240, 60)).astype(float)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stimulated_blood_cells(screen, cells, tmp_path, layout):
    obs = pd.DataFrame(LAYOUTS[layout], index=[f"c{i}" for i in ROW])
    path = screen(cells, obs=obs)
    found = inspect_file(path)
    done = np.char.lower(obs[found.perturbation].to_numpy(str))
    assert sorted(pd.crosstab(done, DONE).to_numpy().ravel()) == [0, 0, 120, 120]  # what was done, no sample
    assert obs[found.context].tolist() == TYPE.tolist()
    assert obs[found.batch].astype(str).str.contains("1015").tolist() == (DONOR == 1015).tolist()
    assert found.roles.contexts[0].why == "5 cell types, each with control cells"
    assert found.problems == []
    only(found.notes, "is a gene: each gets a learned vector of its own")
    if set(obs) & {"sample", "sample_id", "orig.ident"}:
        assert "without control cells (100% of the perturbed cells)" in only(found.notes, "is no batch")
    lines = yaml.safe_load(found.recipe)
    assert lines["embed"] == {"proteins": {"missing": "learned"}}
    assert "# split: {hold_out: contexts, contexts: [" in found.recipe
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"name: mine\n{found.recipe}split: {{hold_out: contexts, contexts: [B cells]}}\ntrain: {{steps: 1}}\n"
    )
    store = write_store(tmp_path / "store", load_recipe(recipe).data.sources)
    assert (len(store), len(store.contexts), len(store.perturbations)) == (240, 5, 2)


@pytest.mark.parametrize("one_type", [False, True])
def test_donors_are_contexts_where_no_column_holds_several_types(screen, cells, one_type):
    obs = pd.DataFrame(LAYOUTS["sample last"], index=[f"c{i}" for i in ROW]).drop(columns="cell_type")
    if one_type:
        obs.insert(0, "cell_type", "monocyte")
    found = inspect_file(screen(cells, obs=obs))
    assert (found.perturbation, found.context, found.batch) == ("stim", "donor", None)
    assert found.roles.contexts[0].why == "2 donors, each with control cells"
    assert "donor (2 donors, each with control cells)" in text_of(found)
    assert found.roles.further == []
    with opened(found) as source:
        assert set(source.cells["context"]) == {"101", "1015"}


def test_a_column_in_which_controls_stand_apart_is_no_context(screen, cells):
    obs = pd.DataFrame(LAYOUTS["sample last"], index=[f"c{i}" for i in ROW])
    obs["cell_type"] = joined(TYPE, DONE)
    found = inspect_file(screen(cells, obs=obs))
    assert (found.context, found.batch) == ("donor", None)
    assert "10 cell types, 5 without control cells" in only(found.notes, "cell_type is no context")


def test_a_drug_is_not_taken_for_its_target_nor_its_pathway(screen, cells):
    drug = np.array(["Vehicle", "Belinostat", "Dacinostat", "Trametinib", "Tofacitinib"])[ROW % 5]
    pathway = {
        "Vehicle": "Vehicle",
        "Belinostat": "HDAC",
        "Dacinostat": "HDAC",
        "Trametinib": "MEK",
        "Tofacitinib": "JAK",
    }
    obs = pd.DataFrame({"perturbation": drug, "target": [pathway[one] for one in drug]}, index=[f"c{i}" for i in ROW])
    found = inspect_file(screen(cells, obs=obs))
    assert (found.perturbation, found.control, found.problems) == ("perturbation", "Vehicle", [])


def test_genes_under_other_names_are_still_a_problem(screen, counts, obs):
    obs["condition"] = obs.pop("target_gene").str.replace("GENE", "OTHERGENE")
    found = inspect_file(screen(counts, obs=obs))
    only(found.problems, "is a gene of the file")
    assert "embed:" not in found.recipe


def test_receptor_genes_are_no_perturbation(screen, counts, obs):
    obs["IR_VJ_1_v_gene"] = np.array(["TRAV12-2", "TRAV1-2", "TRAV38-2/DV8", "TRAV8-1"])[np.arange(120) % 4]
    obs["IR_VDJ_1_j_gene"] = "TRBJ1-1"
    del obs["target_gene"]
    names = ["TRAV12-2", "TRAV1-2", "TRAV38-2/DV8", "TRAV8-1", *(f"G{i}X" for i in range(56))]
    found = inspect_file(screen(counts, obs=obs, var=pd.DataFrame(index=names)))
    assert (found.perturbation, found.labels.refused) == (None, {})
    only(found.problems, "no obs column looks like a perturbation label")


def test_glioblastoma_slices(real_data, tmp_path):
    found = inspect_file(real_data / "perturbation/zhao2021_glioblastoma_panobinostat_lemur_5000x300_counts.h5ad")
    assert found.perturbation in ("treatment", "condition")
    assert (found.context, found.batch, found.problems) == ("patient_id", None, [])
    assert found.roles.contexts[0].why == "5 donors, each with control cells"
    assert "sample_id is no batch: 10 batches, 5 without control cells" in only(found.notes, "sample_id")
    assert found.groups.contexts == {f"PW0{number}": 1000 for number in (30, 32, 34, 36, 40)}
    assert "context_column: patient_id" in found.recipe
    store = prepared(found, tmp_path)
    assert (len(store), store.contexts) == (5000, ["PW030", "PW032", "PW034", "PW036", "PW040"])


@pytest.mark.slow
def test_glioblastoma_runs_from_what_inspect_proposes(real_data, tmp_path):
    # Each of five patients is left out in turn; the proteins and the length of training are the user's to name.
    file = real_data / "perturbation/zhao2021_glioblastoma_panobinostat_lemur_5000x300_counts.h5ad"
    shown = vcc_fm("inspect", file).stdout
    proposed = shown[shown.index("\ndata:") :].replace("# split:", "split:")
    fasta = real_data / "proteins/human_proteins_SHS148k_by_symbol.fasta.gz"
    recipe = tmp_path / "drug.yaml"
    head = f"name: drug\noutput: {tmp_path}\ntrain: {{steps: 2, set_size: 8, batch_sets: 2, tracker: none}}"
    recipe.write_text(head + proposed.replace("# fasta: PATH", f"fasta: {fasta}"))
    ended = vcc_fm("run", recipe)
    assert ended.returncode == 0, ended.stderr
    for patient in ("PW030", "PW032", "PW034", "PW036", "PW040"):
        assert f"{patient}: scaled, and raw below" in ended.stdout
    said = " ".join(ended.stdout.split())
    assert "PDS, every entry: there is one perturbation, and no other to tell it from" in said
    assert "no headline number" in said
