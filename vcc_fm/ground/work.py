"""Work that several processes share, kept piece by piece in a folder beside the output until that is whole.

The pieces follow from the input alone. So neither the number of processes nor an interruption changes what comes out,
and nothing that is done is done again.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from vcc_fm.ground.files import empty_folder, one_writer, read_json, write_json
from vcc_fm.ground.progress import ProgressLines


class WorkFolder:
    """The pieces of an output; those of anything else are thrown away.

    Attributes:
        final: the output that they will become.
        path: of the folder.
        state: who takes part.
        fingerprint: of everything that they depend on.

    Args:
        final: the output that they will become.
        fingerprint: of everything that they depend on.
        state: who takes part; all wait here for the first.
    """

    def __init__(self, final: Path, fingerprint: str, state: PartialState):
        self.final, self.path = final, work_folder(final)
        self.state, self.fingerprint = state, fingerprint
        owner = self.path / "owner.json"
        if state.is_main_process:
            with one_writer(self.path):  # several jobs may begin at once
                if not (owner.exists() and read_json(owner)["fingerprint"] == fingerprint):
                    # First of all the owner: a stop in the middle must not leave half of the pieces under it.
                    owner.unlink(missing_ok=True)
                    empty_folder(self.path)
                    write_json(owner, {"fingerprint": fingerprint})
        state.wait_for_everyone()

    def share(
        self,
        sizes: Sequence[int],
        path: Callable[[int], Path],
        make: Callable[[int, Callable[[int], None]], None],
        unit: str,
        stage: str,
        console: Console,
    ) -> None:
        """Make this process's part of the pieces that are missing, and wait for the others.

        Args:
            sizes: of each piece, in ``unit``.
            path: of a piece, by its number; it is there once it is whole.
            make: makes a piece, and tells its second argument how much of it is done.
            unit: in which progress is told (cells, residues).
            stage: its name.
            console: where progress goes.
        """
        numbers = range(len(sizes))[self.state.process_index :: self.state.num_processes]
        left = [number for number in numbers if not path(number).exists()]
        total = sum(sizes[number] for number in numbers)
        done = total - sum(sizes[number] for number in left)
        lines = ProgressLines(stage, unit, console, done)
        for number in left:
            make(number, _from(done, total, lines))
            done += sizes[number]
        if left:
            lines(total, total)
        self.state.wait_for_everyone()

    def remove(self) -> None:
        """Take the pieces away, once the output is whole."""
        remove_work(self.final)


def remove_work(final: Path) -> None:
    """Take the pieces of an output away, if there are any, and the locks under which they were made."""
    shutil.rmtree(work_folder(final), ignore_errors=True)
    name = glob.escape(final.name)
    for lock in [*final.parent.glob(f".{name}.shards.lock"), *final.parent.glob(f".{name}.source-*.lock")]:
        lock.unlink(missing_ok=True)


def work_folder(final: Path) -> Path:
    """Where the pieces of an output are until it is whole."""
    return final.with_name(f"{final.name}.shards")


def _from(done: int, total: int, lines: ProgressLines) -> Callable[[int], None]:
    """Progress of a piece, told as that of the whole part; its end is that of the part only once."""
    return lambda part: lines(min(done + part, total - 1), total)
