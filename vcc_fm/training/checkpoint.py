"""Checkpoints to resume from, and the weights that did best on the validation split."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import (
    read_json,
    read_sealed,
    sha256_file,
    whole_file,
    whole_folder,
    write_json,
    write_sealed,
)
from vcc_fm.training.accelerator import engine_of

_STEP = re.compile(r"^step-(\d+)$")


class Checkpoints:
    """The folder ``checkpoints/`` of a training phase.

    ``step-N/`` holds what Accelerate needs to go on after step N, bit for bit; it is written by a run for itself.
    ``progress.json`` in it, sealed itself, lists the SHA-256 of every other file. ``best-N.safetensors`` holds the
    trainable weights after step N, which had the lowest validation loss so far; those that a kept checkpoint names are
    kept with it.
    """

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator):
        self.folder, self.keep, self.accelerator = folder, keep, accelerator

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after ``step`` optimiser steps; all processes call it."""
        main = self.accelerator.is_main_process
        if main:
            for left in self.folder.glob("*.partial"):  # by a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        with whole_folder(self.folder / f"step-{step:08d}") if main else nullcontext(Path()) as mine:
            partial = Path(broadcast_object_list([str(mine)])[0])
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if main:
                files = {name: sha256_file(partial / name) for name in _files(partial)}
                written_by = {"engine": engine_of(self.accelerator), "processes": self.accelerator.num_processes}
                write_sealed(partial / "progress.json", {"step": step, "files": files, **written_by, **state})
        if main:
            # Later ones were passed over: counted among those to keep, they would take the place of whole ones.
            kept, later = self._newest_first(), sum(_step_of(path) > step for path in self._newest_first())
            for old in kept[:later] + kept[later + self.keep :]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest whole checkpoint into what Accelerate has prepared; all processes call it.

        Returns:
            Its ``progress.json``, or None where there is no checkpoint; why newer ones were passed over.

        Raises:
            UserError: another engine wrote it, or as many processes as do not share its parts now; or there are
                checkpoints, and none is whole.
        """
        found: list[Any] = [None, None, []]
        if self.accelerator.is_main_process:
            for path in self._newest_first():
                try:
                    progress = read_sealed(path / "progress.json", f"remove {path}")
                    fault = _fault(path, progress) or self._best_fault(progress)
                except UserError as error:
                    fault = str(error)
                if fault is None:
                    found[:2] = [path, progress]
                    break
                found[2].append(f"{path.name} is damaged and passed over: {fault}")
        path, progress, passed_over = broadcast_object_list(found)
        if path is not None:
            self._check_engine(path, progress)
            self.accelerator.load_state(str(path))
            # It counts micro-batches, of which a step may have another number now. A checkpoint is between two steps.
            self.accelerator.step = 0
        elif passed_over:
            # Perhaps the disk is at fault. From the start, they would be written over.
            raise UserError(
                f"{self.folder}: no checkpoint is whole ({'; '.join(passed_over)}); put back what is missing and run "
                "again, or remove the folder to train from the start"
            )
        return progress, passed_over

    def _best_fault(self, progress: dict[str, Any]) -> str | None:
        """What is wrong with the best weights that a checkpoint names; None where they are whole, or not named."""
        if progress["selection"] is None:
            return None
        try:
            self.best(progress["selection"]["best_step"], progress["selection"]["best_sha256"])
        except UserError as error:
            return str(error)
        return None

    def _check_engine(self, path: Path, progress: dict[str, Any]) -> None:
        """A checkpoint of whole weights is anybody's; one in parts is read by those who wrote it."""
        then = progress["engine"], progress["processes"]
        now = engine_of(self.accelerator), self.accelerator.num_processes
        whole = {"one process", "DDP"}
        if then != now and not {then[0], now[0]} <= whole:
            raise UserError(
                f"{path}: written by {then[0]} on {then[1]} processes, but this is {now[0]} on {now[1]}, which cannot "
                f"take it up; launch as before, or remove {self.folder.parent} and train from the start"
            )

    def save_best(self, model: nn.Module, step: int, so_far: int | None = None) -> str:
        """Keep the trainable weights of ``model`` as the best; all processes call it. The file's SHA-256.

        Args:
            model: as Accelerate prepared it.
            step: after which it is.
            so_far: the step of the best weights so far, which are kept too.

        Raises:
            UserError: a weight is not finite; nothing is written.
        """
        # Together, because each process may hold a part of them only.
        weights = self.accelerator.get_state_dict(model)
        found: list[Any] = ["", []]
        if self.accelerator.is_main_process:
            trainable = {
                name for name, value in self.accelerator.unwrap_model(model).named_parameters() if value.requires_grad
            }
            kept = {name: weights[name].contiguous().cpu() for name in sorted(trainable)}
            found[1] = [name for name, value in kept.items() if not torch.isfinite(value).all()]
            if not found[1]:
                final = self._best(step)
                with whole_file(final) as partial:
                    save_file(kept, partial)
                    found[0] = sha256_file(partial)
                named = {final} | ({self._best(so_far)} if so_far is not None else set())
                named |= {self._best(best) for path in self._newest_first() for best in _best_steps(path)}
                for old in set(self.folder.glob("best-*.safetensors")) - named:
                    old.unlink()
        digest, wrong = broadcast_object_list(found)
        if wrong:
            raise UserError(f"{len(wrong)} tensors are not finite, such as {wrong[0]}; the model is not saved")
        return digest

    def best(self, step: int, sha256: str) -> Path:
        """The file of the best weights, those after ``step``.

        Raises:
            UserError: the file is gone, or its content has changed.
        """
        file = self._best(step)
        if not file.is_file() or sha256_file(file) != sha256:
            raise UserError(
                f"{file}: the best weights of this phase are missing or damaged; put them back, or run again to go on "
                "from a checkpoint whose best weights are whole"
            )
        return file

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:08d}.safetensors"

    def _newest_first(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if _STEP.match(path.name)]
        return sorted(found, key=_step_of, reverse=True)


def _files(folder: Path) -> list[str]:
    """Names of all files in a folder and below, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _fault(folder: Path, progress: Any) -> str | None:
    """What is wrong with a checkpoint; None where it is whole."""
    if not (isinstance(progress, dict) and progress.get("step") == _step_of(folder) and "files" in progress):
        return "progress.json is not of this checkpoint"
    for name, digest in progress["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != digest:
            return f"{name} has changed"
    return None


def _best_steps(checkpoint: Path) -> list[int]:
    """The best step that a checkpoint names, if it can be read and names one."""
    try:
        return [read_json(checkpoint / "progress.json")["selection"]["best_step"]]
    except (UserError, TypeError, KeyError):
        return []


def _step_of(path: Path) -> int:
    match = _STEP.match(path.name)
    assert match is not None
    return int(match.group(1))


def load_trained(model: nn.Module, file: Path) -> None:
    """Put trained weights, the file of :meth:`Checkpoints.best`, into a model that is as it was before training."""
    weights = load_file(file)
    parameters = dict(model.named_parameters())
    assert weights.keys() == {name for name, value in parameters.items() if value.requires_grad}
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def save_decoder(model: nn.Module, folder: Path, extra: dict[str, Any]) -> None:
    """Write a trained decoder into ``folder``, safetensors and JSON, for ``PerturbationDecoder.from_pretrained``.

    A decoder under adapters is written twice: merged here, and as a `peft` adapter in ``folder/adapter``, which loads
    on the base it was trained on.
    """
    if isinstance(model, PeftModel):
        # There are no words. Left to itself, peft would ask the Hub for a base without config.json, by its path.
        model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(str(folder))
    for name, content in extra.items():
        write_json(folder / name, content)


def read_log(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` up to step ``up_to``; an unfinished last line is dropped."""
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
