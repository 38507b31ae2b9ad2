"""Cells that their labels or their number of guides rule out, each counted by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.labels import Labels, read_labels

LABELS = ["non-targeting", "A", "Unassigned ", "MULTIPLE", "no-guide", "B", None, "no_guide"]


def read(obs: dict[str, Any], control: str = "non-targeting", **keys: Any) -> Labels:
    config = SourceConfig.model_validate(
        {"name": "s", "path": "x", "perturbation_column": "target", "context": "K562", "control": control} | keys
    )
    return read_labels(pd.DataFrame(obs), config, "file")


def test_unassigned_cells_are_dropped_under_their_own_label() -> None:
    labels = read({"target": [*LABELS, "no-guide"]})
    assert labels.cells["perturbation"].tolist() == ["non-targeting", "A", "B"]
    assert labels.rows.tolist() == [0, 1, 5]
    assert labels.dropped == {
        "no perturbation label": 1,
        "label 'Unassigned': no guide or several": 1,
        "label 'MULTIPLE': no guide or several": 1,
        "label 'no-guide': no guide or several": 2,
        "label 'no_guide': no guide or several": 1,
    }
    assert labels.repairs == {}


def test_labels_of_unassigned_cells_can_be_chosen() -> None:
    labels = read({"target": LABELS}, quality={"unassigned": [" b "]})
    assert set(labels.cells["perturbation"]) == {
        "non-targeting",
        "A",
        "Unassigned",
        "MULTIPLE",
        "no-guide",
        "no_guide",
    }
    assert labels.dropped["label 'B': no guide or several"] == 1
    assert len(read({"target": LABELS}, quality={"unassigned": []}).cells) == 7


def test_the_control_is_never_unassigned() -> None:
    labels = read({"target": [" no_guide", "A", "no_guide", "No_Guide"]}, control="no_guide")
    assert labels.cells["perturbation"].tolist() == ["no_guide", "A", "no_guide"]
    assert labels.dropped == {"label 'No_Guide': no guide or several": 1}


@pytest.mark.parametrize(
    "stored",
    [
        [1, 1, 2, 1, 1, 3, 1, 0],
        np.array([1, 1, 2, 1, 1, 3, 1, 0], float),
        pd.Categorical(["1", "1", "2", "1", "1", "3", "1", "0"]),
    ],
    ids=["whole", "float", "text"],
)
def test_numbers_of_guides(stored: Any) -> None:
    labels = read({"target": LABELS, "n": stored}, quality={"guides_column": "n", "guides": [1, 3]})
    assert labels.cells["perturbation"].tolist() == ["non-targeting", "A", "B"]
    assert labels.dropped == {
        "n: number of guides is not 1 or 3": 2,  # these two are unassigned too
        "no perturbation label": 1,
        "label 'MULTIPLE': no guide or several": 1,
        "label 'no-guide': no guide or several": 1,
    }


def test_every_lost_cell_has_one_reason() -> None:
    rng = np.random.default_rng(0)
    obs = {
        "target": rng.choice(np.array(LABELS, dtype=object), 500),
        "n": rng.choice([0.0, 1.0, 2.0, np.nan], 500),
        "good": rng.random(500) < 0.8,
    }
    labels = read(obs, keep={"good": True}, quality={"guides_column": "n"})
    assert sum(labels.dropped.values()) == 500 - len(labels.cells)
    assert labels.dropped["keep good"] == (~obs["good"]).sum()
    assert labels.dropped["n: no number of guides"] == (obs["good"] & np.isnan(obs["n"])).sum()
    assert labels.dropped["n: number of guides is not 1"] == (obs["good"] & np.isin(obs["n"], [0, 2])).sum()


@pytest.mark.parametrize(
    ("column", "stored", "message"),
    [
        ("guides", [1] * 8, "obs has no column 'guides'; did you mean 'guide'"),
        ("guide", ["1", "one"] * 4, r"quality\.guides_column 'guide' holds 'one', which is no number"),
        ("guide", [0, 2] * 4, r"quality\.guides_column 'guide': no kept cell has 1 guides; found 0, 2"),
        ("guide", [np.nan] * 8, "no kept cell has 1 guides; found no number"),
    ],
)
def test_a_column_that_holds_no_numbers_of_guides_is_refused(column: str, stored: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read({"target": LABELS, "guide": stored}, quality={"guides_column": column})


# ------------------------------------------------------------------------------------- controls that filters leave out
def test_a_filter_that_leaves_out_the_controls_is_named() -> None:
    obs = {"target": ["ctrl", "ctrl", "A", "A_B"], "nperts": [0, 0, 1, 2], "good": [False, False, True, True]}
    message = (
        r"quality\.guides=\[1, 2\] of 'nperts' leaves out all 2 cells of the control 'ctrl'; they have 0: add that"
    )
    with pytest.raises(UserError, match=message):
        read(obs, control="ctrl", quality={"guides_column": "nperts", "guides": [1, 2]})
    with pytest.raises(UserError, match=r"keep=\{'good': True\} leaves out all 2 cells of the control 'ctrl'"):
        read(obs, control="ctrl", keep={"good": True})
    kept = read(obs, control="ctrl", quality={"guides_column": "nperts", "guides": [0, 1, 2]}, separator="_")
    assert kept.cells["perturbation"].tolist() == ["ctrl", "ctrl", "A", "A_B"]
    with pytest.raises(
        UserError, match=r"no control label 'no-guide'.*left out by quality\.unassigned: 'No_Guide' \(2\)"
    ):
        read({"target": ["No_Guide", "No_Guide", "A", "B"]}, control="no-guide")


# --------------------------------------------------------------------------------------------------- further controls
def test_further_labels_are_read_as_control() -> None:
    target = ["NTC_1", " NTC_2", "safe", "A", "A+NTC_3", "SAFE", "A+safe+B", "no_guide"]
    labels = read({"target": target}, control="ctrl", also_control=["NTC_*", "safe", "no_guide"])
    assert labels.cells["perturbation"].tolist() == ["ctrl", "ctrl", "ctrl", "A", "A", "SAFE", "A+B", "ctrl"]
    assert labels.repairs == {
        "labels read as control": 4,
        "labels stripped of spaces": 1,
        "combinations with 'ctrl' read without it": 2,
    }
    assert labels.dropped == {}


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        # The * stands for no separator: a control part may come first.
        ({"also_control": ["ctrl*"]}, {"ctrl+A": "A", "A+ctrl": "A", "ctrl2": "ctrl", "ctrl2+ctrl3": "ctrl"}),
        ({"also_control": ["NTC_*"], "separator": "|"}, {"NTC_1|A": "A", "A|NTC_1": "A", "NTC_1|NTC_2": "ctrl"}),
        # What a pattern gives may be a control too.
        (
            {"also_control": ["NTC"], "target_pattern": r"(.+)_sg\d+"},
            {"NTC_sg2": "ctrl", "NTC_sg2+A_sg1": "A", "ctrl_sg1": "ctrl", "ctrl_sg1+B_sg2": "B", "A _sg1": "A"},
        ),
        # A control may hold what joins parts.
        (
            {"control": "non_targeting", "separator": "_", "also_control": ["NTC_1"]},
            {"A_non_targeting": "A", "non_targeting_A": "A", "A_NTC_1": "A", "NTC_1_non_targeting": "non_targeting",
             "A_non_targeting_B": "A_B", "targeting_A": "A_targeting"},
        ),
        (
            {"control": "non-targeting", "separator": "-"},
            {"A-non-targeting": "A", "non-targeting-A": "A", "A-B": "A-B"},
        ),
        ({"also_control": ["NTC_*"], "separator": "_"}, {"A_NTC_1": "A", "NTC_1_A": "A", "NTC_2": "ctrl"}),
        # One that stands in combinations only.
        ({"also_control": ["N2"], "separator": "_"}, {"A_N2": "A", "N2_ctrl": "ctrl"}),
    ],
)  # fmt: skip
def test_controls_are_told_from_perturbations(keys: dict[str, Any], labels: dict[str, str]) -> None:
    control = keys.get("control", "ctrl")
    found = read({"target": [*labels, control, "X"]}, **({"control": control} | keys))
    assert dict(zip(labels, found.cells["perturbation"], strict=False)) == labels


def test_a_further_control_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"no label 'NTC-\*' \(also_control\) in a kept cell; most frequent labels: A"):
        read({"target": ["ctrl", "A", "A", "NTC_1"]}, control="ctrl", also_control=["NTC-*"])
    with pytest.raises(ValidationError, match=r"also_control: '\*' would be every label"):
        read({"target": ["ctrl", "A"]}, also_control=["*"])


# ---------------------------------------------------------------------------------------------------- target patterns
def test_target_genes_are_read_out_of_labels() -> None:
    target = ["NTC_sg1", "B_sg1+A_sg12", "A_sg2+ctrl", "A", "A_sg1+A_sg2", "C_sgX+A_sg1", "ctrl"]
    labels = read({"target": target}, control="ctrl", also_control=["NTC_*"], target_pattern=r"(.+)_sg\d+")
    assert labels.cells["perturbation"].tolist() == ["ctrl", "A+B", "A", "A", "A", "A+C_sgX", "ctrl"]
    assert labels.repairs == {
        "labels read as control": 1,
        "target genes read by target_pattern": 4,
        "combinations with 'ctrl' read without it": 1,
        "repeated combination parts read once": 1,
        "combination parts sorted": 2,
        "labels with parts that target_pattern does not match, left as they are": 2,
    }
    # The separator comes first: a pattern is of a part.
    labels = read({"target": ["ctrl", "A-1_B-2"]}, control="ctrl", separator="_", target_pattern=r"([A-Z])-\d")
    assert labels.cells["perturbation"].tolist() == ["ctrl", "A_B"]


def test_a_control_is_never_matched() -> None:
    labels = read({"target": ["X_KO", "A_KO"]}, control="X_KO", target_pattern="(.+)_KO")
    assert labels.cells["perturbation"].tolist() == ["X_KO", "A"]


def test_a_pattern_that_matches_nothing_or_has_no_group_is_refused() -> None:
    obs = {"target": ["ctrl", "A_sg1", "B_sg1"]}
    with pytest.raises(
        UserError, match=r"target_pattern '\(\.\+\)_KO' matches no part of a label \(parts are joined by '\+'"
    ):
        read(obs, control="ctrl", target_pattern="(.+)_KO")
    for pattern, message in ((".+", "has 0 groups"), ("(.)(.)", "has 2 groups"), ("(", "is no regular expression")):
        with pytest.raises(ValidationError, match=message):
            read(obs, control="ctrl", target_pattern=pattern)


# ---------------------------------------------------------------------------------------- guides named by their strand
@pytest.mark.parametrize(
    ("label", "target"),
    [
        ("TP53_+_9084074.23-P1P2", "TP53"),
        ("TP53_-_9084074.23-P1P2", "TP53"),
        ("TP53_+_9084074.23-P1+MYC_+_128748315.23-P2", "MYC+TP53"),
        ("TP53_+_9084074.23-P1+NTC_+_12", "TP53"),
        ("NTC_+_12", "NTC"),
        ("NTC_00025", "NTC"),
    ],
)
@pytest.mark.parametrize("pattern", [r"(.+)_[+-]_\d.*", "([^_]+)_.*"])
def test_a_strand_joins_no_genes(label: str, target: str, pattern: str) -> None:
    found = read(
        {"target": [label, "NTC", "A_-_1", "NTC_7"]}, control="NTC", also_control=["NTC_*"], target_pattern=pattern
    )
    assert found.cells["perturbation"].tolist() == [target, "NTC", "A", "NTC"]
    # With a separator that is in no name the strand never mattered.
    other = read({"target": ["TP53_+_9.2|TP53_-_8.2", "NTC"]}, control="NTC", target_pattern=pattern, separator="|")
    assert other.cells["perturbation"].tolist() == ["TP53", "NTC"]


def test_a_pattern_may_be_of_the_whole_label() -> None:
    target = ["ctrl", "TP53+1", "MYC+22", "A+B"]
    found = read({"target": target}, control="ctrl", target_pattern=r"(.+)\+\d+")
    assert found.cells["perturbation"].tolist() == ["ctrl", "TP53", "MYC", "A+B"]


def test_guides_by_strand_are_refused_where_nothing_tells_their_gene() -> None:
    with pytest.raises(UserError, match=r"is a guide's strand and joins no genes; set target_pattern to \(\.\+\)_"):
        read({"target": ["ctrl", "TP53_+_9084074.23-P1P2"]}, control="ctrl")
    kept = read({"target": ["ctrl", "TP53_+_9084074.23-P1P2"]}, control="ctrl", separator="|")
    assert kept.cells["perturbation"].tolist() == ["ctrl", "TP53_+_9084074.23-P1P2"]
