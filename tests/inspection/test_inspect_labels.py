import numpy as np
import pandas as pd
import pytest
from inspections import GENES, only, opened

from vcc_fm.ground.errors import UserError
from vcc_fm.inspection.inspect import inspect_file


# --------------------------------------------------------------------------------------------------------------- genes
def test_symbols_are_found_beside_ensembl_ids(screen, counts):
    var = pd.DataFrame(
        {"gene_name": GENES, "chromosome": "chr1", "mean": 0.1}, index=[f"ENSG{i:011d}" for i in range(60)]
    )
    var.loc[var.index[1], "gene_name"] = GENES[0]
    var.loc[var.index[59], "gene_name"] = "ENSG00000000059"
    var.loc[var.index[58], "gene_name"] = "MT-ND1 "
    found = inspect_file(screen(counts, var=var))
    assert [(one.column, one.kind) for one in found.genes.names] == [
        ("index", "Ensembl ids (human)"),
        ("gene_name", "symbols"),
    ]
    assert found.genes.symbols == "gene_name"
    assert found.genes.names[1].duplicates == [GENES[0]]
    assert found.genes.names[1].duplicated == 1
    assert f"repeats 1 symbol ({GENES[0]})" in only(found.notes, "duplicate_genes")
    assert found.problems == []
    with opened(found) as source:
        assert source.genes.tolist() == [GENES[0], *GENES[2:58], "MT-ND1", "ENSG00000000059"]


@pytest.mark.parametrize(
    ("names", "kind", "species"),
    [
        ([f"Gata{i}" for i in range(60)], "symbols", "mouse, by spelling"),
        ([f"GATA{i}" for i in range(30)] + [f"Gata{i}" for i in range(30)], "symbols", "human (50%) and mouse (50%)"),
        ([f"Gene{i}" for i in range(60)], "symbols", "not told by spelling"),
        ([f"GENE{i}" for i in range(30)] + [f"Gene{i}" for i in range(30)], "symbols", "not told by spelling"),
        (
            [f"GRCh38_G{i}" for i in range(30)] + [f"mm10___G{i}" for i in range(30)],
            "symbols",
            "human (50%) and mouse (50%)",
        ),
        ([f"ENSMUSG{i:011d}" for i in range(60)], "Ensembl ids (mouse)", "mouse, by spelling"),
        ([str(100 + i) for i in range(60)], "numbers", "not told"),
    ],
)
def test_naming_schemes_and_species(screen, counts, names, kind, species):
    found = inspect_file(screen(counts, var=pd.DataFrame(index=names)))
    assert found.genes.names[0].kind == kind
    assert found.genes.species.startswith(species)
    assert (found.genes.symbols is None) == (kind != "symbols")
    if " and " in species:
        only(found.problems, "two species")
    if found.genes.symbols is None:
        assert f"the var index holds {kind}" in only(found.problems, "no symbols")
        assert found.targets.reason == "the genes have no symbols"
        assert found.recipe is None


def test_what_is_no_gene_is_named(screen, counts):
    types = ["Gene Expression"] * 57 + ["CRISPR Guide Capture"] * 3
    found = inspect_file(screen(counts, var=pd.DataFrame({"feature_types": types}, index=GENES)))
    assert "3 CRISPR Guide Capture" in only(found.problems, "feature_types")


# -------------------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize("separator", ["+", "_", "|", ",", ";"])
def test_combinations_and_their_separator(screen, counts, obs, separator):
    a, b, c = GENES[:3]
    obs["condition"] = np.array(["ctrl", f"{a}{separator}ctrl", f"{b}{separator}{c}", c])[np.arange(120) % 4]
    del obs["target_gene"]
    found = inspect_file(screen(counts, obs=obs))
    best = found.labels.perturbations[0]
    assert (best.column, best.separator, best.combinations, best.genes) == ("condition", separator, 2, 1.0)
    with opened(found) as source:
        assert set(source.cells["perturbation"]) == {"ctrl", a, c, separator.join(sorted([b, c]))}


def test_guides_rank_below_targets_and_alone_are_read_by_a_pattern(screen, counts, obs):
    obs.insert(
        0, "guide", obs["target_gene"].replace("non-targeting", "NTC") + "_sg" + (np.arange(120) // 6 % 2).astype(str)
    )
    found = inspect_file(screen(counts, obs=obs))
    assert [one.column for one in found.labels.perturbations] == ["target_gene", "guide"]
    assert found.labels.perturbations[1].by_pattern == pytest.approx(1.0)
    del obs["target_gene"]
    found = inspect_file(screen(counts, obs=obs))
    assert (found.perturbation, found.control, found.also_control) == ("guide", "NTC_sg0", ["NTC_sg*"])
    assert found.groups.repairs == {"target genes read by target_pattern": 100, "labels read as control": 10}
    assert (found.targets.perturbations, found.targets.not_measured) == (5, [])
    with opened(found) as source:
        assert set(source.cells["perturbation"]) == {"NTC_sg0", *GENES[:5]}


def test_controls_by_many_names(screen, counts, obs):
    control = obs["target_gene"] == "non-targeting"
    obs.loc[control, "target_gene"] = [
        "non-targeting_1",
        "non-targeting_2",
        "NEGATIVE",
        "safe-targeting",
        "unassigned",
    ] * 4
    found = inspect_file(screen(counts, obs=obs))
    best = found.labels.perturbations[0]
    assert best.controls == {"non-targeting_1": 4, "non-targeting_2": 4, "safe-targeting": 4}
    assert best.unassigned == {"NEGATIVE": 4}
    said = only(found.problems, "look like controls")
    assert "3 labels of 'target_gene' look like controls" in said
    assert "also_control: non-targeting_2, safe-targeting" in said
    assert (found.control, found.groups.control_cells) == ("non-targeting_1", 12)
    assert "add them to quality.unassigned" in only(found.problems, "NEGATIVE (4 cells)")
    assert found.groups.dropped == {"label 'unassigned': no guide or several": 4}


def test_a_gene_is_no_control(screen, counts, obs):
    var = pd.DataFrame(index=["NEGR1", *GENES[1:]])
    obs["target_gene"] = obs["target_gene"].replace(GENES[0], "NEGR1")
    assert inspect_file(screen(counts, obs=obs, var=var)).labels.perturbations[0].controls == {"non-targeting": 20}


def test_without_a_control_no_lines_are_suggested_until_it_is_named(screen, counts, obs):
    obs["target_gene"] = obs["target_gene"].replace("non-targeting", "plain")
    path = screen(counts, obs=obs)
    found = inspect_file(path)
    assert (found.perturbation, found.control, found.recipe, found.targets) == ("target_gene", None, None, None)
    assert "name it with --control" in only(found.problems, "control")
    named = inspect_file(path, control="plain")
    assert named.groups.control_cells == 20
    assert named.tried
    assert "control: plain" in named.recipe


def test_the_user_overrules_the_guess_and_mistakes_are_refused(screen, counts, obs):
    obs["other"] = obs["target_gene"].replace("non-targeting", "wild")
    path = screen(counts, obs=obs)
    found = inspect_file(path, "other", "wild")
    assert (found.perturbation, found.control, found.labels.perturbations[0].column) == ("other", "wild", "other")
    assert found.groups.control_cells == 20
    with pytest.raises(UserError, match=r"no column 'targetgene'; did you mean 'target_gene'\?"):
        inspect_file(path, "targetgene")
    with pytest.raises(UserError, match=r"no control label 'wild'; set control \(likely: non-targeting\)"):
        inspect_file(path, control="wild")


def test_columns_are_told_apart(screen, counts, obs):
    obs["passes_qc"] = np.arange(120) % 3 > 0
    obs["n_guides"] = 1 + np.arange(120) % 2
    obs["leiden"] = (np.arange(120) % 5).astype(str)
    obs["dose"] = np.array([0.1, 1.5])[np.arange(120) % 2]
    obs["sample"] = np.where(np.arange(120) == 3, None, "s1")
    labels = inspect_file(screen(counts, obs=obs)).labels
    assert {column.name: column.kind for column in labels.columns} == {
        "target_gene": "labels",
        "cell_line": "labels",
        "lane": "integers",
        "passes_qc": "true/false",
        "n_guides": "integers",
        "leiden": "labels",
        "dose": "numbers",
        "sample": "labels",
    }
    assert [one.column for one in labels.perturbations] == ["target_gene"]
    assert (labels.contexts, labels.batches) == (["cell_line"], ["lane"])
    assert (labels.numbers_of_guides, labels.choices, labels.further) == (["n_guides"], {"passes_qc": 80}, ["dose"])


def test_groups_and_batches_without_controls(screen, counts, obs):
    obs.loc[(obs["lane"] == 2) & (obs["target_gene"] == "non-targeting"), "target_gene"] = GENES[0]
    groups = inspect_file(path := screen(counts, obs=obs)).groups
    assert groups.perturbations == 5
    assert groups.groups == groups.few == 10
    assert groups.cells_per_group == [10, 10, 13]
    assert groups.batches_without_control == ["2 (HepG2)", "2 (K562)"]
    problems = inspect_file(path).problems
    assert "2 of 6 batches (2 (HepG2), 2 (K562))" in only(problems, "no control cells")
    found = inspect_file(path)
    assert "10 of 10 groups with fewer than 30 cells" in only(found.notes, "groups")
    assert found.recipe.startswith("data:\n  # minimum_cells: 30   # 10 of 10 groups with fewer\n  sources:\n")
    assert "batch_column: lane   # 2 of 6 batches without control cells" in found.recipe


def test_a_context_without_controls_is_named(screen, counts, obs):
    obs.loc[(obs["cell_line"] == "HepG2") & (obs["target_gene"] == "non-targeting"), "cell_line"] = "K562"
    found = inspect_file(screen(counts, obs=obs))
    assert found.groups.contexts_without_control == ["HepG2"]
    only(found.problems, "no control cells in context HepG2")
