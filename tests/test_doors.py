"""Parts that are defined outside the package, registered by one line each, run a recipe: see ``toy_parts.py``."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from program import TINY, vcc_fm

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.read import load_recipe
from vcc_fm.store.embeddings import EmbeddingStore

HERE = Path(__file__).parent


def recipe_of(folder: Path, **keys: Any) -> Path:
    content = deepcopy(TINY) | {"output": str(folder), "plugins": ["toy_parts"]}
    content["embed"] = {"cells": {"encoder": "depth", "power": 0.25}, "proteins": {"encoder": "length"}}
    content["score"] = {"preset": "correlation", "baselines": ["control", "doubled"]}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content | keys))
    return path


def test_parts_of_ones_own_run_a_recipe(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    # What it starts can import this folder's modules.
    found = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    done = vcc_fm("run", recipe, "--json", environment=found)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [stage["stage"] for stage in told["stages"]][-2:] == ["score", "count genes"]
    cells = EmbeddingStore(tmp_path / "embeddings/tiny/cell-embeddings")
    assert cells.meta["parameters"] == {"power": 0.25}
    np.testing.assert_allclose(cells.vectors[:, 0], np.expm1(cells.vectors[:, 1]) ** 0.25, rtol=1e-5)
    assert EmbeddingStore(tmp_path / "embeddings/tiny/proteins").meta["encoder"] == "length"
    run = tmp_path / "runs/tiny"
    table = json.loads((run / "scores.json").read_text())
    assert table["metrics"] == {"r": {"label": "r", "low_is_good": False, "significant": False, "panel": False}}
    assert [one["entry"] for one in table["means"]] == ["model", "control", "doubled", "nothing"] * 2
    assert 0.5 < next(one["raw"] for one in table["rows"] if one["entry"] == "model") <= 1
    assert "the truth" in (run / "report.html").read_text()
    assert json.loads((run / "genes.json").read_text()) == {"processes": 1}
    # A stage that several processes share finds its parts in each of them.
    (run / "genes.json").unlink()
    again = vcc_fm("run", recipe, "--json", "--processes", "2", environment=found)
    assert again.returncode == 0, again.stderr
    assert [stage["stage"] for stage in json.loads(again.stdout)["stages"] if stage["ran"]] == ["count genes"]
    assert json.loads((run / "genes.json").read_text()) == {"processes": 2}
    changed = vcc_fm("plan", recipe, "embed.cells.power=0.5", "--json")
    assert changed.returncode == 0, changed.stderr + changed.stdout
    assert {one["stage"] for one in json.loads(changed.stdout)["stages"] if one["done"]} == {
        "prepare",
        "embed proteins",
        "split",
    }


def test_parts_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    for keys, said in (
        ({"plugins": ["no_such_module"]}, "plugins: no_such_module cannot be imported"),
        ({"plugins": [], "score": {"preset": "vcc2062"}}, r"'vcc2062' is no preset \(did you mean vcc2026\?\)"),
        ({"plugins": [], "score": {"baselines": ["contol"]}}, r"'contol' is no baseline \(did you mean control\?\)"),
        ({"plugins": [], "embed": {"cells": {"encoder": "se"}}}, r"'se' is no cell encoder \(there are expression"),
    ):
        with pytest.raises(UserError, match=said):
            load_recipe(recipe_of(tmp_path, **keys))
