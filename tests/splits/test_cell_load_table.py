"""Which context is whose: the datasets of a cell-load table, and the sources of a recipe by name and by path."""

import os
from pathlib import Path

import numpy as np
import pytest
from program import TINY
from rich.console import Console
from tiny_screens import CONTROL, screen, write_screen

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.run.layout import Layout
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.splits.cell_load_table import CellLoadTable, read_cell_load_table
from vcc_fm.splits.hold_out import make_splits
from vcc_fm.splits.split import Split
from vcc_fm.store.cells import CellStore

# As users write it: one dataset trains, another stands in [zeroshot] alone.
HELD = """[datasets]
screen = "/data/train.h5ad"
val_hesc = "/data/hesc.h5ad"
[training]
screen = "train"
[zeroshot]
"val_hesc.hesc" = "test"
[fewshot]
"""
SOURCES = {
    "k562": {"screen": "/data/train.h5ad"},
    "rpe1": {"screen": "/data/train.h5ad"},
    "hesc": {"val_hesc": "/data/hesc.h5ad"},
}


def read(folder: Path, text: str, contexts: dict[str, dict[str, str]]) -> CellLoadTable:
    (folder / "t.toml").write_text(text)
    return read_cell_load_table(folder / "t.toml", contexts)


def test_a_dataset_that_stands_in_zeroshot_alone(tmp_path):
    table = read(tmp_path, HELD, SOURCES)
    assert table.zeroshot == {"hesc": "test"}
    assert table.unlisted == {"k562": True, "rpe1": True}
    # What the held-out dataset has besides trains nowhere.
    besides = read(tmp_path, HELD, SOURCES | {"h9": {"val_hesc": "/data/hesc.h5ad"}})
    assert besides.unlisted == {"h9": False, "k562": True, "rpe1": True}


def test_the_split_gives_roles_by_source(tmp_path):
    (tmp_path / "t.toml").write_text(HELD)
    contexts = SOURCES | {"h9": {"val_hesc": "/data/hesc.h5ad"}}
    cells = {(context, label): 9 for context in contexts for label in ("A", "B", "control")}
    config = SplitConfig(hold_out="table", table=str(tmp_path / "t.toml"))
    (split,) = make_splits(config, cells, "control", "+", 0, contexts)
    by_role = {role: {context for context, _ in split.groups(role)} for role in ("train", "test", "unused")}
    assert by_role == {"train": {"k562", "rpe1"}, "test": {"hesc"}, "unused": {"h9"}}


def test_plan_and_split_find_the_sources_of_a_recipe(tmp_path):
    labels = np.array([CONTROL, "a", "b", "c"])[np.arange(48) % 4]
    counts = np.random.default_rng(0).poisson(3.0, (48, 6))
    train = screen(counts, np.array(["k562", "rpe1"])[np.arange(48) // 24], "1", labels)
    hesc = screen(counts, "hesc", "1", labels)
    sources = [write_screen(tmp_path, "mine", train), write_screen(tmp_path, "val_hesc", hesc)]
    (tmp_path / "t.toml").write_text(HELD.replace("/data/train", str(tmp_path / "{mine,yours}")))
    (tmp_path / "p.fasta").write_text("".join(f">{gene}\nMEEPQSD\n" for gene in "abcdef"))
    content = {
        "name": "r",
        "output": str(tmp_path),
        "data": {"sources": [source.model_dump() for source in sources]},
        "embed": {"cells": {"width": 2}, "proteins": {"kmer": 1, "fasta": str(tmp_path / "p.fasta")}},
        "split": {"hold_out": "table", "table": str(tmp_path / "t.toml")},
    }
    recipe = Recipe.model_validate(TINY | content)
    (planned,) = make_plan(recipe, 1)["split"]
    for stage in stages_of(recipe)[:4]:
        run_stage(stage, recipe, Console(quiet=True))
    assert CellStore(Layout(recipe).cells.path).context_sources == [
        ("hesc", "val_hesc"),
        ("k562", "mine"),
        ("rpe1", "mine"),
    ]
    split = Split.read(Layout(recipe).split(0))
    assert {context for context, _ in split.groups("train")} == {"k562", "rpe1"}
    assert {context for context, _ in split.groups("test")} == {"hesc"}
    assert planned["counts"] == split.counts()
    # Where a source lies says which dataset it is: a split that was made before is not kept.
    before = Layout(recipe).cells.fingerprint, Layout(recipe).splits.fingerprint
    (tmp_path / "mine.h5ad").rename(tmp_path / "elsewhere.h5ad")
    content["data"]["sources"][0]["path"] = str(tmp_path / "elsewhere.h5ad")
    moved = Layout(Recipe.model_validate(TINY | content))
    assert moved.cells.fingerprint == before[0]
    assert moved.splits.fingerprint != before[1]


@pytest.mark.parametrize(
    ("where", "path"),
    [
        ("/data/train.h5ad", "/data/train.h5ad"),
        ("/data/", "/data/train.h5ad"),
        ("/data/*.h5ad", "/data/train.h5ad"),
        ("/data/{train,more}.h5ad", "/data/train.h5ad"),
        ("/{data,other}/{a,t?ain}.*", "/data/train.h5ad"),
        ("/data/../data/train.h5ad", "/data/./train.h5ad"),
        ("$TABLES/train.h5ad", "${TABLES}/train.h5ad"),
        ("train.h5ad", os.path.abspath("train.h5ad")),
        ("/data/[1].zarr", "/data/[1].zarr"),
    ],
)
def test_a_source_of_another_name_is_found_by_its_path(tmp_path, monkeypatch, where, path):
    monkeypatch.setenv("TABLES", str(tmp_path))
    text = HELD.replace('"/data/train.h5ad"', f'"{where}"')
    held = {"held": "/elsewhere/hesc.h5ad"}
    table = read(tmp_path, text.replace("/data/hesc", "/elsewhere/hesc"), {"k562": {"mine": path}, "hesc": held})
    assert table.unlisted == {"k562": True}


def test_a_name_goes_before_a_path(tmp_path):
    # Two copies of a table: paths are of another machine, or swapped.
    swapped = {"k562": {"screen": "/data/hesc.h5ad"}, "hesc": {"val_hesc": "/data/train.h5ad"}}
    assert read(tmp_path, HELD, swapped).unlisted == {"k562": True}


@pytest.mark.parametrize(
    ("text", "contexts", "message"),
    [
        (
            HELD,
            SOURCES | {"h9": {"other": "/data/h9.h5ad"}},
            "context 'h9' is in no section.*its source is none of them",
        ),
        (
            HELD,
            SOURCES | {"both": {"screen": "/data/train.h5ad", "val_hesc": "/data/hesc.h5ad"}},
            "context 'both' is in no section.*it is in screen, val_hesc",
        ),
        (
            HELD.replace("/data/hesc.h5ad", "/data/"),
            SOURCES | {"h9": {"other": "/data/train.h5ad"}},
            "context 'h9' is in no section.*it is in screen, val_hesc",
        ),
        (
            HELD.replace("val_hesc.hesc", "screen.hesc"),
            SOURCES,
            r"\[zeroshot\] \"screen.hesc\": dataset 'screen' has no context 'hesc'; it has k562, rpe1",
        ),
        (
            HELD.replace("val_hesc.hesc", "val_hesc.k562"),
            {"k562": {"screen": "", "val_hesc": ""}},
            "context 'k562' is also in dataset screen, of which nothing is said",
        ),
    ],
)
def test_a_context_that_cannot_be_placed_is_refused(tmp_path, text, contexts, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, contexts)


def test_one_context_named_for_each_of_its_datasets(tmp_path):
    both = {"hesc": {"screen": "", "val_hesc": ""}, "k562": {"screen": ""}}
    table = read(tmp_path, HELD.replace("[fewshot]", '"screen.hesc" = "test"'), both)
    assert table.zeroshot == {"hesc": "test"}


def test_without_matching_sources_a_table_whose_datasets_all_train_is_read(tmp_path):
    text = HELD.replace("[zeroshot]", 'val_hesc = "train"\n[zeroshot]')
    for contexts in ({"k562": {}, "hesc": {}}, {"k562": {"a": "/x"}, "hesc": {"b": "/y"}}):
        assert read(tmp_path, text, contexts).unlisted == {"k562": True}


def test_a_label_in_val_and_test_is_a_test_label(tmp_path):
    text = HELD + '[fewshot."screen.rpe1"]\nval = ["A", "B"]\ntest = ["A", "C"]\n'
    table = read(tmp_path, text, SOURCES)
    assert table.fewshot == {"rpe1": {"val": ["B"], "test": ["A", "C"]}}
    (warning,) = table.warnings
    assert warning.endswith("A in both val and test of context rpe1: taken as test alone")
    cells = {(context, label): 9 for context in SOURCES for label in ("A", "B", "C", "D", "control")}
    config = SplitConfig(hold_out="table", table=str(tmp_path / "t.toml"))
    (split,) = make_splits(config, cells, "control", "+", 0, SOURCES)
    assert split.roles["rpe1", "A"] == "test"
    assert split.groups("validation") == [("rpe1", "B")]
    assert split.warnings == table.warnings
