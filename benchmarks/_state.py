"""Arc's `state tx` from its command line: a black box, which is run and not read."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

PEER = "state tx train"
INSTALLED = importlib.util.find_spec("state") is not None


class Ran(NamedTuple):
    """One run: what was printed, seconds of the clock, and seconds of the processor."""

    said: str
    seconds: float
    processor: float

    def lines(self, word: str) -> list[str]:
        """What was printed on lines with a word, whatever its case."""
        return [line.strip() for line in self.said.splitlines() if word in line.lower()]


def train(folder: Path, name: str, control: str, keys: Mapping[str, Any]) -> Ran:
    """`state tx train` on the cells that ``folder/split.toml`` names; the run becomes ``folder/name``.

    Args:
        folder: of the table; its cells have obs ``context``, ``batch`` and ``perturbation``.
        name: of the run.
        control: label of control cells.
        keys: State's settings, beside those of labels, files and logging.
    """
    columns = {"pert_col": "perturbation", "cell_type_key": "context", "batch_col": "batch", "control_pert": control}
    if not torch.cuda.is_available():
        columns |= {"num_workers": "0", "pin_memory": "false"}
    given = {"data.kwargs.toml_config_path": folder / "split.toml", "training.ckpt_every_n_steps": 1_000_000}
    given |= {f"data.kwargs.{key}": value for key, value in columns.items()}
    given |= {"use_wandb": "false", "output_dir": folder, "name": name, "overwrite": "true", **keys}
    return run("train", [f"{key}={value}" for key, value in given.items()])


def run(command: str, arguments: list[str]) -> Ran:
    """Run `state tx COMMAND`, on a CPU in one thread of arithmetic."""
    quiet = {"WANDB_MODE": "disabled"}
    if not torch.cuda.is_available():
        quiet |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    before, begin = os.times(), time.perf_counter()
    called = [sys.executable, "-m", "state", "tx", command, *arguments]
    done = subprocess.run(called, env=os.environ | quiet, capture_output=True, text=True)
    after, seconds = os.times(), time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"state tx {command}: {done.stderr[-2000:]}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Ran(done.stdout + done.stderr, seconds, processor)
