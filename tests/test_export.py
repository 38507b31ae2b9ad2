"""Vectors go out into a copy of the h5ad: right cell by right cell, whole, and with their terms."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import yaml
from program import vcc_fm
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.export import export_obsm
from vcc_fm.run.inputs import source_configs
from vcc_fm.run.layout import Layout
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.store.embeddings import EmbeddingStore

QUIET = Console(quiet=True)
LINES = ProgressLines("export", "cells", QUIET)


def export(recipe: Recipe, name: str | None, file: Path, key: str = "X_state"):
    return export_obsm(recipe, source_configs(recipe, Layout(recipe).simulated), name, file, key, LINES)


def test_every_cell_gets_its_own_vector(tiny_run: Recipe, tmp_path: Path) -> None:
    result = export(tiny_run, "beta", tmp_path / "beta.h5ad")
    copy = anndata.read_h5ad(tmp_path / "beta.h5ad")
    original = anndata.read_h5ad(Layout(tiny_run).simulated / "beta.h5ad")
    assert (copy.X != original.X).nnz == 0
    assert copy.obs.equals(original.obs)
    store = EmbeddingStore(Layout(tiny_run).cell_embeddings.path)
    row_of = {key: row for row, key in enumerate(store.keys)}
    rows = np.array([row_of[f"beta:{barcode}"] for barcode in copy.obs_names])
    np.testing.assert_array_equal(copy.obsm["X_state"], store.vectors[rows])
    assert result == {
        "file": str(tmp_path / "beta.h5ad"), "key": "X_state", "cells": len(copy), "width": store.width,
        "without_vector": 0,
    }  # fmt: skip
    assert copy.uns["X_state"]["encoder"] == "expression"
    assert copy.uns["X_state"]["licence"] == store.meta["licence"]
    assert [path.name for path in tmp_path.iterdir()] == ["beta.h5ad"]


def test_cells_that_the_recipe_left_out_have_no_vector(tmp_path: Path, h5ad_file, screen_obs) -> None:
    counts = np.random.default_rng(0).poisson(3.0, (60, 6)).astype(np.float32)
    path = h5ad_file(counts, obs=screen_obs(60))
    recipe_file = tmp_path / "r.yaml"
    source = {
        "name": "s", "path": str(path), "perturbation_column": "target", "context_column": "line",
        "keep": {"gem": 1},
    }  # fmt: skip
    recipe_file.write_text(
        yaml.safe_dump(
            {
                "name": "r",
                "output": str(tmp_path),
                "data": {"sources": [source]},
                "embed": {"cells": {"width": 2}},
                "split": {"hold_out": "perturbations"},
                "train": {"steps": 1},
            }
        )
    )
    recipe = load_recipe(recipe_file)
    with pytest.raises(UserError, match="run `vcc-fm embed cells RECIPE` first"):
        export(recipe, None, tmp_path / "out.h5ad")
    for stage in stages_of(recipe):
        if stage.name in ("prepare", "embed cells"):
            run_stage(stage, recipe, QUIET)
    result = export(recipe, None, tmp_path / "out.h5ad", "X_pca")
    copy = anndata.read_h5ad(tmp_path / "out.h5ad")
    without = np.isnan(copy.obsm["X_pca"]).all(axis=1)
    assert result["without_vector"] == 28
    assert (without == (copy.obs["gem"] != 1).to_numpy()).all()
    with pytest.raises(UserError, match=r"choose one of s, found t"):
        export(recipe, "t", tmp_path / "other.h5ad")
    # Where the key is taken nothing is written.
    copy.write_h5ad(path)
    for stage in stages_of(recipe):
        if stage.name in ("prepare", "embed cells"):
            run_stage(stage, recipe, QUIET)
    with pytest.raises(UserError, match=r"screen.h5ad: has obsm/X_pca already; choose another --key"):
        export(recipe, None, tmp_path / "other.h5ad", "X_pca")
    assert not list(tmp_path.glob("*other*"))


def test_by_command(tiny_run: Recipe, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    recipe.write_text(tiny_run.model_dump_json())
    done = vcc_fm("export", "obsm", recipe, tmp_path / "a.h5ad", "--source", "alpha", "--json")
    assert done.returncode == 0, done.stderr
    assert '"without_vector": 0' in done.stdout
    assert '"key": "X_pca"' in done.stdout
    refused = vcc_fm("export", "obsm", recipe, tmp_path / "x.h5ad")
    assert refused.returncode == 2
    assert "choose one of alpha, beta, gamma" in refused.stderr
