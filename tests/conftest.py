"""Fixtures that several test modules share: the folder with real data, and small h5ad files."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.recipe import Recipe

# How long an example takes says how busy the machine is, not whether the program is right.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Nor does how fast a disk says that it is safe from a power cut: what a test kills is a process, which loses nothing.
os.fsync = lambda _: None


def pytest_configure(config: pytest.Config) -> None:
    """Let workers share the cores: where each has threads for all of them, these wait for each other."""
    if workers := getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.fixture
def real_data() -> Path:
    """The folder with public data sets; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("VCC_FM_DATA")
    if folder is None:
        pytest.skip("needs real data: set VCC_FM_DATA to the folder that holds it")
    return Path(folder)


@pytest.fixture
def screen_obs() -> Callable[[int], pd.DataFrame]:
    """Builds obs of n cells: columns target (control, A, B, A+B in turn), line (K562, HepG2), gem (1, 2)."""

    def build(cells: int = 24) -> pd.DataFrame:
        row = np.arange(cells)
        return pd.DataFrame(
            {
                "target": np.array(["non-targeting", "A", "B", "A+B"])[row % 4],
                "line": np.array(["K562", "HepG2"])[row % 2],
                "gem": 1 + row // 4 % 2,
            },
            index=[f"cell{i}" for i in row],
        )

    return build


@pytest.fixture
def h5ad_file(tmp_path: Path, screen_obs: Callable[[int], pd.DataFrame]) -> Callable[..., Path]:
    """Writes an h5ad file: ``h5ad_file(X, obs=…, var=…, layers=…, raw=…)``; what is left out is made up to fit."""

    def build(
        X: Any = None,
        obs: pd.DataFrame | None = None,
        var: pd.DataFrame | None = None,
        layers: dict[str, Any] | None = None,
        raw: anndata.AnnData | None = None,
        name: str = "screen.h5ad",
    ) -> Path:
        shape = next(matrix.shape for matrix in [X, *(layers or {}).values(), np.zeros((24, 6))] if matrix is not None)
        if X is None and layers is None:
            X = np.random.default_rng(0).poisson(1.0, shape).astype(np.float32)
        obs = screen_obs(shape[0]) if obs is None else obs
        var = pd.DataFrame(index=[f"GENE{chr(65 + i)}" for i in range(shape[1])]) if var is None else var
        table = anndata.AnnData(X, obs=obs, var=var, layers=layers)
        if raw is not None:
            table.raw = raw
        table.write_h5ad(tmp_path / name)
        return tmp_path / name

    return build


@pytest.fixture
def source_config() -> Callable[..., SourceConfig]:
    """Builds the recipe of a file from ``h5ad_file``; keywords change or add keys."""

    def build(path: Path, **keys: Any) -> SourceConfig:
        return SourceConfig(
            **{"name": "s", "path": str(path), "perturbation_column": "target", "context": "K562"} | keys
        )

    return build


@pytest.fixture(scope="session", autouse=True)
def started_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :func:`scored_run`, whose process starts at once where a test asks for it, so that few wait."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "scored-run"
    if any("scored_run" in getattr(item, "fixturenames", ()) for item in request.session.items):
        with suppress(FileExistsError):  # another worker was first
            home.mkdir()
            from program import forks, score_tiny

            forks().Process(target=score_tiny, args=(home,)).start()
    return home


@pytest.fixture(scope="session")
def scored_run(started_run: Path) -> Path:
    """The recipe file of ``program.TINY``, run to its scores once for all workers; do not write beside it."""
    deadline = time.monotonic() + 300
    while not (started_run / "ended").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    said = started_run / "said"
    assert (started_run / "ended").read_text() == "well", said.read_text() if said.exists() else "it did not start"
    return started_run / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe of a tiny simulated screen whose cells are prepared, embedded and split; do not write into it."""
    # Imported here: the stages load torch and the scorer, for which tests of the sources need not wait.
    from rich.console import Console

    from vcc_fm.run.stages import run_stage, stages_of

    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "output": str(tmp_path_factory.mktemp("tiny")),
            "data": {
                "simulate": {
                    "contexts": ["alpha", "beta", "gamma"],
                    "perturbations": 8,
                    "genes": 40,
                    "cells": 16,
                    "controls": 60,
                    "depth": 2000.0,
                }
            },
            "embed": {"cells": {"width": 4}, "proteins": {"kmer": 1}},
            "split": {"hold_out": "few-shot", "contexts": ["gamma"], "test": 3, "validation": 0.4, "unseen": 0.34},
            "decoder": {
                "gene_rank": 4,
                "backbone": {
                    "model_type": "llama",
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "vocab_size": 1,
                },
                "lora": {"r": 2, "alpha": 4},
            },
            "train": {"steps": 4, "set_size": 8, "batch_sets": 4, "eval_every": 2, "checkpoint_every": 2},
        }
    )
    for stage in stages_of(recipe)[:4]:
        run_stage(stage, recipe, Console(quiet=True))
    return recipe
