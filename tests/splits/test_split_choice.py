"""Test perturbations that are chosen among combinations."""

import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.splits.hold_out import among_combinations

LABELS = ["a", "b", "c", "d", "a+b", "b+c", "c+d", "d+e", "b+d"]


def chosen(seed: int = 0, **keys: object) -> object:
    config = SplitConfig.model_validate({"hold_out": "perturbations", "test_among": "combinations", **keys})
    return among_combinations(config, LABELS, "+", seed).test


def test_combinations_with_all_singles_are_chosen_by_the_seed():
    assert chosen(test=4) == ["a+b", "b+c", "b+d", "c+d"]
    assert chosen(test=1.0) == ["a+b", "b+c", "b+d", "c+d"]
    assert {tuple(chosen(seed, test=0.5)) for seed in range(20)} > {("a+b", "b+c")}
    assert chosen(3, test=2) == chosen(3, test=2)
    config = SplitConfig(hold_out="perturbations", test=2)
    assert among_combinations(config, LABELS, "+", 0) is config


@pytest.mark.parametrize("test", [5, 0.1])
def test_too_many_and_none_are_refused(test):
    with pytest.raises(UserError, match="4 combinations with all single perturbations measured"):
        chosen(test=test)


@pytest.mark.parametrize("keys", [{"test": ["a+b"]}, {"folds": 3}, {"hold_out": "contexts", "contexts": ["x"]}])
def test_it_needs_a_choice(keys):
    with pytest.raises(ValueError, match="test_among=combinations needs split"):
        chosen(**keys)
