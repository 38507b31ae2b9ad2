"""Paths of a recipe's outputs, and what identifies a file."""

from __future__ import annotations

import hashlib
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from program import TINY

from vcc_fm.ground.identity import file_identity, folder_identity
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout


def recipe(folder: Path, **keys: Any) -> Recipe:
    return Recipe.model_validate({**deepcopy(TINY), "output": str(folder), **keys})


def test_outputs_of_one_fold_lie_in_the_run_folder_and_of_several_in_their_own(tmp_path):
    one = Layout(recipe(tmp_path))
    assert one.decoder(0, "pretrain").path == tmp_path / "runs/tiny/base"
    assert one.decoder(0, "train").path == tmp_path / "runs/tiny/model"
    assert one.prediction("control") == tmp_path / "runs/tiny/baselines/control.h5ad"
    several = Layout(recipe(tmp_path, split={"hold_out": "perturbations", "folds": 2}))
    assert several.split(1) == tmp_path / "runs/tiny/fold-1/split.json"
    assert several.prediction("model") == tmp_path / "runs/tiny/predictions.h5ad"
    assert several.decoder(0, "train").fingerprint != several.decoder(1, "train").fingerprint


def test_a_file_is_known_by_its_content_not_its_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"x" * (3 << 20))
    b.write_bytes(a.read_bytes())
    assert file_identity(str(a)) == file_identity(str(b))
    for changed in (b"y" + a.read_bytes()[1:], a.read_bytes()[:-1] + b"y", a.read_bytes() + b"x"):
        b.write_bytes(changed)
        assert file_identity(str(a)) != file_identity(str(b))
    assert file_identity(str(tmp_path)) == "absent"
    assert file_identity(str(tmp_path / "none")) == "absent"
    assert file_identity("${VCC_FM_NOT_SET}/x") == "absent"


def test_a_label_that_is_mended_in_place_changes_the_identity_of_an_h5ad_file(tmp_path):
    """In the middle of a large file: neither its size nor its ends tell of it."""
    obs = pd.DataFrame({"target": pd.Categorical(["A", "B"] * 2000), "depth": np.arange(4000.0)})
    obs.index = [f"cell {number}" for number in range(4000)]
    table = anndata.AnnData(np.ones((4000, 300), np.float32), obs=obs)
    # A file has its parts in alphabetical order: what comes after the labels is larger than the end that is read.
    table.obsm["X_pca"] = np.ones((4000, 100), np.float32)
    path = tmp_path / "a.h5ad"
    table.write_h5ad(path)

    def unread() -> tuple[int, bytes, bytes]:
        return path.stat().st_size, path.read_bytes()[: 1 << 20], path.read_bytes()[-(1 << 20) :]

    found, before = {file_identity(str(path))}, unread()
    for part, change in (
        ("obs/target/codes", lambda codes: 1 - codes),
        ("obs/depth", lambda depth: depth + 1),
        ("obs/target/categories", lambda names: [b"A", b"C"]),
        ("obs/_index", lambda names: names[::-1]),
        ("var/_index", lambda names: names[::-1]),
    ):
        with h5py.File(path, "r+") as file:
            file[part][()] = change(file[part][()])
        # Texts are written at the end.
        assert unread() == before or part not in ("obs/target/codes", "obs/depth")
        identity = file_identity(str(path))
        assert identity not in found, part
        assert identity == file_identity(str(path))
        found.add(identity)
    with h5py.File(path, "r+") as file:  # counts in place of something else, with another matrix behind them
        file["X"][()] *= 2
    assert unread()[0] == before[0]
    assert file_identity(str(path)) not in found
    path.write_bytes(path.read_bytes()[: 3 << 20])  # cut short: not to be opened, and no error here
    assert file_identity(str(path)) not in found


def test_a_file_that_stays_as_it_is_is_read_once_in_a_process(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * (3 << 20))
    reads = []
    monkeypatch.setattr(hashlib, "sha256", lambda *held, real=hashlib.sha256: reads.append(1) or real(*held))
    just_written = [file_identity(str(path)) for _ in range(2)]
    assert len(reads) == 2  # another write could have the same time
    hour = 3600 * 10**9
    os.utime(path, ns=(hour, hour))
    assert [file_identity(str(path)) for _ in range(5)] == 5 * just_written[:1]
    assert len(reads) == 3
    path.write_bytes(b"y" * (3 << 20))
    os.utime(path, ns=(2 * hour, 2 * hour))
    assert file_identity(str(path)) != just_written[0]


def test_a_source_that_moves_is_the_same_and_one_that_changes_is_another(tmp_path):
    def fingerprint(name: str, content: bytes, **keys: Any) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        source = {"name": "s", "path": str(path), "perturbation_column": "target", "context": "K562", **keys}
        return Layout(recipe(tmp_path, data={"sources": [source]})).cells.fingerprint

    first = fingerprint("a.h5ad", b"1")
    assert fingerprint("b.h5ad", b"1") == first
    assert fingerprint("b.h5ad", b"1", get="https://example.org") == first
    assert fingerprint("a.h5ad", b"2") != first
    assert fingerprint("a.h5ad", b"1", control="NT") != first


def test_what_a_file_must_be_is_no_part_of_what_is_made_of_it(tmp_path):
    source = {"name": "s", "path": str(tmp_path / "s.h5ad"), "perturbation_column": "gene", "context": "a"}
    proteins = {"encoder": "esm2", "fasta": str(tmp_path / "p.fa"), "untrained": {}}
    plain = Layout(recipe(tmp_path, data={"sources": [source]}, embed={"proteins": proteins}))
    data = {"sources": [source | {"sha256": "2" * 64}], "names": {"sha256": "1" * 64}}
    strict = Layout(recipe(tmp_path, data=data, embed={"proteins": proteins | {"sha256": "0" * 64}}))
    assert strict.cells.fingerprint == plain.cells.fingerprint
    assert strict.proteins.fingerprint == plain.proteins.fingerprint


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_another_base_in_the_same_folder_is_another_training(tmp_path, file):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (base / name).write_text("{}")
    layout = Layout(recipe(tmp_path, decoder={"base": str(base)}, pretrain=None))
    before = layout.decoder(0, "train").fingerprint
    (base / "README.md").write_text("a card")
    assert layout.decoder(0, "train").fingerprint == before
    (base / file).write_text("{ }")
    assert layout.decoder(0, "train").fingerprint != before
    assert set(folder_identity(base)) == {"config.json", "model.safetensors"}


def test_a_folder_called_pretrain_is_not_taken_for_the_base_that_the_recipe_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = Layout(recipe(tmp_path)).decoder(0, "train").fingerprint
    for name in ("pretrain", "scratch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert Layout(recipe(tmp_path)).decoder(0, "train").fingerprint == before
    pretrain = {**TINY["pretrain"], "lr": 0.5}
    assert Layout(recipe(tmp_path, pretrain=pretrain)).decoder(0, "train").fingerprint != before
