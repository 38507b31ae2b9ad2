"""What is wrong with names and labels, said once, with what to do; and what does no harm, apart from that."""

import numpy as np
import pandas as pd
import pytest
from inspections import GENES, only, opened, text_of

from vcc_fm.inspection.inspect import inspect_file

IDS = [f"ENSG{i:011d}" for i in range(60)]


# --------------------------------------------------------------------------------------------------------------- genes
def test_a_column_that_lacks_a_few_names_is_one_statement(screen, counts):
    var = pd.DataFrame({"gene_name": [GENES[0], None, "", *GENES[3:]]}, index=IDS)
    found = inspect_file(screen(counts, var=var))
    assert found.problems == ["var column 'gene_name' lacks 2 names: fill in, e.g. the id"]
    assert (found.genes.symbols, found.genes.incomplete, found.recipe) == (None, "gene_name", None)
    assert found.labels.perturbations[0].genes == pytest.approx(3 / 5)


def test_symbols_joined_with_ids_are_no_symbols(screen, counts):
    var = pd.DataFrame(index=[f"{gene}_{name}" for gene, name in zip(GENES, IDS, strict=True)])
    found = inspect_file(screen(counts, var=var))
    assert found.genes.names[0].kind == "symbols joined with Ensembl ids"
    assert f"({GENES[0]}_{IDS[0]}): add a column" in only(found.problems, "no symbols")
    assert found.recipe is None


def test_numbers_that_make_symbols_unique_are_named(screen, counts):
    names = [*GENES[:58], f"{GENES[0]}-1", "NKX2-1"]
    found = inspect_file(screen(counts, var=pd.DataFrame(index=names)))
    assert f"1 symbol made of another and a number ({GENES[0]}-1)" in only(found.problems, "var_names_make_unique")


# ------------------------------------------------------------------------------------------------- targets and genes
@pytest.mark.parametrize(
    ("gene", "label", "said"),
    [
        (
            lambda g: g.lower(),
            lambda g: g,
            "spelled otherwise (GENEA0; the gene is genea0)",
        ),
        (
            lambda g: f"hg38_{g}",
            lambda g: g,
            "spelled otherwise (GENEA0; the gene is hg38_GENEA0)",
        ),
        (lambda g: g, lambda g: "OTHER" + g, "they are not in the file, or named otherwise"),
        (lambda g: g, lambda g: f"ENSG{GENES.index(g):011d}", "they are Ensembl ids"),
    ],
)
def test_targets_that_are_no_genes(screen, counts, obs, gene, label, said):
    obs["target_gene"] = [one if one == "non-targeting" else label(one) for one in obs["target_gene"]]
    found = inspect_file(screen(counts, obs=obs, var=pd.DataFrame(index=[gene(g) for g in GENES])))
    assert found.labels.perturbations[0].genes == 0
    problem = only(found.problems, "is a gene of the file")
    assert "no target of 'target_gene'" in problem
    assert said in problem


def test_targets_are_compared_with_the_symbols_that_will_be_read(screen, counts, obs):
    var = pd.DataFrame({"gene_name": GENES}, index=[f"{name}.3" for name in IDS])
    obs["gene_id"] = obs["target_gene"].map(dict(zip(GENES, IDS, strict=True))).fillna("non-targeting")
    found = inspect_file(screen(counts, obs=obs, var=var))
    assert (found.perturbation, found.problems) == ("target_gene", [])
    assert [one.genes for one in found.labels.perturbations] == [1.0, 0.0]
    del obs["target_gene"]
    found = inspect_file(screen(counts, obs=obs, var=var))
    assert "they are Ensembl ids" in only(found.problems, "no target of 'gene_id'")
    assert "genes of the file" not in found.labels.perturbations[0].why


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("{}_KO", "(.+)_KO"),
        ("{}-ctrl", "(.+)-ctrl"),
        ("{}_sg12", r"(.+)_sg\d+"),
        ("sg{}-2", r"sg(.+)-\d+"),
        ("{}g1", r"(.+)g\d+"),
    ],
)
def test_targets_in_longer_labels_are_read_by_a_pattern(screen, counts, obs, form, pattern):
    obs["target_gene"] = [one if one == "non-targeting" else form.format(one) for one in obs["target_gene"]]
    found = inspect_file(screen(counts, obs=obs))
    assert (found.labels.perturbations[0].pattern, found.problems) == (pattern, [])
    with opened(found) as source:
        assert set(source.cells["perturbation"]) == {"non-targeting", *GENES[:5]}


# ------------------------------------------------------------------------------------------------------------ controls
def test_numbered_controls_are_one(screen, counts, obs):
    control = obs["target_gene"] == "non-targeting"
    obs.loc[control, "target_gene"] = [f"NTC_{i % 8 + 1}" for i in range(20)]
    found = inspect_file(screen(counts, obs=obs))
    assert (found.control, found.also_control, found.groups.control_cells) == ("NTC_1", ["NTC_*"], 20)
    assert "NTC_1 and NTC_* (20 cells): NTC_1 (3 cells)" in text_of(found)
    assert found.problems == []
    # The label of a gene that begins so is none.
    obs["target_gene"] = obs["target_gene"].replace({GENES[0]: "NTC_GENE"})
    found = inspect_file(screen(counts, obs=obs))
    assert (found.control, len(found.also_control)) == ("NTC_1", 7)
    assert found.groups.control_cells == 20


def test_a_control_that_is_named_is_no_problem_and_is_counted(screen, counts, obs):
    obs["target_gene"] = obs["target_gene"].replace("non-targeting", "plain")
    path = screen(counts, obs=obs)
    assert "most frequent: plain (20 cells), " in only(inspect_file(path).problems, "--control")
    found = inspect_file(path, control="plain")
    assert found.problems == []
    assert "plain (20 cells)" in text_of(found)
    obs.loc[obs.index[[0, 6]], "target_gene"] = "NTC"
    found = inspect_file(screen(counts, obs=obs), control="plain")
    assert "NTC (2); they count as perturbations: set also_control" in only(found.problems, "controls too")


def test_cells_without_a_label_are_counted(screen, counts, obs):
    obs["target_gene"] = obs["target_gene"].replace(GENES[0], None)
    obs.loc["cell2", "target_gene"] = ""
    found = inspect_file(screen(counts, obs=obs))
    assert "21 cells without a label" in only(found.notes, "left out")
    assert "21 cells without a label" in text_of(found)
    obs["target_gene"] = obs["target_gene"].replace("non-targeting", None)
    assert "41 cells without a label: if these are the controls" in only(
        inspect_file(screen(counts, obs=obs)).problems, "--control"
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("GENEA0", "target_gene is 'GENEA0' in all cells"),
        ([f"sample{i}" for i in range(120)], "target_gene has a label of its own for every cell (sample"),
        (np.arange(120) % 6, "target_gene holds numbers (0, 1, 2, …), not labels"),
        (np.arange(120) % 2 == 0, "target_gene is true or false, and names no target gene"),
    ],
)
def test_a_column_that_labels_nothing_is_told_as_such(screen, counts, obs, labels, said):
    obs["target_gene"] = labels
    found = inspect_file(screen(counts, obs=obs))
    only(found.problems, said)
    assert len(found.problems) == 1
    assert inspect_file(screen(counts, obs=obs), "target_gene").problems == found.problems


# ------------------------------------------------------------------------------------------------------- other columns
def test_a_filter_of_guides_that_is_suggested_keeps_controls_and_combinations(screen, counts, obs):
    perturbed = obs["target_gene"] != "non-targeting"
    double = perturbed & (np.arange(120) % 5 == 0)
    obs.loc[double, "target_gene"] = f"{GENES[6]}+{GENES[7]}"
    obs["nperts"] = perturbed.astype(int) + double
    assert "guides_column" not in inspect_file(screen(counts, obs=obs)).recipe  # it would leave nothing out
    obs["n_guides"] = np.where(np.arange(120) % 12 == 7, 5, obs["nperts"])
    found = inspect_file(screen(counts, obs=obs))
    left = int((obs["n_guides"] < 5).sum())
    assert f"# quality: {{guides_column: n_guides, guides: [0, 1, 2]}}   # {left} cells" in found.recipe
    obs["n_guides"] = 1 + (np.arange(120) % 12 == 7)
    assert "# quality: {guides_column: n_guides}   # 110 cells" in inspect_file(screen(counts, obs=obs)).recipe


def test_a_context_that_lacks_values_is_not_passed_over(screen, counts, obs):
    obs.loc[obs.index[:7], "cell_line"] = None
    found = inspect_file(screen(counts, obs=obs))
    assert "cell_line lacks a value in 7 cells" in only(found.problems, "lacks")
    assert "context: screen   # cell_line lacks a value in 7 cells" in found.recipe


def test_flags_of_bad_cells_are_named(screen, counts, obs):
    obs["assigned"] = np.arange(120) % 4 > 0
    obs["is_doublet"] = np.arange(120) % 10 == 0
    obs["pass_qc"] = True  # leaves nothing out
    found = inspect_file(screen(counts, obs=obs))
    assert "assigned is true in 90 cells only" in only(found.problems, "keep: {assigned: true}")
    assert "is_doublet is false in 108 cells only" in only(found.problems, "keep: {is_doublet: false}")
    assert "# keep: {is_doublet: false}   # 108 cells" in found.recipe
    assert "pass_qc" not in found.recipe


def test_a_batch_for_each_cell_is_none(screen, counts, obs):
    obs["lane"] = obs.index
    assert inspect_file(screen(counts, obs=obs)).batch is None


def test_notes_are_told_apart_from_problems(screen, counts, obs):
    obs.loc[obs.index[:7], "cell_line"] = None
    printed = text_of(inspect_file(screen(counts, obs=obs))).splitlines()
    assert [line.split()[0] for line in printed if "groups with fewer than 30 cells" in line] == ["note"]
    assert [line.split()[0] for line in printed if "lacks a value" in line and "#" not in line] == ["problem"]
