"""Where the curves go: a ``metrics.jsonl``, a tracker by name, and lines or a progress bar for people."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vcc_fm.ground.files import whole_file
from vcc_fm.training.checkpoint import read_log


def peak_memory_gb() -> float:
    """Largest memory so far, GB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class TrainingLog:
    """Writes training and validation lines of one phase; silent on all processes but the first."""

    def __init__(self, folder: Path, phase: str, steps: int, accelerator: Accelerator, console: Console, resumed: int):
        self.path = folder / "metrics.jsonl"
        self.phase, self.steps, self.accelerator, self.console = phase, steps, accelerator, console
        self._main = accelerator.is_main_process
        self._begin = time.perf_counter()
        self._first = resumed
        if self._main:
            # From the start, what it told of step 0 is told again.
            kept = read_log(self.path, resumed) if resumed else []
            with whole_file(self.path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not (self._main and console.is_terminal))
        self._task = self._bar.add_task(phase, total=steps, completed=resumed)
        self._bar.start()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._bar.update(self._task, completed=step)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line of loss terms and rates after ``step`` steps."""
        if not self._main:
            return
        line: dict[str, Any] = {"phase": self.phase, "step": step, "split": split, **values}
        with self.path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        self.accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        left = (time.perf_counter() - self._begin) / max(1, step - self._first) * (self.steps - step)
        self.console.print(
            f"{self.phase} {step}/{self.steps} {split}  {shown}  ETA {left:.0f} s", highlight=False, soft_wrap=True
        )

    def close(self) -> None:
        """Take the progress bar down."""
        self._bar.stop()
