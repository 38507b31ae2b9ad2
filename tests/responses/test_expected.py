"""Expected responses: of held-out groups, of training groups without themselves, and from a file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_screens import CONTROL, dataset_of, screen, store_of

from vcc_fm.ground.errors import UserError
from vcc_fm.responses.answers import read_answers, write_answers
from vcc_fm.responses.expected_file import load_expected, save_expected
from vcc_fm.responses.kernels import Kernels
from vcc_fm.responses.portions import Portions

GENES = [f"g{i}" for i in range(12)]
LABELS = [f"g{i}" for i in range(6)] + ["g0+g1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    effect = np.exp(rng.normal(0, 0.6, (len(LABELS), 12)))
    screens, base = [], rng.uniform(5, 30, 12)
    for context in "HK":
        own = base * np.exp(rng.normal(0, 0.2, 12))
        means = np.concatenate([np.tile(own, (60, 1)), *(np.tile(own * one, (20, 1)) for one in effect)])
        labels = np.repeat([CONTROL, *LABELS], [60] + [20] * len(LABELS))
        screens.append((rng.poisson(means), np.full(len(labels), context), labels))
    counts, contexts, labels = (np.concatenate(part) for part in zip(*screens, strict=True))
    store = store_of(tmp_path_factory.mktemp("cells"), screen(counts, contexts, "1", labels, GENES))
    return dataset_of(store, {("K", "g5"): "test"})


def test_a_training_group_is_expected_without_itself(data):
    expected = data.expected
    left, nowhere, known = (
        expected.left_out("K", "g2"),
        expected.left_out("K", "g2", everywhere=True),
        expected.of("K", "g2"),
    )
    row = data.responses.groups.index(("K", "g2"))
    others = np.arange(12) != 2
    own = data.responses.ratio[row]

    def apart(one):
        return np.abs(one.mean - own)[others].mean()

    assert apart(known) < apart(left) < apart(nowhere)
    assert (known.deviation < left.deviation)[others].all()
    assert (left.deviation < nowhere.deviation)[others].all()
    assert expected.left_out("K", "g2") is left


def test_the_target_has_the_knock_down_and_is_sure(data):
    expected, responses = data.expected, data.responses
    held = expected.of("K", "g5")
    assert held.deviation[5] == 0
    assert held.mean[5] == responses.elsewhere("K", "g5")[5]
    assert expected.left_out("H", "g3", everywhere=True).mean[3] == np.float32(responses.knock_down)
    both = expected.of("H", "g0+g1")
    assert (both.deviation[[0, 1]] == 0).all()
    assert (both.deviation[2:] > 0).all()


def test_a_file_gives_the_same_bits(data, tmp_path):
    save_expected(tmp_path / "responses.safetensors", data.expected)
    loaded = load_expected(tmp_path / "responses.safetensors", GENES, "+")
    for group in [("K", "g5"), ("new", "g4"), ("H", "g0+g2")]:
        one, other = data.expected.of(*group), loaded.of(*group)
        for name in ("mean", "deviation", "reliability", "power"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ratio", np.nan, "ratio is not finite"),
        ("precision", -1.0, "a precision is below zero"),
        ("unit", 0.0, "unit is not above zero"),
        ("depth", np.inf, "depth is not finite"),
        ("contexts", ["H", "L"], "nothing is known of the control cells of K"),
        ("groups", [["K", "g1"]], r"ratio is \(13, 12\) where 1 groups on 12 genes are expected"),
        ("tables", [["g1"]], "not readable as responses"),
    ],
)
def test_what_cannot_be_is_refused(data, tmp_path, name, value, message):
    path = tmp_path / "responses.safetensors"
    save_expected(path, data.expected)
    arrays = {key: array.copy() for key, array in load_file(path).items()}
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["about"])
    if name in about:
        about[name] = value
    else:
        arrays[name].flat[0] = value
    save_file(arrays, path, {"about": json.dumps(about)})
    with pytest.raises(UserError, match=message):
        load_expected(path, GENES, "+")


@pytest.mark.parametrize(("largest", "several"), [(4000, []), (4, ["train: mixed model: 3/3 portions"])])
def test_answers_in_a_folder_are_those_of_the_model(data, tmp_path, largest, several):
    data = replace(data)
    data.expected.__dict__["model"] = Portions(data.expected.evidence, Kernels(data.targets), size=largest)
    training, console = data.split.groups("train"), Console(record=True, width=200)
    asked = {"held_out": [("K", "g5")], "without_group": training, "without_perturbation": training[3:]}
    write_answers(tmp_path / "answers", data.expected, asked, "train", console)
    said = console.export_text()
    assert f"train: fits what is expected to {len(training)} training groups of 12 genes\n" in said
    assert [line.split("  ")[0] for line in said.splitlines() if "portions" in line] == several
    assert f"train: expected responses: {2 * len(training) - 2}/{2 * len(training) - 2} groups" in said
    found, model = read_answers(tmp_path / "answers"), data.expected
    pairs = [(found.of("K", "g5"), model.of("K", "g5"))]
    pairs += [(found.left_out(*group), model.left_out(*group)) for group in training]
    pairs += [(found.left_out(*group, True), model.left_out(*group, True)) for group in training[3:]]
    for one, other in pairs:
        for name in ("mean", "deviation", "reliability"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.power == other.power
    with pytest.raises(KeyError):
        found.left_out(*training[0], True)
    with pytest.raises(KeyError, match="elsewhere"):
        list(model.each_left_out([training[0], ("elsewhere", "g1")]))


def test_answers_may_be_none_of_a_kind(data, tmp_path):
    asked = {"held_out": [], "without_group": data.split.groups("train"), "without_perturbation": []}
    write_answers(tmp_path / "answers", data.expected, asked, "train", Console(quiet=True))
    found = read_answers(tmp_path / "answers")
    assert not found.held_out
    assert not found.without_perturbation
    assert found.without_group.keys() == set(data.split.groups("train"))
