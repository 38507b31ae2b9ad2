"""Shards of vectors: pieces of work that several processes share, each a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from rich.console import Console

from vcc_fm.ground.files import whole_file
from vcc_fm.ground.work import WorkFolder


class Shards:
    """The shards of an embedding store, in a folder beside it.

    Attributes:
        folder: where they are.

    Args:
        final: the store that they will become.
        fingerprint: of everything they depend on; shards of anything else are thrown away.
        state: who takes part.
    """

    def __init__(self, final: Path, fingerprint: str, state: PartialState):
        self._work = WorkFolder(final, fingerprint, state)
        self.folder = self._work.path
        self.remove = self._work.remove

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

        def make(number: int, progress: Callable[[int], None]) -> None:
            _save(self.path(number), encode(number, progress))

        self._work.share(sizes, self.path, make, unit, stage, console)

    def begun(self) -> bool:
        """Whether a shard is there."""
        return any(self.folder.glob("shard-*"))

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self._work.path / f"shard-{number:06d}.npy"

    def load(self, number: int) -> np.ndarray:
        """A shard that is done."""
        return np.load(self.path(number))


def _save(path: Path, values: np.ndarray) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, values)
