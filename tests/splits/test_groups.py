"""Which groups a phase trains and validates on, and what is refused of them."""

import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.splits.groups import seen_before, trained_on, training_groups, validation_groups
from vcc_fm.splits.split import Split

ROLES = {("K", "a"): "train", ("K", "b"): "test", ("H", "a"): "train", ("H", "b"): "train", ("T", "a"): "unused"}
SPLIT = Split("few-shot", 1, 2, 0, ROLES, dict.fromkeys(ROLES, 9), [])
CONTEXTS = ["T", "K", "H"]


def groups(**keys):
    return training_groups(SPLIT, TrainConfig(steps=1, **keys), CONTEXTS, "pretrain")


def test_a_phase_trains_on_the_training_groups_of_its_contexts():
    assert groups() == [("H", "a"), ("H", "b"), ("K", "a")]
    assert groups(contexts=["K"]) == [("K", "a")]
    assert groups(context_weights={"K": 2.0}, perturbation_weights={"b": 0.5}) == groups()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"contexts": ["K", "z"]}, r"pretrain\.contexts: there is no context z; there are H, K, T"),
        ({"contexts": ["T"]}, r"pretrain\.contexts=\['T'\]: the split leaves nothing to train on"),
        (
            {"contexts": ["K"], "context_weights": {"H": 2.0}},
            r"pretrain\.context_weights: .* 1 has the context H",
        ),
        ({"contexts": ["K"], "perturbation_weights": {"b": 2.0}}, r"perturbation_weights: .* the perturbation b"),
    ],
)
def test_what_leaves_nothing_to_train_on_is_refused(keys, said):
    with pytest.raises(UserError, match=said):
        groups(**keys)


def test_an_effect_scale_needs_validation_groups():
    with pytest.raises(UserError, match="needs validation groups"):
        validation_groups(SPLIT)


def test_held_out_groups_that_trained_a_base_are_told():
    trained = trained_on([("H", "a"), ("K", "b"), ("H", "b")], {"H": ["a", "c"]})
    assert trained == {"H": ["a", "b", "c"], "K": ["b"]}
    assert seen_before([("K", "a"), ("T", "b")], trained) == []
    (warning,) = seen_before([("K", "a"), ("H", "c"), ("K", "b")], trained)
    assert warning.startswith("the base was trained on 2 of 3 held-out groups, such as c in H: ")
