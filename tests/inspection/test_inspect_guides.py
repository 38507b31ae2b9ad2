"""Guides as libraries name them: with a strand and a position, numbered controls, one or two a cell."""

import numpy as np
import pandas as pd
import pytest
from inspections import GENES, opened, prepared

from vcc_fm.inspection.inspect import inspect_file


@pytest.fixture
def guides(obs):
    """Names as in the CRISPRi v2 library; numbered controls."""
    row = np.arange(120)
    place = 9_000_000 + 37 * (row % 6)
    drawn = np.char.add(
        np.char.add(obs["target_gene"].to_numpy(str), np.array(["_+_", "_-_"])[row // 6 % 2]), place.astype(str)
    )
    promoter = np.array([".23-P1", ".23-P2", ".12-P1P2", ".23-ENST00000269305.4"])[row // 6 % 4]
    numbered = [f"non-targeting_{i % 30:05d}" for i in row]
    return np.where(obs["target_gene"] == "non-targeting", numbered, np.char.add(drawn, promoter))


def test_a_strand_is_no_separator(screen, counts, obs, guides, tmp_path):
    obs["target_gene"] = guides
    found = inspect_file(screen(counts, obs=obs))
    best = found.labels.perturbations[0]
    assert (best.pattern, best.separator, best.combinations, best.by_pattern) == (r"(.+)_[+-]_\d.*", "+", 0, 1.0)
    assert found.control in set(guides)
    assert (found.also_control, found.groups.perturbations, found.problems) == (["non-targeting_*"], 5, [])
    assert prepared(found, tmp_path).perturbations == sorted([found.control, *GENES[:5]])


def test_two_guides_in_a_cell(screen, counts, obs, guides):
    obs["sgID_AB"] = [f"{one}|{one.replace('_+_', '_-_')}" for one in guides]
    del obs["target_gene"]
    found = inspect_file(screen(counts, obs=obs))
    assert (found.perturbation, found.labels.perturbations[0].separator) == ("sgID_AB", "|")
    with opened(found) as source:
        assert set(source.cells["perturbation"]) == {found.control, *GENES[:5]}


def test_guides_whose_genes_the_file_lacks(screen, counts, obs, guides):
    obs["target_gene"] = guides
    found = inspect_file(screen(counts, obs=obs, var=pd.DataFrame(index=[f"OTHER{gene}" for gene in GENES])))
    assert found.labels.perturbations[0].pattern == r"(.+)_[+-]_\d.*"
    with opened(found) as source:
        assert set(source.cells["perturbation"]) == {found.control, *GENES[:5]}


@pytest.mark.parametrize("form", ["{}+1", "lot 7+{}"])
def test_a_combination_of_which_no_part_is_a_gene(screen, counts, obs, form):
    obs["target_gene"] = [
        one if one == "non-targeting" else form.format(f"SITE{one[4:]}") for one in obs["target_gene"]
    ]
    found = inspect_file(screen(counts, obs=obs))
    assert 'separator: "|"   # in no label: nothing that stands beside a + is known' in found.recipe
    assert (found.groups.perturbations, found.groups.combinations) == (5, 0)
    with opened(found) as source:
        assert len(source.cells["perturbation"].unique()) == 6


@pytest.mark.parametrize(
    ("controls", "control", "also"),
    [
        (["non-targeting_00003", "non-targeting_00022"], "non-targeting_00003", ["non-targeting_*"]),
        (["non-targeting1", "non-targeting2"], "non-targeting1", ["non-targeting*"]),
        (["NTg1", "NTg2"], "NTg1", ["NTg*"]),
        (["NTC", "NTC-1", "NTC-2"], "NTC", ["NTC*"]),
        (["Non-Targeting Control #1", "Non-Targeting Control #12"], "Non-Targeting Control #1", None),
    ],
)
def test_the_control_is_a_label_of_the_file(screen, counts, obs, controls, control, also):
    none = obs["target_gene"] == "non-targeting"
    obs.loc[none, "target_gene"] = np.resize(controls, int(none.sum()))
    found = inspect_file(screen(counts, obs=obs))
    assert (found.control, found.groups.control_cells) == (control, 20)
    if also is not None:
        assert found.also_control == also
    with opened(found) as source:
        assert control in set(source.cells["perturbation"])


@pytest.mark.parametrize("name", ["1", "12", " ", "_"])
def test_a_malformed_gene_name_hides_no_pattern(screen, counts, obs, name):
    obs["target_gene"] = [
        one if one == "non-targeting" else f"sg{one}_{1 + i // 6 % 2}" for i, one in enumerate(obs["target_gene"])
    ]
    found = inspect_file(screen(counts, obs=obs, var=pd.DataFrame(index=[*GENES[:59], name])))
    assert found.labels.perturbations[0].pattern == r"sg(.+)_\d+"
