"""The split: which (context, perturbation) groups train, validate and test.

Control cells have no role: they are what a prediction starts from, and every context's controls may be seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from vcc_fm.ground.errors import UserError, first_fault, reading
from vcc_fm.ground.files import write_text

Role = Literal["train", "validation", "test", "unused"]
Group = tuple[str, str]
Roles = dict[Group, Role]

ROLES: tuple[Role, ...] = get_args(Role)
TRAIN_ONLY: tuple[Role, ...] = ("train",)


class LeakError(AssertionError):
    """A fitted number was computed from cells that it must not see: a fault of the program."""


class _Entry(BaseModel):
    """One group in a split file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    context: str
    perturbation: str
    role: Role
    cells: int


class _File(BaseModel):
    """A split file, in the order in which a reader wants it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    counts: dict[Role, dict[str, int]]
    warnings: list[str]
    hold_out: str
    fold: int
    folds: int
    seed: int
    groups: list[_Entry]


@dataclass(frozen=True)
class Split:
    """One division of the measured groups.

    Attributes:
        hold_out: the kind of split, as in the recipe.
        fold: position of this split among its folds, from 0.
        folds: number of folds; 1 means none.
        seed: seed that chose the labels.
        roles: (context, perturbation) -> role; perturbations only, never the control.
        cells: (context, perturbation) -> measured cells, same keys as `roles`.
        warnings: what a reader of the scores should know, one sentence each.
    """

    hold_out: str
    fold: int
    folds: int
    seed: int
    roles: Roles
    cells: dict[Group, int]
    warnings: list[str]

    def groups(self, role: Role) -> list[Group]:
        """The (context, perturbation) groups of a role, sorted."""
        return sorted(group for group, of in self.roles.items() if of == role)

    def counts(self) -> dict[Role, dict[str, int]]:
        """Numbers of distinct contexts and perturbations, of groups and of measured cells, by role."""
        table: dict[Role, dict[str, int]] = {}
        for role in ROLES:
            groups = self.groups(role)
            table[role] = {
                "contexts": len({context for context, _ in groups}),
                "perturbations": len({perturbation for _, perturbation in groups}),
                "groups": len(groups),
                "cells": sum(self.cells[group] for group in groups),
            }
        return table

    def write(self, path: str | Path) -> None:
        """Write the split as JSON, whole or not at all: counts first, then one line a group."""
        path = Path(path)
        entries = [
            _Entry(context=context, perturbation=label, role=role, cells=self.cells[context, label])
            for (context, label), role in sorted(self.roles.items())
        ]
        head = _File(
            counts=self.counts(),
            warnings=self.warnings,
            hold_out=self.hold_out,
            fold=self.fold,
            folds=self.folds,
            seed=self.seed,
            groups=[],
        ).model_dump_json(indent=2)
        lines = ",\n".join("    " + entry.model_dump_json() for entry in entries)
        write_text(path, head.removesuffix("[]\n}") + f"[\n{lines}\n  ]\n}}\n")

    @classmethod
    def read(cls, path: str | Path) -> Split:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: no such file, no split (a field is missing, unknown or of another type), a group that repeats,
                or counts that are not those of the groups.
        """
        path = Path(path)
        with reading(path, "a split", "make the split again"):
            try:
                file = _File.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                raise UserError(f"{path}: no such split") from None
            except ValidationError as error:
                raise UserError(f"{path}: not a split: {first_fault(error)}; make the split again") from None
        roles: Roles = {(entry.context, entry.perturbation): entry.role for entry in file.groups}
        cells = {(entry.context, entry.perturbation): entry.cells for entry in file.groups}
        split = cls(file.hold_out, file.fold, file.folds, file.seed, roles, cells, file.warnings)
        if len(roles) != len(file.groups) or split.counts() != file.counts:
            raise UserError(f"{path}: counts do not agree with groups, so the file was altered; make the split again")
        return split


def assert_no_leak(
    split: Split, used: Iterable[Group], control: str, what: str, allowed: Collection[Role] = TRAIN_ONLY
) -> None:
    """Stop the program where a fitted number was computed from groups that it must not see.

    Args:
        split: the split in force.
        used: (context, perturbation) groups whose cells entered the computation; controls are always allowed.
        control: label of control cells.
        what: the fitted number, for the message.
        allowed: roles that may enter; a number tuned on the validation groups adds "validation".

    Raises:
        LeakError: a group has another role, or is none of the split's.
    """
    leaked = sorted({group for group in used if group[1] != control and split.roles.get(group) not in allowed})
    if leaked:
        (context, label), role = leaked[0], split.roles.get(leaked[0], "unknown")
        raise LeakError(f"{what} was fitted on {len(leaked)} group(s) it must not see: {label} in {context} is {role}")
