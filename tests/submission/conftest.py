"""The Virtual Cell Challenge in small: three contexts, five perturbations, four cells each, 40 genes in two orders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from submission_kit import TARGETS, Kit, random_counts

from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.store.cells import CellStore


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    cells = pd.DataFrame(
        [(context, target, "b") for context in "ABC" for target in TARGETS for _ in range(4)],
        columns=["context", "perturbation", "batch"],
    )
    genes = [f"G{number}" for number in range(40)]
    axis = np.random.default_rng(1).permutation(genes).tolist()
    targets = "target_gene,n_cells\n" + "".join(f"{target},4\n" for target in TARGETS)
    manifest = {"contexts": ["A", "B", "C"], "panel_id": "small-1"}
    return Kit(tmp_path, cells, random_counts(len(cells), 40), genes, axis, targets, manifest)


@pytest.fixture
def kit2025(tmp_path: Path, tiny_run: Recipe) -> Kit:
    store = CellStore(Layout(tiny_run).cells.path)
    targets = store.perturbations[:3]
    assert store.control not in targets
    cells = pd.DataFrame({"context": "gamma", "perturbation": np.repeat(targets, 5), "batch": "b"})
    axis = np.random.default_rng(1).permutation(store.genes).tolist()
    text = "target_gene,n_cells,median_umi_per_cell\n" + "".join(f"{target},2925,54551.0\n" for target in targets)
    return Kit(tmp_path, cells, random_counts(len(cells), len(axis)), store.genes, axis, text, None, "", lambda: store)
