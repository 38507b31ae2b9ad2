"""The program as its users run it, on a tiny simulated recipe; for tests of command line, plan and stages."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import yaml
from rich.console import Console

if TYPE_CHECKING:  # these load torch, for which tests of the command line need not wait
    from vcc_fm.cellsets.dataset import Dataset
    from vcc_fm.recipe.recipe import Recipe

QUIET = Console(quiet=True)

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "simulate": {
            "contexts": ["alpha", "beta", "gamma"],
            "perturbations": 8,
            "genes": 50,
            "cells": 12,
            "controls": 60,
            "depth": 2000.0,
        }
    },
    "embed": {"cells": {"width": 4}, "proteins": {"kmer": 1}},
    "split": {"hold_out": "few-shot", "contexts": ["gamma"], "test": 3, "validation": 0.4},
    "decoder": {
        "base": "pretrain",
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
    "pretrain": {
        "contexts": ["alpha", "beta"],
        "steps": 6,
        "set_size": 8,
        "batch_sets": 4,
        "eval_every": 3,
        "checkpoint_every": 2,
        "tracker": "none",
    },
    "score": {"baselines": ["control", "mean-response", "other-contexts"]},
    "train": {
        "steps": 6,
        "set_size": 8,
        "batch_sets": 4,
        "eval_every": 3,
        "checkpoint_every": 2,
        "tracker": "none",
    },
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def write_recipe(folder: Path) -> Path:
    """The tiny recipe, with its outputs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "output": str(folder)}))
    return path


def command(*arguments: Any) -> list[str]:
    """The command line of ``vcc-fm``, for a process of its own."""
    return [sys.executable, "-c", "from vcc_fm.cli import main; main()", *map(str, arguments)]


def vcc_fm(*arguments: Any, environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.CompletedProcess[str]:
    """Run ``vcc-fm`` in a process of its own, which need not import anything; ``environment`` is added to its own."""
    return at_once(arguments, environment=environment)[0]


def at_once(
    *commands: Sequence[Any], environment: Mapping[str, str] = MappingProxyType({})
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``vcc-fm`` as :func:`vcc_fm` does, with several command lines at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        done, processes = [], []
        for number, arguments in enumerate(commands):
            words, out, err = list(map(str, arguments)), Path(folder, f"out{number}"), Path(folder, f"err{number}")
            processes.append(forks().Process(target=_command, args=(words, out, err, dict(environment))))
            processes[-1].start()
            done.append((words, out, err))
        deadline = time.monotonic() + 300
        for process, (words, _, err) in zip(processes, done, strict=True):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                raise TimeoutError(f"vcc-fm {' '.join(words)}: {err.read_text()}")
        return [
            subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())
            for process, (words, out, err) in zip(processes, done, strict=True)
        ]


def _command(words: list[str], out: Path, err: Path, environment: dict[str, str]) -> None:
    """The command line, printing into files; for a forked process."""
    import torch

    from vcc_fm.cli import main

    torch.set_num_threads(1)
    os.environ.update(environment, OMP_NUM_THREADS="1")
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["vcc-fm", *words]
    main()


def run_until(recipe: Path, last: str, said: Path, overrides: tuple[str, ...] = ()) -> None:
    """Run the stages up to ``last`` as `vcc-fm run` does, printing into the file ``said``; for a forked process."""
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.script import sole_writer
    from vcc_fm.run.stages import run_stage, stages_of

    loaded = load_recipe(recipe, list(overrides))
    with said.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        console = Console(file=file, width=200)
        with sole_writer(loaded.run_folder, console):
            for stage in stages_of(loaded):
                run_stage(stage, loaded, console)
                if stage.name == last:
                    return


def score_tiny(home: Path) -> None:
    """Run the tiny recipe in ``home`` to its scores; how it ended is in the file ``ended``. For a forked process."""
    how = "badly"
    try:
        run_until(write_recipe(home), "score", home / "said")
        how = "well"
    finally:
        (home / "ending").write_text(how)
        (home / "ending").rename(home / "ended")


def train_decoder(recipe: Recipe, data: Dataset, phase: str, console: Console = QUIET) -> None:
    """Train one phase of the first fold on ``data``, as its stage does."""
    from vcc_fm.run.layout import Layout
    from vcc_fm.run.train import train_on

    output = Layout(recipe).decoder(0, phase)
    output.forget()
    train_on(data, recipe, output, console)
    output.mark(0.0)


def forks() -> Any:
    """A multiprocessing context whose processes start at once: what they import has been imported for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "program",
            "vcc_fm.cli",
            "vcc_fm.run.stages",
            "vcc_fm.training.phase",
            "vcc_fm.prediction.predict",
            "vcc_fm.encoders.cells.embed",
        ]
    )
    return context


def results(recipe: Path) -> dict[str, Any]:
    """What a finished run says: bytes of the weights, and predicted and measured counts and labels as lists."""
    run = recipe.parent / "runs" / "tiny"
    found: dict[str, Any] = {
        f"{phase} weights": (run / phase / "model.safetensors").read_bytes() for phase in ("base", "model")
    }
    for path in [run / "predictions.h5ad", run / "truth.h5ad", *sorted((run / "baselines").glob("*.h5ad"))]:
        table = anndata.read_h5ad(path)
        found[f"{path.name} counts"] = np.asarray(table.X.todense()).tolist()
        found[f"{path.name} labels"] = table.obs.astype(str).to_numpy().tolist()
    return found
