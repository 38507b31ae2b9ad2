"""A prepared tiny screen, and a trainer on it in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.load import load_dataset
from vcc_fm.run.stages import run_stage, stages_of

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"simulate": {"contexts": ["a", "b", "c"], "perturbations": 8, "genes": 40, "cells": 12, "controls": 40}},
    "embed": {"cells": {"width": 6}},
    "split": {"hold_out": "few-shot", "contexts": ["c"], "test": 3, "validation": 0},
    "decoder": {
        "base": "pretrain",
        "backbone": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 1,
        },
        "gene_rank": 8,
        "lora": {"r": 4, "alpha": 8},
    },
    "pretrain": {"contexts": ["a", "b"], "steps": 6, "set_size": 6, "batch_sets": 8, "tracker": "none"},
    "train": {
        "steps": 6,
        "set_size": 6,
        "batch_sets": 8,
        "eval_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "tracker": "none",
    },
}


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose stores and split are made, in a folder of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "output": str(folder)}))
    recipe = load_recipe(path)
    for stage in stages_of(recipe):
        if stage.name == "train":
            break
        run_stage(stage, recipe, Console(quiet=True))
    return path


@pytest.fixture
def tiny(tiny_recipe: Path) -> Callable[..., tuple[Recipe, Dataset]]:
    """The tiny recipe with overrides, and its data; the thread count is one, so that sums have one order.

    Without validation groups a phase ends with its last weights, so that a test sees what training did. With
    ``validation`` the test groups are validation groups.
    """
    torch.set_num_threads(1)

    def load(*overrides: str, validation: bool = False) -> tuple[Recipe, Dataset]:
        recipe = load_recipe(tiny_recipe, list(overrides))
        data = replace(load_dataset(recipe, 0))  # what a test does to it, no other sees
        if not validation:
            return recipe, data
        roles = {group: "validation" if role == "test" else role for group, role in data.split.roles.items()}
        return recipe, replace(data, split=replace(data.split, roles=roles))

    return load
