"""Expected responses of all groups that a training phase asks for: computed once, and mapped into memory.

Seconds of a core for hundreds of groups, hours for tens of thousands. So one process computes them and writes them to
a folder; all processes, and those of a later start, map that, and share the memory of what they read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from vcc_fm.ground.files import read_json, whole_folder, write_json
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.responses.expected import Expected, ExpectedResponses
from vcc_fm.splits.split import Group


@dataclass(frozen=True)
class Answers:
    """As :class:`ExpectedResponses`, for the groups that were asked for.

    Attributes:
        held_out: what is expected given all training responses.
        without_group: of a training group, without its own response.
        without_perturbation: of a training group, without all responses of its perturbation.
    """

    held_out: dict[Group, Expected]
    without_group: dict[Group, Expected]
    without_perturbation: dict[Group, Expected]

    def of(self, context: str, perturbation: str) -> Expected:
        """See :meth:`ExpectedResponses.of`."""
        return self.held_out[context, perturbation]

    def left_out(self, context: str, perturbation: str, everywhere: bool = False) -> Expected:
        """See :meth:`ExpectedResponses.left_out`."""
        return (self.without_perturbation if everywhere else self.without_group)[context, perturbation]


def write_answers(
    folder: Path, expected: ExpectedResponses, asked: Mapping[str, Sequence[Group]], name: str, console: Console
) -> None:
    """Ask ``expected`` for groups, and write what it says to ``folder``, which appears when it is whole.

    Args:
        folder: for :func:`read_answers`; it takes 8 bytes a gene and group asked for.
        expected: tells.
        asked: the attributes of :class:`Answers` -> groups.
        name: of the phase that asks, for messages.
        console: where progress goes.

    Raises:
        OSError: the disk refuses.
    """
    fitted = f"{len(expected.evidence.groups):,} training groups of {len(expected.axis):,} genes"
    console.print(f"{name}: fits what is expected to {fitted}", highlight=False, soft_wrap=True)
    if (portions := len(expected.model)) > 1:
        lines = ProgressLines(f"{name}: mixed model", "portions", console)
        for fitted_portions, _ in enumerate(expected.model.models(), 1):
            lines(fitted_portions, portions)
    done, total = 0, sum(map(len, asked.values()))
    ask: dict[str, Callable[[Sequence[Group]], Iterable[dict[Group, Expected]]]] = {
        "held_out": lambda groups: ({group: expected.of(*group)} for group in groups),
        "without_group": expected.each_left_out,
        "without_perturbation": partial(expected.each_left_out, everywhere=True),
    }
    with whole_folder(folder) as unfinished:
        write_json(unfinished / "asked.json", asked)
        np.save(unfinished / "reliability.npy", expected.model.reliability)
        lines = ProgressLines(f"{name}: expected responses", "groups", console)
        for kind, groups in asked.items():
            places, shape = {group: row for row, group in enumerate(groups)}, (2, len(expected.axis))
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(groups), *shape)}
            # Written, not mapped: a full disk is then an error, and no signal.
            with (unfinished / f"{kind}.npy").open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                begin = file.tell()
                for found in ask[kind](groups):
                    for group, one in found.items():
                        file.seek(begin + places[group] * 4 * math.prod(shape))
                        file.write(np.stack([one.mean, one.deviation]).astype("<f4").tobytes())
                    lines(done := done + len(found), total)


def read_answers(folder: Path) -> Answers:
    """Map what :func:`write_answers` wrote."""
    reliability = np.load(folder / "reliability.npy")

    def of(kind: str, groups: Iterable[Group]) -> dict[Group, Expected]:
        table = np.load(folder / f"{kind}.npy", mmap_mode="r")
        pairs = zip(groups, table, strict=True)
        return {(context, label): Expected(both[0], both[1], reliability) for (context, label), both in pairs}

    return Answers(**{kind: of(kind, groups) for kind, groups in read_json(folder / "asked.json").items()})
