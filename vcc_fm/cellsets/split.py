"""The split: which (context, perturbation) groups train, validate and test.

Control cells have no role: they are what a prediction starts from, and every context's controls may be seen. The
labels chosen depend on the set of labels and on the seed alone, not on their order or on how many cells they have.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vcc_fm.cellsets.additive import additive_warnings
from vcc_fm.cellsets.cell_load_table import CellLoadTable, Share, read_cell_load_table
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import write_text
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.split import SplitConfig

Role = Literal["train", "validation", "test", "unused"]
Group = tuple[str, str]
Roles = dict[Group, Role]

ROLES: tuple[Role, ...] = get_args(Role)
TRAIN_ONLY: tuple[Role, ...] = ("train",)
_ROLE_OF_SHARE: dict[Share, Role] = {"train": "train", "val": "validation", "test": "test"}


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
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"]) or "the file"
                raise UserError(f"{path}: not a split: {where}: {first['msg']}; make the split again") from None
        roles: Roles = {(entry.context, entry.perturbation): entry.role for entry in file.groups}
        cells = {(entry.context, entry.perturbation): entry.cells for entry in file.groups}
        split = cls(file.hold_out, file.fold, file.folds, file.seed, roles, cells, file.warnings)
        if len(roles) != len(file.groups) or split.counts() != file.counts:
            raise UserError(f"{path}: counts do not agree with groups, so the file was altered; make the split again")
        return split


def make_splits(
    config: SplitConfig,
    cells: dict[Group, int],
    control: str,
    separator: str,
    seed: int,
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Split]:
    """Give every measured group a role.

    Numbers that come from a fraction are rounded, and a fraction above zero takes at least one label. With folds, a
    seeded permutation of the perturbations (or the listed contexts, in their order) is cut into near-equal parts, each
    the test set once, and `test` is not used; labels listed for validation train no fold but are tested in theirs.

    Args:
        config: the recipe's `split` section.
        cells: (context, perturbation) -> number of measured cells, the control's entries among them.
        control: label of control cells.
        separator: what joins the target genes of a combination.
        seed: seed of every choice, not negative.
        sources: context -> the sources that have it, name -> path; only a cell-load table asks for it.

    Returns:
        One split a fold, `config.folds` in all.

    Raises:
        UserError: there is no perturbation; a listed label or context does not exist (the nearest is named) or is the
            control; a label is listed both for test and validation; two labels mean the same target genes; nothing is
            left to test or to train on; a context that is trained on or held out has no control cells; or the
            cell-load table is refused.
    """
    measured = {group: number for group, number in cells.items() if group[1] != control}
    labels_of: dict[str, set[str]] = defaultdict(set)
    for context, label in measured:
        labels_of[context].add(label)
    if not measured:
        raise UserError("no perturbation is left to train on or to test; loosen data.minimum_cells, keep or quality")
    targets = _targets({label for _, label in measured}, control, separator)
    notes: list[str] = []

    if config.hold_out == "perturbations":
        divisions = _hold_out_perturbations(config, labels_of, control, seed)
    elif config.hold_out == "contexts":
        divisions = _hold_out_contexts(config, labels_of, control, seed)
    elif config.hold_out == "few-shot":
        divisions = [_hold_out_few_shot(config, labels_of, control, seed)]
    else:
        assert config.table is not None
        path = expand(config.table)
        table = read_cell_load_table(path, {context: (sources or {}).get(context, {}) for context in labels_of})
        divisions, notes = [_hold_out_table(path, table, labels_of, control)], table.warnings

    splits = []
    for fold, roles in enumerate(divisions):
        _check(config, roles, cells, control)
        split = Split(config.hold_out, fold, config.folds, seed, roles, measured, [])
        warnings = additive_warnings(split.groups("train"), split.groups("validation") + split.groups("test"), targets)
        if config.hold_out == "table" and "validation" in config.model_fields_set:
            warnings.append(
                f"split.validation={config.validation} changes nothing: with hold_out=table the table says which "
                f"groups validate, here {len(split.groups('validation')) or 'none'}"
            )
        splits.append(replace(split, warnings=notes + warnings))
    return splits


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


# ------------------------------------------------------------------------------------------------------ kinds of split
def _hold_out_perturbations(
    config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int
) -> list[Roles]:
    labels = set[str]().union(*labels_of.values())
    if config.folds > len(labels):
        raise UserError(f"split.folds={config.folds} is more than the {len(labels)} perturbations there are")
    if config.folds == 1:
        tests = [_choose(config.test, labels, seed, "test", "split.test", control)]
        _refuse_overlap(config)
    else:
        tests = [set(part.tolist()) for part in np.array_split(_permuted(labels, seed, "folds"), config.folds)]
    divisions = []
    for fold, test in enumerate(tests):
        validation = _choose_validation(config, labels, test, seed, f"validation {fold}", control)
        divisions.append(
            {(context, label): _role(label, test, validation) for context in labels_of for label in labels_of[context]}
        )
    return divisions


def _hold_out_contexts(config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int) -> list[Roles]:
    _known_contexts(config.contexts, labels_of)
    groups = {(context, label) for context, labels in labels_of.items() for label in labels}
    divisions = []
    for fold, held in enumerate(np.array_split(np.array(config.contexts, dtype=object), config.folds)):
        rest = {group for group in groups if group[0] not in held}
        if isinstance(config.validation, list):
            _refuse_unknown(config.validation, {label for _, label in rest}, "split.validation", control)
            validation = {group for group in rest if group[1] in config.validation}
        else:
            purpose = "validation" if config.folds == 1 else f"validation {fold}"
            validation = _choose_groups(config.validation, rest, seed, purpose)
        roles: Roles = dict.fromkeys(groups, "test")
        roles.update(dict.fromkeys(rest, "train"))
        roles.update(dict.fromkeys(validation, "validation"))
        divisions.append(roles)
    return divisions


def _hold_out_few_shot(config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int) -> Roles:
    # One choice for all target contexts: what is test in one of them is not learned from another.
    held = _known_contexts(config.contexts, labels_of)
    labels = set[str]().union(*(labels_of[context] for context in held))
    test = _choose(config.test, labels, seed, "test", "split.test", control)
    _refuse_overlap(config)
    validation = _choose_validation(config, labels, test, seed, "validation", control)
    unseen = _choose(config.unseen, test, seed, "unseen", "split.unseen", control)
    roles: Roles = {}
    for context in labels_of:
        for label in labels_of[context]:
            if context in held:
                roles[context, label] = _role(label, test, validation)
            else:
                roles[context, label] = "unused" if label in unseen else "train"
    return roles


def _hold_out_table(path: Path, table: CellLoadTable, labels_of: dict[str, set[str]], control: str) -> Roles:
    roles: Roles = {}
    for context, share in table.zeroshot.items():
        roles.update({(context, label): _ROLE_OF_SHARE[share] for label in labels_of[context]})
    for context, listed in table.fewshot.items():
        for share, labels in listed.items():
            _refuse_unknown(labels, labels_of[context], f"{path}: [fewshot] {context} {share}", control)
        test, validation = set(listed.get("test", [])), set(listed.get("val", []))
        roles.update({(context, label): _role(label, test, validation) for label in labels_of[context]})
    for context, trains in table.unlisted.items():
        roles.update({(context, label): "train" if trains else "unused" for label in labels_of[context]})
    return roles


# ------------------------------------------------------------------------------------------------------------- choices
def _role(label: str, test: set[str], validation: set[str]) -> Role:
    return "test" if label in test else "validation" if label in validation else "train"


def _permuted(labels: Iterable[str], seed: int, purpose: str) -> np.ndarray:
    """The labels in an order that depends on their set, the seed and the purpose only."""
    ordered = np.array(sorted(labels), dtype=object)
    return ordered[_permuted_places(len(ordered), seed, purpose)]


def _permuted_places(number: int, seed: int, purpose: str) -> np.ndarray:
    return np.random.default_rng([seed, *purpose.encode()]).permutation(number)


def _choose(
    wanted: float | int | list[str], labels: set[str], seed: int, purpose: str, field: str, control: str
) -> set[str]:
    if isinstance(wanted, list):
        _refuse_unknown(wanted, labels, field, control)
        return set(wanted)
    if isinstance(wanted, int):
        if wanted > len(labels):
            raise UserError(f"{field}={wanted} is more than the {len(labels)} perturbations there are to choose from")
        number = wanted
    else:
        number = max(1, round(wanted * len(labels))) if wanted > 0 else 0
    return set(_permuted(labels, seed, purpose)[:number].tolist())


def _choose_validation(
    config: SplitConfig, labels: set[str], test: set[str], seed: int, purpose: str, control: str
) -> set[str]:
    if isinstance(config.validation, list):
        return _choose(config.validation, labels, seed, purpose, "split.validation", control)
    return _choose(config.validation, labels - test, seed, purpose, "split.validation", control)


def _choose_groups(fraction: float, groups: set[Group], seed: int, purpose: str) -> set[Group]:
    """A share of groups to validate on, all but one at most.

    A perturbation that validates in one context trains in another, as it does where it is tested, for as long as there
    are such; only then is the last group of a perturbation taken. A perturbation that validated everywhere would ask
    another question than the test does, and leave nothing to train on where it is the only one.
    """
    wanted = min(max(1, round(fraction * len(groups))) if fraction > 0 else 0, len(groups) - 1)
    left = Counter(label for _, label in groups)
    chosen, lasting = list[Group](), list[Group]()
    pairs = sorted(groups)
    for i in _permuted_places(len(pairs), seed, purpose):
        trains_elsewhere = left[pairs[i][1]] > 1
        left[pairs[i][1]] -= trains_elsewhere
        (chosen if trains_elsewhere else lasting).append(pairs[i])
    return set((chosen + lasting)[:wanted])


# ------------------------------------------------------------------------------------------------------------ refusals
def _refuse_unknown(wanted: list[str], labels: Collection[str], field: str, control: str) -> None:
    for label in wanted:
        if label == control:
            raise UserError(f"{field}: {label!r} is the control, which is never held out; remove it")
        if label not in labels:
            raise UserError(f"{field}: there is no perturbation {label!r}{_nearest(label, labels)}")


def _known_contexts(wanted: list[str], labels_of: dict[str, set[str]]) -> set[str]:
    for context in wanted:
        if context not in labels_of:
            there = ", ".join(sorted(labels_of)) or "none"
            raise UserError(f"split.contexts: there is no context {context!r} with perturbations; there are {there}")
    return set(wanted)


def _nearest(label: str, labels: Collection[str]) -> str:
    by_folded = {known.casefold(): known for known in sorted(labels)}
    near = difflib.get_close_matches(label.casefold(), by_folded, n=3, cutoff=0.5)
    return (
        f"; nearest: {', '.join(by_folded[name] for name in near)}" if near else f" among the {len(labels)} there are"
    )


def _refuse_overlap(config: SplitConfig) -> None:
    if isinstance(config.test, list) and isinstance(config.validation, list):
        both = sorted(set(config.test) & set(config.validation))
        if both:
            raise UserError(f"split: {both[0]!r} is listed in both split.test and split.validation; keep it in one")


def _targets(labels: set[str], control: str, separator: str) -> dict[str, frozenset[str]]:
    """Label -> target genes; two labels for the same genes would train on what is tested, so they are refused."""
    targets = {label: frozenset(label.split(separator)) - {control} for label in sorted(labels)}
    first: dict[frozenset[str], str] = {}
    for label, genes in targets.items():
        if first.setdefault(genes, label) != label:
            raise UserError(
                f"perturbations {first[genes]!r} and {label!r} mean the same target genes, so that one could train "
                "while the other is tested; give them one label in the data"
            )
    return targets


def _check(config: SplitConfig, roles: Roles, cells: dict[Group, int], control: str) -> None:
    found = set(roles.values())
    if "test" not in found:
        raise UserError(f"split.hold_out={config.hold_out} leaves nothing to test; hold out at least one perturbation")
    if "train" not in found:
        raise UserError(f"split.hold_out={config.hold_out} leaves nothing to train on; hold out less")
    needed = {context for (context, _), role in roles.items() if role != "unused"}
    bare = sorted(context for context in needed if not cells.get((context, control)))
    if bare:
        raise UserError(
            f"no control cells ({control!r}) in context {', '.join(bare)}; a prediction starts from them: "
            "name the right control label, or leave the context out"
        )
