"""Which cells are asked for: the held-out groups, and any context and perturbation that a recipe names.

A context needs control cells alone, and a perturbation may be measured nowhere. Only what was held out has a truth
that a score may use: a group that was trained on, or that chose a checkpoint, is predicted but not scored.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from vcc_fm.cellsets.targets import require_vectors, targets_of
from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.ground.paths import expand
from vcc_fm.ground.words import listed, many
from vcc_fm.recipe.predict import AskConfig, PredictConfig
from vcc_fm.sources.perturbations import combination
from vcc_fm.splits.split import Group, Role, Split

LABEL_COLUMNS = ("target_gene", "perturbation", "pert")
CELLS_COLUMN = "n_cells"

SCORED: tuple[Role, ...] = ("test", "unused")
"""Roles whose measured cells nothing was fitted on or chosen by."""


class Asked(NamedTuple):
    """Cells that are asked for."""

    fold: int
    context: str
    perturbation: str
    cells: int


@dataclass(frozen=True)
class Asking:
    """What is asked for.

    Attributes:
        groups: in the order of the recipe; none twice.
        truth: those of them whose measured cells may judge a prediction.
        notes: what a reader should know, one sentence each.
    """

    groups: list[Asked]
    truth: list[Asked]
    notes: list[str]

    def labels(self) -> list[str]:
        """The perturbations, each once."""
        return list(dict.fromkeys(one.perturbation for one in self.groups))


def asked_for(
    config: PredictConfig, splits: list[Split], sizes: Mapping[Group, int], control: str, separator: str
) -> Asking:
    """The groups that a recipe asks for.

    Args:
        config: the recipe's `predict` section.
        splits: of all folds. What is held out is asked of the fold that holds it out, anything else of the first.
        sizes: (context, perturbation) -> measured cells, the controls among them.
        control: label of control cells.
        separator: what joins the target genes of a combination, in any order.

    Raises:
        UserError: a context has no control cells; a list names the control; a file of perturbations cannot be read;
            the number of cells is not known; or nothing that was held out is asked for.
    """
    found: dict[Group, Asked] = {}
    twice = 0
    for number, ask in enumerate(config.ask):
        for one in _of(ask, f"predict.ask[{number}]", config, splits, sizes, control, separator):
            twice += (one.context, one.perturbation) in found
            found.setdefault((one.context, one.perturbation), one)
    # In the fold that predicts it: what one fold tests, another one trains on.
    roles = {group: splits[one.fold].roles.get(group) for group, one in found.items()}
    groups = list(found.values())
    truth = [one for group, one in found.items() if roles[group] in SCORED]
    if not truth and splits[0].hold_out != "none":
        raise UserError(
            "predict.ask: nothing that was held out is asked for, so that nothing can be scored; add "
            "{perturbations: held-out}, or set split.hold_out=none"
        )
    notes = [f"{many(twice, 'group')} asked for twice: the first ask counts"] if twice else []
    for what, those in (
        ("not measured in that context: there is no truth to score", {None}),
        ("trained on, or used to choose a checkpoint: predicted, but not scored", {"train", "validation"}),
    ):
        if number := sum(role in those for role in roles.values()):
            notes.append(f"{many(number, 'asked group')} {'was' if number == 1 else 'were'} {what}")
    return Asking(groups, truth, notes)


def _of(
    ask: AskConfig,
    key: str,
    config: PredictConfig,
    splits: list[Split],
    sizes: Mapping[Group, int],
    control: str,
    separator: str,
) -> Iterator[Asked]:
    """The groups of one ask."""
    startable = [context for context, label in sizes if label == control]
    if unknown := sorted(set(ask.contexts or []) - set(startable)):
        near = difflib.get_close_matches(unknown[0], startable, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(startable))}"
        raise UserError(f"{key}.contexts: no control cells of {shown(unknown[0])} ({hint})")
    if ask.perturbations == "held-out":
        for split in splits:
            for context, label in split.groups("test"):
                if ask.contexts is None or context in ask.contexts:
                    cells = ask.cells or config.cells
                    measured = split.cells[context, label]
                    yield Asked(split.fold, context, label, measured if cells == "measured" else cells)
        return
    given = _named(ask, control)
    if control in given:
        raise UserError(f"{key}.perturbations: {control} is the control; control cells need no prediction")
    named = {combination(label.split(separator), separator): number for label, number in given.items()}
    if len(named) < len(given):
        raise UserError(f"{key}.perturbations: two labels mean the same target genes; name each perturbation once")
    for context in ask.contexts or sorted(startable):
        for label, number in named.items():
            fixed = None if config.cells == "measured" else config.cells
            wanted = ask.cells or number or fixed or sizes.get((context, label))
            if wanted is None:
                raise UserError(
                    f"{key}: {label} was not measured in {context}, so how many cells to predict is not known; "
                    f"give {key}.cells, such as 400"
                )
            yield Asked(0, context, label, wanted)


def _named(ask: AskConfig, control: str) -> dict[str, int | None]:
    """The perturbations that an ask names, and how many cells of each, where its file says so."""
    if isinstance(ask.perturbations, list):
        return dict.fromkeys(ask.perturbations)
    return {} if ask.perturbations == "held-out" else read_perturbations(expand(ask.perturbations), control)


def named_perturbations(config: PredictConfig, control: str) -> list[str]:
    """The perturbations that a recipe asks for by name, measured or not.

    Raises:
        UserError: a file of perturbations cannot be read.
    """
    return [label for ask in config.ask for label in _named(ask, control)]


def read_perturbations(path: Path, control: str, key: str = "predict.ask.perturbations") -> dict[str, int | None]:
    """Perturbations of a CSV file with a header, and how many cells of each, where it says so.

    Args:
        path: of the file: a column ``target_gene`` (as the Virtual Cell Challenge has it), ``perturbation`` or
            ``pert``, and perhaps ``n_cells``. Other columns are not read, nor are rows without a name.
        control: label of control cells, whose row is left out.
        key: what messages call the file by.

    Raises:
        UserError: no such file; no such column; no perturbation, or one twice; a number of cells that is none.
    """
    where = f"{key}: {path}"
    with reading(path, "CSV", f"give a file with a column {LABEL_COLUMNS[0]}"):
        try:
            table = pd.read_csv(path, dtype=str, index_col=False, keep_default_na=False, encoding="utf-8-sig")
        except FileNotFoundError:
            raise UserError(f"{where}: no such file") from None
        except pd.errors.EmptyDataError:
            table = pd.DataFrame()
    column = next((name for name in LABEL_COLUMNS if name in table), None)
    if column is None:
        found = listed([shown(name) for name in table.columns]) or "nothing"
        raise UserError(f"{where}: no column {' or '.join(LABEL_COLUMNS)}, found {found}")
    table[column] = table[column].str.strip()
    table = table[~table[column].isin(["", control])]
    names = table[column]
    if names.empty:
        raise UserError(f"{where}: names no perturbation in its column {column}")
    if names.duplicated().any():
        raise UserError(f"{where}: {names[names.duplicated()].iloc[0]!r} stands twice; name each once")
    if CELLS_COLUMN not in table:
        return dict.fromkeys(names)
    number = table[CELLS_COLUMN].str.strip()
    wrong = ~number.str.fullmatch(r"0*[1-9][0-9]{0,8}")
    if wrong.any():
        raise UserError(f"{where}: {CELLS_COLUMN} of {names[wrong].iloc[0]} is {shown(number[wrong].iloc[0])}")
    return dict(zip(names, number.astype(int), strict=True))


def with_known_targets(asking: Asking, known: Collection[str], separator: str, missing: str) -> Asking:
    """What is asked for, where target genes may have neither a protein vector nor a learned one.

    Args:
        asking: what a recipe asks for.
        known: target genes that have a vector.
        separator: what joins the target genes of a combination.
        missing: what becomes of the others: refuse them; predict them as any other (learned); leave them out (drop).

    Raises:
        UserError: there are some, and the recipe refuses them.
    """
    without = sorted(targets_of(asking.labels(), separator).difference(known))
    require_vectors(without, missing)
    if not without:
        return asking
    some = f"{', '.join(without[:8])}{', …' if len(without) > 8 else ''}"
    note = f"{many(len(without), 'target gene')} without a protein vector and without training cells ({some})"
    if missing == "learned":
        return replace(asking, notes=[*asking.notes, f"{note}: predicted as any other"])
    groups, truth = (
        [one for one in those if not targets_of([one.perturbation], separator).intersection(without)]
        for those in (asking.groups, asking.truth)
    )
    return Asking(
        groups, truth, [*asking.notes, f"{note}: {many(len(asking.groups) - len(groups), 'group')} left out"]
    )
