"""Checkpoints to resume from, and the weights that did best on the validation split."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vcc_fm.store.folder import read_json, write_json

_STEP = re.compile(r"^step-(\d+)$")


class Checkpoints:
    """The folder ``checkpoints/`` of a training phase.

    ``step-N/`` holds what Accelerate needs to go on after step N, bit for bit; it is written by a run for itself.
    ``best.safetensors`` holds the trainable weights with the lowest validation loss so far.
    """

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator):
        self.folder, self.keep, self.accelerator = folder, keep, accelerator

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [path for path in self.folder.glob("step-*") if _STEP.match(path.name)]
        return max(found, key=_step_of, default=None)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after ``step`` optimiser steps; all processes call it."""
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f"partial-step-{step:08d}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(partial / "progress.json", {"step": step, **state})
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            whole = sorted((p for p in self.folder.glob("step-*") if _STEP.match(p.name)), key=_step_of)
            for old in whole[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> dict[str, Any] | None:
        """Load the newest checkpoint into what Accelerate has prepared; its ``progress.json``, or None."""
        latest = self.latest()
        if latest is None:
            return None
        self.accelerator.load_state(str(latest))
        return read_json(latest / "progress.json")

    def save_best(self, model: nn.Module) -> None:
        """Keep the trainable weights of ``model`` as the best; all processes call it."""
        weights = self.accelerator.get_state_dict(model)
        if self.accelerator.is_main_process:
            trainable = {
                name for name, value in self.accelerator.unwrap_model(model).named_parameters() if value.requires_grad
            }
            kept = {name: weights[name].contiguous().cpu() for name in sorted(trainable)}
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / "best.safetensors.partial"
            save_file(kept, partial)
            partial.replace(self.folder / "best.safetensors")
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module) -> None:
        """Put the best weights into an unwrapped model."""
        best = load_file(self.folder / "best.safetensors")
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, value in best.items():
                parameters[name].copy_(value)


def _step_of(path: Path) -> int:
    match = _STEP.match(path.name)
    assert match is not None
    return int(match.group(1))


def save_decoder(model: nn.Module, folder: Path, extra: dict[str, Any]) -> None:
    """Write a trained decoder into ``folder``, safetensors and JSON, for ``PerturbationDecoder.from_pretrained``.

    A decoder under adapters is written twice: merged here, and as a `peft` adapter in ``folder/adapter``, which loads
    on the base it was trained on.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder / "adapter"))
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(str(folder))
    for name, content in extra.items():
        write_json(folder / name, content)


def read_log(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The lines of a ``log.jsonl``, those of steps after ``up_to`` left out; an unfinished last line is dropped."""
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if up_to is None or line["step"] <= up_to:
                lines.append(line)
    return lines
