"""Splits: properties over random group tables, every refusal with its message, and the cell-load TOML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.splits.hold_out import make_splits
from vcc_fm.splits.split import LeakError, Split, assert_no_leak

CONTROL = "non-targeting"


def table(contexts: dict[str, list[str]], cells: int = 10) -> dict[tuple[str, str], int]:
    """Group table with controls in every context."""
    groups = {(context, label): cells for context, labels in contexts.items() for label in labels}
    return groups | {(context, CONTROL): 100 for context in contexts}


def split_one(cells: dict[tuple[str, str], int], seed: int = 0, **config: object) -> Split:
    (split,) = make_splits(SplitConfig(**config), cells, CONTROL, "+", seed)  # type: ignore[arg-type]
    return split


def labels(split: Split, role: str) -> set[str]:
    return {label for _, label in split.groups(role)}  # type: ignore[arg-type]


GENES = [f"G{i:02d}" for i in range(20)]
FOUR = table({context: GENES for context in ("alpha", "beta", "gamma", "delta")})


@st.composite
def group_tables(draw: st.DrawFn) -> dict[tuple[str, str], int]:
    """Two to four contexts that share most of 8 to 16 perturbations, in a random order of insertion."""
    genes = GENES[: draw(st.integers(8, 16))]
    contexts = ["alpha", "beta", "gamma", "delta"][: draw(st.integers(2, 4))]
    measured = {context: draw(st.sets(st.sampled_from(genes), min_size=6)) for context in contexts}
    cells = {(context, label): draw(st.integers(1, 50)) for context in contexts for label in sorted(measured[context])}
    return cells | {(context, CONTROL): 30 for context in contexts}


CONFIGS = [
    {"hold_out": "perturbations", "test": 0.3},
    {"hold_out": "perturbations", "test": 2, "validation": 0.2},
    {"hold_out": "perturbations", "folds": 3},
    {"hold_out": "contexts", "contexts": ["beta"]},
    {"hold_out": "few-shot", "contexts": ["alpha"], "test": 0.5, "unseen": 0.5},
]


# ---------------------------------------------------------------------------------------------------------- properties
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: " ".join(map(str, config.values())))
@settings(max_examples=20, deadline=None)
@given(cells=group_tables(), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_roles_partition_the_groups_and_do_not_depend_on_order_or_cells(config, cells, seed, order):
    splits = make_splits(SplitConfig(**config), cells, CONTROL, "+", seed)
    measured = {group for group in cells if group[1] != CONTROL}
    for split in splits:
        assert set(split.roles) == measured
        assert sum(counts["groups"] for counts in split.counts().values()) == len(measured)
        assert sum(counts["cells"] for counts in split.counts().values()) == sum(cells[group] for group in measured)
        assert split.groups("test")
        assert split.groups("train")

    items = [(group, number + order.randint(0, 9)) for group, number in cells.items()]
    order.shuffle(items)
    again = make_splits(SplitConfig(**config), dict(items), CONTROL, "+", seed)
    assert [split.roles for split in again] == [split.roles for split in splits]


@settings(max_examples=20, deadline=None)
@given(cells=group_tables(), seed=st.integers(0, 1000), folds=st.integers(2, 6))
def test_folds_test_each_perturbation_exactly_once_and_near_equally(cells, seed, folds):
    splits = make_splits(SplitConfig(hold_out="perturbations", folds=folds), cells, CONTROL, "+", seed)
    tested = [label for split in splits for label in labels(split, "test")]
    assert sorted(tested) == sorted({label for _, label in cells if label != CONTROL})
    sizes = [len(labels(split, "test")) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    assert [split.fold for split in splits] == list(range(folds))


@settings(max_examples=20, deadline=None)
@given(cells=group_tables(), seed=st.integers(0, 1000))
def test_a_held_out_perturbation_trains_in_no_context(cells, seed):
    split = split_one(cells, seed, hold_out="perturbations", test=0.3)
    assert not labels(split, "train") & (labels(split, "test") | labels(split, "validation"))
    assert not labels(split, "test") & labels(split, "validation")


def test_seed_changes_the_choice():
    chosen = {frozenset(labels(split_one(FOUR, seed, hold_out="perturbations"), "test")) for seed in range(5)}
    assert len(chosen) == 5


# ------------------------------------------------------------------------------------------------------ kinds of split
def test_fraction_number_and_labels_of_test_perturbations():
    assert len(labels(split_one(FOUR, hold_out="perturbations", test=0.25), "test")) == 5
    assert len(labels(split_one(FOUR, hold_out="perturbations", test=1), "test")) == 1
    listed = split_one(FOUR, hold_out="perturbations", test=["G03", "G07"], validation=["G01"])
    assert labels(listed, "test") == {"G03", "G07"}
    assert listed.groups("validation") == [(context, "G01") for context in ("alpha", "beta", "delta", "gamma")]
    # 15 % of the 18 that remain, not of all 20.
    assert len(labels(split_one(FOUR, hold_out="perturbations", test=2), "validation")) == round(0.15 * 18)


def test_validation_listed_with_folds_is_tested_in_its_fold_only():
    splits = make_splits(SplitConfig(hold_out="perturbations", folds=2, validation=["G01"]), FOUR, CONTROL, "+", 0)
    assert sorted(split.roles["alpha", "G01"] for split in splits) == ["test", "validation"]


def test_contexts_hold_out_all_of_a_context_and_validate_elsewhere():
    split = split_one(FOUR, hold_out="contexts", contexts=["gamma"], validation=0.2)
    assert split.groups("test") == [("gamma", label) for label in GENES]
    validation = split.counts()["validation"]
    assert (validation["groups"], validation["contexts"]) == (12, 3)
    assert {context for context, _ in split.groups("train")} == {"alpha", "beta", "delta"}
    # A perturbation that validates in one context trains in another, as it does where it is tested.
    assert labels(split, "train") == set(GENES)
    listed = split_one(FOUR, hold_out="contexts", contexts=["gamma"], validation=["G03"])
    assert listed.groups("validation") == [(context, "G03") for context in ("alpha", "beta", "delta")]


PATIENTS = table({f"P{i}": ["drug"] for i in range(5)})


def test_one_perturbation_validates_in_some_contexts_and_trains_in_the_others():
    split = split_one(PATIENTS, hold_out="contexts", contexts=["P4"], validation=0.25)
    assert {role: counts["groups"] for role, counts in split.counts().items()} == {
        "train": 3, "validation": 1, "test": 1, "unused": 0
    }  # fmt: skip
    # The last group that could train is left to training.
    alone = split_one(table({"P0": ["drug"], "P1": ["drug"]}), hold_out="contexts", contexts=["P1"], validation=0.25)
    assert (alone.groups("train"), alone.groups("validation")) == ([("P0", "drug")], [])


@pytest.mark.parametrize(("folds", "held"), [(5, ["P0", "P1", "P2", "P3", "P4"]), (2, ["P0 P1 P2", "P3 P4"])])
def test_folds_hold_out_the_listed_contexts_in_turn(folds, held):
    config = SplitConfig(hold_out="contexts", contexts=[f"P{i}" for i in range(5)], folds=folds, validation=0.25)
    splits = make_splits(config, PATIENTS, CONTROL, "+", 0)
    assert [" ".join(context for context, _ in split.groups("test")) for split in splits] == held
    assert all(split.groups("train") and split.groups("validation") for split in splits)


def test_a_validation_share_beside_a_table_is_said_to_change_nothing(tmp_path):
    (tmp_path / "t.toml").write_text(
        '[datasets]\nd = "x"\n[training]\nd = "train"\n[zeroshot]\n"d.gamma" = "test"\n[fewshot]\n'
    )
    keys = {"hold_out": "table", "table": str(tmp_path / "t.toml")}
    assert split_one(FOUR, **keys).warnings == []
    (warning,) = split_one(FOUR, **keys, validation=0.25).warnings
    assert warning.startswith("split.validation=0.25 changes nothing: with hold_out=table the table says")
    assert warning.endswith("validate, here none")


def test_few_shot_holds_out_in_target_contexts_and_unseen_everywhere():
    split = split_one(FOUR, hold_out="few-shot", contexts=["alpha", "beta"], test=8, validation=0.25, unseen=0.25)
    counts = split.counts()
    assert counts["test"] == {"contexts": 2, "perturbations": 8, "groups": 16, "cells": 160}
    assert counts["validation"] == {"contexts": 2, "perturbations": 3, "groups": 6, "cells": 60}
    assert counts["unused"] == {"contexts": 2, "perturbations": 2, "groups": 4, "cells": 40}
    unseen = labels(split, "unused")
    assert unseen < labels(split, "test")
    assert not unseen & labels(split, "train")
    assert labels(split, "test") - unseen <= labels(split, "train")  # the others train in gamma and delta
    assert {("gamma", label) for label in labels(split, "validation")} <= set(split.groups("train"))


# ------------------------------------------------------------------------------------------------------ cell-load TOML
HEAD = '[datasets]\nscreen = "/data/screen"\n'
TRAINED = HEAD + '[training]\nscreen = "train"\n'


def split_table(tmp_path: Path, text: str, cells: dict[tuple[str, str], int] = FOUR) -> Split:
    path = tmp_path / "split.toml"
    path.write_text(text)
    return split_one(cells, hold_out="table", table=str(path))


def test_table_with_all_sections(tmp_path):
    text = TRAINED + (
        '[zeroshot]\n"screen.alpha" = "test"\n"screen.beta" = "val"\n'
        '[fewshot."screen.gamma"]\nval = ["G00"]\ntest = ["G01", "G02"]\n'
        '[fewshot."screen.alpha"]\ntest = ["G05"]\n'
    )
    split = split_table(tmp_path, text)
    # [zeroshot] wins over [fewshot] in alpha, so all of alpha is test.
    assert split.groups("test") == [("alpha", label) for label in GENES] + [("gamma", "G01"), ("gamma", "G02")]
    assert split.groups("validation") == [("beta", label) for label in GENES] + [("gamma", "G00")]
    assert split.groups("train") == [("delta", label) for label in GENES] + [("gamma", label) for label in GENES[3:]]


def test_table_leaves_contexts_of_untrained_datasets_unused(tmp_path):
    text = HEAD + '[zeroshot]\n"screen.alpha" = "test"\n"screen.beta" = "train"\n'
    split = split_table(tmp_path, text)
    assert {context for context, _ in split.groups("unused")} == {"gamma", "delta"}


def test_table_context_may_contain_dots_and_path_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLIT_TABLES", str(tmp_path))
    (tmp_path / "t.toml").write_text(TRAINED + '[zeroshot]\n"screen.H1.p2" = "test"\n')
    split = split_one(table({"H1.p2": GENES, "K562": GENES}), hold_out="table", table="${SPLIT_TABLES}/t.toml")
    assert {context for context, _ in split.groups("test")} == {"H1.p2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRAINED + '[zeroshot]\n"screen.omega" = "test"', "no context 'omega'; there are alpha, beta, delta, gamma"),
        (
            TRAINED + '[zeroshot]\n"screen.alpha" = "tset"',
            '"screen.alpha" is \'tset\'; write "train", "val" or "test"',
        ),
        (TRAINED + '[zeroshot]\n"screen.alpha" = ["test"]', r"is \['test'\]; write"),
        (TRAINED + '[zeroshot]\n"other.alpha" = "test"', r"'other' is not in \[datasets\] \(screen\)"),
        (TRAINED + '[zeroshot]\nscreen.alpha = "test"', 'write "dataset.context" in quotes'),
        (TRAINED + '[zeroshots]\n"screen.alpha" = "test"', r"unknown section \[zeroshots\]; known: datasets"),
        (TRAINED + '[fewshot."screen.alpha"]\ntrain = ["G01"]', "unknown key train; known: val, test"),
        (TRAINED + '[fewshot."screen.alpha"]\ntest = "G01"', "test: write a list of labels in quotes, found 'G01'"),
        (
            TRAINED + '[fewshot."screen.alpha"]\ntest = ["g01"]',
            r"alpha test: there is no perturbation 'g01'; nearest: G01",
        ),
        (TRAINED + f'[fewshot."screen.alpha"]\ntest = ["{CONTROL}"]', "is the control, which is never held out"),
        (TRAINED + '[fewshot]\n"screen.alpha" = "test"', "write a section"),
        (HEAD + '[training]\nscreen = "val"', "screen is 'val'; write \"train\" or leave it out"),
        (HEAD + '[training]\nscren = "train"', r"scren is not in \[datasets\] \(screen\)"),
        ('training = "screen"', r"training must be a section, \[training\], found 'screen'"),
        ('[datasets]\n"a.b" = "/data"', "a dataset's name must not contain a dot"),
        ("[datasets", "not readable as TOML"),
        (
            '[datasets]\na = "/a"\nb = "/b"\n[zeroshot]\n"a.alpha" = "test"\n"b.alpha" = "train"',
            "gives context 'alpha' both 'test' and 'train'",
        ),
        (
            '[datasets]\na = "/a"\nb = "/b"\n[fewshot."a.alpha"]\ntest = ["G01"]\n[fewshot."b.alpha"]\ntest = ["G02"]',
            "names context 'alpha' twice",
        ),
        (
            '[datasets]\na = "/a"\nb = "/b"\n[training]\na = "train"\n[zeroshot]\n"b.alpha" = "test"',
            "context 'beta' is in no section, and .training. has only some of the datasets",
        ),
        (HEAD + '[zeroshot]\n"screen.alpha" = "test"', "leaves nothing to train on"),
        (TRAINED, "leaves nothing to test"),
    ],
)
def test_table_refusals(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        split_table(tmp_path, text)


def test_table_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: no such file; split\.table is the path of a cell-load TOML"):
        split_one(FOUR, hold_out="table", table=str(tmp_path / "none.toml"))


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"test": ["G3"]}, r"split\.test: there is no perturbation 'G3'; nearest: G"),
        ({"test": ["zzzzzz"]}, "no perturbation 'zzzzzz' among the 20 there are"),
        ({"test": [CONTROL]}, r"split\.test: 'non-targeting' is the control"),
        ({"test": ["G01"], "validation": ["G01"]}, "'G01' is listed in both split.test and split.validation"),
        ({"test": ["G01"], "validation": ["H01"]}, r"split\.validation: there is no perturbation 'H01'"),
        ({"test": 21}, r"split\.test=21 is more than the 20 perturbations"),
        ({"test": []}, "leaves nothing to test"),
        ({"test": 0.0}, "leaves nothing to test"),
        ({"test": 1.0}, "leaves nothing to train on"),
        ({"test": 0.5, "validation": 1.0}, "leaves nothing to train on"),
        ({"folds": 21}, r"split\.folds=21 is more than the 20 perturbations"),
        ({"hold_out": "contexts", "contexts": ["omega"]}, "no context 'omega' with perturbations; there are alpha"),
        ({"hold_out": "contexts", "contexts": ["alpha", "beta", "gamma", "delta"]}, "leaves nothing to train on"),
        ({"hold_out": "contexts", "contexts": ["alpha"], "validation": ["G99"]}, "there is no perturbation 'G99'"),
        ({"hold_out": "few-shot", "contexts": ["omega"]}, "no context 'omega'"),
        ({"hold_out": "few-shot", "contexts": ["alpha"], "test": ["G01"], "validation": ["G01"]}, "listed in both"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(UserError, match=message):
        split_one(FOUR, **({"hold_out": "perturbations"} | config))


def test_context_without_controls_is_refused_unless_unused(tmp_path):
    cells = {group: number for group, number in FOUR.items() if group != ("beta", CONTROL)}
    with pytest.raises(UserError, match=r"no control cells \('non-targeting'\) in context beta"):
        split_one(cells, hold_out="perturbations")
    text = HEAD + '[zeroshot]\n"screen.alpha" = "test"\n"screen.gamma" = "train"\n'
    assert ("beta", "G00") in split_table(tmp_path, text, cells).groups("unused")


def test_two_labels_for_the_same_target_genes_are_refused():
    with pytest.raises(UserError, match=r"perturbations 'A\+B' and 'B\+A' mean the same target genes"):
        split_one(table({"alpha": ["A+B", "B+A", "C"]}), hold_out="perturbations")
    with pytest.raises(UserError, match="mean the same target genes"):
        split_one(table({"alpha": ["A"], "beta": [f"A+{CONTROL}"]}), hold_out="contexts", contexts=["beta"])


# ------------------------------------------------------------------------------------------------------------ warnings
def test_warns_of_training_combinations_and_of_singles():
    cells = table({"alpha": ["A", "B", "C", "D", "A+B", "C+D", "E"]})
    held = split_one(cells, hold_out="perturbations", test=["A", "C+D"], validation=0.0)
    assert held.warnings == [
        "1 of 2 held-out perturbations share a target gene with a training combination (for example A with A+B): "
        "the split is not blind to that gene",
        "1 of 1 held-out combinations have single perturbations in training, 1 of them all of theirs (for example C+D "
        "with C, D): their scores show how effects add, not unseen genes",
    ]
    assert split_one(cells, hold_out="perturbations", test=["E"], validation=0.0).warnings == []


def test_warnings_count_validation_and_half_known_combinations():
    cells = table({"alpha": ["A", "B", "C", "A+B", "A+C", "E"]})
    (message,) = split_one(cells, hold_out="perturbations", test=["A+B", "B"], validation=["A+C"]).warnings
    assert message.startswith("2 of 2 held-out combinations have single perturbations in training, 1 of them all")


def test_no_warning_where_the_perturbation_itself_trains_elsewhere():
    # A trains in beta; the combination A+B trains in beta too, and tells nothing more about A in alpha.
    cells = table({"alpha": ["A", "C"], "beta": ["A", "A+B"]})
    split = split_one(cells, hold_out="contexts", contexts=["alpha"], validation=0.0)
    assert split.roles["alpha", "A"] == "test"
    assert split.warnings == []
    # It would if A trained nowhere, although A+B trains in a context where A was not measured.
    cells = table({"alpha": ["A", "C"], "beta": ["C", "A+B"]})
    (message,) = split_one(cells, hold_out="contexts", contexts=["alpha"], validation=0.0).warnings
    assert message.startswith("1 of 2 held-out perturbations")
    # And it would in alpha itself.
    cells = table({"alpha": ["A", "A+B", "C"], "beta": ["A"]})
    (message,) = split_one(cells, hold_out="few-shot", contexts=["alpha"], test=["A"], validation=0.0).warnings
    assert "(for example A with A+B)" in message


# --------------------------------------------------------------------------------------------------------------- leaks
def test_assert_no_leak():
    split = split_one(FOUR, hold_out="perturbations", test=["G01"], validation=["G02"])
    assert_no_leak(split, [("alpha", "G05"), ("alpha", CONTROL)], CONTROL, "the mean response")
    with pytest.raises(LeakError, match=r"the mean response was fitted on 2 group.*: G01 in alpha is test"):
        assert_no_leak(split, [("beta", "G02"), ("alpha", "G01"), ("alpha", "G05")], CONTROL, "the mean response")
    with pytest.raises(LeakError, match="G02 in beta is validation"):
        assert_no_leak(split, [("beta", "G02")], CONTROL, "the PCA")
    with pytest.raises(LeakError, match="G77 in beta is unknown"):
        assert_no_leak(split, [("beta", "G77")], CONTROL, "the PCA")
    assert_no_leak(split, [("beta", "G02")], CONTROL, "the effect scale", allowed=("train", "validation"))


def test_assert_no_leak_guards_unseen_perturbations():
    split = split_one(FOUR, hold_out="few-shot", contexts=["alpha"], test=["G01"], unseen=1.0)
    with pytest.raises(LeakError, match="G01 in beta is unused"):
        assert_no_leak(split, [("beta", "G01")], CONTROL, "the gene vectors")


# ---------------------------------------------------------------------------------------------------------------- file
def test_file_round_trip_is_readable_and_leaves_nothing_else(tmp_path):
    cells = table({"alpha": ["A", "B", "A+B", 'odd "label", [3]'], "β": ["A", "B"]})
    split = split_one(cells, 3, hold_out="perturbations", test=["A+B"])
    path = tmp_path / "split.json"
    split.write(path)
    split.write(path)
    assert Split.read(path) == split
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]
    text = path.read_text()
    assert next(iter(json.loads(text))) == "counts"
    assert text.count('{"context":') == sum(line.strip().startswith('{"context":') for line in text.splitlines()) == 6


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "split.json"
    split_one(FOUR, 1, hold_out="perturbations").write(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        split_one(FOUR, 2, hold_out="perturbations").write(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"role":"test"', '"role":"tset"', r"groups\.\d+\.role: Input should be 'train', 'validation', 'test'"),
        ('"role":"test"', '"role":"train"', "counts do not agree with groups, so the file was altered"),
        ('"seed"', '"sead"', "not a split: .*; make the split again"),
        ('  "groups"', '  "groups', "not a split: the file: Invalid JSON"),
    ],
)
def test_altered_file_is_refused(tmp_path, old, new, message):
    path = tmp_path / "split.json"
    split_one(FOUR, hold_out="perturbations").write(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        Split.read(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"split\.json: no such split"):
        Split.read(tmp_path / "split.json")
