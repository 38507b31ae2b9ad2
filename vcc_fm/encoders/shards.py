"""Work cut into shards, each kept in a file of its own as soon as it is done.

The shards follow from the input alone. So neither the number of processes nor an interruption changes what comes out,
and nothing that is done is done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from rich.console import Console

from vcc_fm.progress import ProgressLines
from vcc_fm.store.folder import read_json, write_json


class Shards:
    """The shards of an output, in a folder beside it.

    Args:
        final: the output that they will become.
        fingerprint: of everything they depend on; shards of anything else are thrown away.
        state: who takes part.
    """

    def __init__(self, final: Path, fingerprint: str, state: PartialState):
        self._folder = final.with_name(f"{final.name}.shards")
        self._state = state
        owner = self._folder / "owner.json"
        if state.is_main_process and not (owner.exists() and read_json(owner)["fingerprint"] == fingerprint):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            write_json(owner, {"fingerprint": fingerprint})
        state.wait_for_everyone()

    def compute(
        self,
        sizes: Sequence[int],
        encode: Callable[[int, Callable[[int], None]], np.ndarray],
        unit: str,
        stage: str,
        console: Console,
    ) -> None:
        """Compute what is missing of this process's share, and wait for the others.

        Args:
            sizes: of each shard, in ``unit``.
            encode: computes a shard by its number, and tells its second argument how much of it is done.
            unit: in which progress is told (cells, residues).
            stage: its name.
            console: where progress goes.
        """
        numbers = range(len(sizes))[self._state.process_index :: self._state.num_processes]
        share = [number for number in numbers if not self.path(number).exists()]
        before = sum(sizes[number] for number in numbers) - sum(sizes[number] for number in share)
        total, done = sum(sizes[number] for number in numbers), before
        lines = ProgressLines(stage, unit, console, before)
        for number in share:
            _save(self.path(number), encode(number, _from(done, total, lines)))
            done += sizes[number]
        if share:
            lines(total, total)
        self._state.wait_for_everyone()

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self._folder / f"shard-{number:06d}.npy"

    def load(self, number: int) -> np.ndarray:
        """A shard that is done."""
        return np.load(self.path(number))

    def remove(self) -> None:
        """Take the shards away, once the output is whole."""
        shutil.rmtree(self._folder)


def _from(done: int, total: int, lines: ProgressLines) -> Callable[[int], None]:
    """Progress of a shard, told as that of the whole share; its end is that of the share only once."""
    return lambda part: lines(min(done + part, total - 1), total)


def _save(path: Path, values: np.ndarray) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, values)
    partial.replace(path)
