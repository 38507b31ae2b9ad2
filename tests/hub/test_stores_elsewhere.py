"""Recipes that take cells, vectors and sources from the Hub, or from another folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import HubServer
from program import QUIET, TINY

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.hub import push
from vcc_fm.pipeline import PerturbationPipeline
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore

REPO = "ORG/stores"


@pytest.fixture
def stores(hub: HubServer, finished: Recipe, tmp_path: Path) -> str:
    """Address of a dataset with the stores of the finished run."""
    push(finished.embeddings_folder, REPO, "dataset", "stores")
    return f"hf://datasets/{REPO}"


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({**TINY, "output": str(folder), **sections}))
    return load_recipe(path)


def taken(folder: Path, where: str) -> Recipe:
    """A recipe whose three stores are those below ``where``."""
    embed = {
        "cells": {"encoder": "store", "store": f"{where}/cell-embeddings"},
        "proteins": {"encoder": "store", "store": f"{where}/proteins"},
    }
    return recipe_of(folder, data={"store": f"{where}/cells"}, embed=embed)


def run_to(recipe: Recipe, last: str) -> None:
    for stage in stages_of(recipe):
        run_stage(stage, recipe, QUIET)
        if stage.name == last:
            return


def test_stores_of_the_hub_train_the_same_model(hub: HubServer, stores: str, finished: Recipe, tmp_path: Path) -> None:
    plan = make_plan(taken(tmp_path / "a", stores), 1)
    assert plan["to_fetch"] == [f"{stores}/cells"]
    assert not plan["problems"]
    recipe = taken(tmp_path / "a", stores)
    run_to(recipe, "train")
    ours, theirs = (Layout(one).decoder(0, "train").path / "model.safetensors" for one in (finished, recipe))
    assert ours.read_bytes() == theirs.read_bytes()
    assert all(not stage.faults(Layout(recipe)) for stage in stages_of(recipe)[:5])
    # What was taken is shared as what it is: the encoder of the vectors, not the taking of them.
    here, there = (PerturbationPipeline.from_pretrained(one.run_folder) for one in (finished, recipe))
    assert there.bundle.settings == here.bundle.settings
    controls, asked = here.control_cells("gamma"), here.perturbations[:1]
    counts = [np.asarray(one(controls, asked, cells=20).X.todense()) for one in (here, there)]
    np.testing.assert_array_equal(*counts)


def test_stores_of_another_folder(finished: Recipe, tmp_path: Path) -> None:
    recipe = taken(tmp_path, str(finished.embeddings_folder))
    plan = make_plan(recipe, 1)
    assert not plan["problems"]
    assert plan["cells"]["cells"] == len(CellStore(finished.embeddings_folder / "cells"))
    run_to(recipe, "split")
    ours = Layout(recipe).cells.path
    assert ours.resolve() != (finished.embeddings_folder / "cells").resolve()
    assert all(file.is_symlink() for file in ours.iterdir())
    first, second = (EmbeddingStore(Layout(one).cell_embeddings.path) for one in (finished, recipe))
    np.testing.assert_array_equal(first.vectors, second.vectors)
    run_stage(stages_of(recipe)[0], recipe, QUIET)  # done before: nothing is made again


def test_a_store_that_was_taken_is_never_written(finished: Recipe, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(finished.embeddings_folder / "cells", shared)
    shutil.copytree(shared, tmp_path / "shared.old")
    before = {path: path.read_bytes() for path in [*shared.iterdir(), *(tmp_path / "shared.old").iterdir()]}
    run_to(recipe_of(tmp_path / "a", data={"store": str(shared)}), "prepare")
    # Its own store, by its own name; then sources again.
    own = Layout(recipe_of(tmp_path / "a", data=TINY["data"])).cells.path
    run_to(recipe_of(tmp_path / "a", data={"store": str(own)}), "prepare")
    assert len(CellStore(own))
    run_to(recipe_of(tmp_path / "a", data=TINY["data"], seed=1), "prepare")
    run_to(recipe_of(tmp_path / "a", data={"store": str(own)}), "prepare")
    assert CellStore(own).meta["order_seed"] == 1
    assert {path: path.read_bytes() for path in before} == before


def test_a_source_of_the_hub_is_that_file(hub: HubServer, finished: Recipe, tmp_path: Path) -> None:
    folder = finished.embeddings_folder / "simulated"
    push(folder, "ORG/raw", "dataset", "sources")
    sources = [
        {
            "name": context,
            "path": f"hf://datasets/ORG/raw/{context}.h5ad",
            "perturbation_column": "perturbation",
            "context": context,
            "batch_column": "batch",
            "licence": "CC BY 4.0",
            "citation": "Someone 2026",
        }
        for context in ("alpha", "beta")
    ]
    recipe = recipe_of(tmp_path, data={"sources": sources}, embed=TINY["embed"])
    plan = make_plan(recipe, 1)
    assert plan["to_fetch"] == [one["path"] for one in sources]
    run_to(recipe, "prepare")
    cells, expected = CellStore(Layout(recipe).cells.path), CellStore(finished.embeddings_folder / "cells")
    theirs = {barcode.removeprefix("alpha:").removeprefix("beta:"): row for row, barcode in enumerate(cells.barcodes)}
    assert len(theirs) == len(cells)
    assert cells.depth.sum() == sum(expected.depth[expected.rows(context)].sum() for context in ("alpha", "beta"))
    assert [(one["licence"], one["citation"]) for one in cells.meta["sources"]] == [("CC BY 4.0", "Someone 2026")] * 2
    run_stage(stages_of(recipe)[0], recipe, QUIET)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"data": {"store": "none"}}, "none: is no store"),
        ({"data": {"store": "HERE/proteins"}}, "holds vectors, not cells"),
        ({"data": {"store": "HERE/cells", "simulate": {}}}, "give one of simulate, sources and store; found simulate"),
        ({"data": {}}, "found none of them"),
        (
            {"data": {"store": "HERE/cells"}, "embed": {"cells": {"encoder": "store", "store": "HERE/proteins"}}},
            "holds vectors of proteins, not of cells",
        ),
        (
            {
                "data": {"store": "HERE/cells"},
                "embed": {"proteins": {"encoder": "store", "store": "HERE/cell-embeddings"}},
            },
            "holds vectors of cells, not of proteins",
        ),
    ],
)
def test_stores_that_do_not_fit(finished: Recipe, tmp_path: Path, section: dict[str, Any], message: str) -> None:
    text = json.dumps(section).replace("HERE", str(finished.embeddings_folder))
    with pytest.raises(UserError, match=message):
        run_to(recipe_of(tmp_path, **json.loads(text)), "embed cells")


def test_vectors_of_other_cells_are_refused(finished: Recipe, tmp_path: Path) -> None:
    embed = {"cells": {"encoder": "store", "store": str(finished.embeddings_folder / "cell-embeddings")}}
    other = {"simulate": TINY["data"]["simulate"] | {"contexts": ["alpha", "other"]}}
    with pytest.raises(UserError, match=r"has no vector of [\d,]+ of [\d,]+ cells, such as other"):
        run_to(recipe_of(tmp_path, data=other, embed=embed), "embed cells")


def test_a_store_with_a_path_that_is_no_folder(hub: HubServer, stores: str, tmp_path: Path) -> None:
    for where, message in (
        (stores, "write hf://datasets/ORG/NAME/FOLDER"),
        (f"{stores}/none", "is no store"),
        ("hf://datasets/ORG/gone/cells", "no dataset repository ORG/gone"),
    ):
        with pytest.raises(UserError, match=message):
            run_to(recipe_of(tmp_path, data={"store": where}), "prepare")
