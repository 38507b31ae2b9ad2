"""Reader of a cell-load TOML, the field's own table of held-out contexts and perturbations.

The sections are ``[datasets]`` (name = path), ``[training]`` (name = "train"), ``[zeroshot]``
("dataset.context" = "train", "val" or "test") and ``[fewshot."dataset.context"]`` (val = [...], test = [...]; the
context's other perturbations train). Paths are not opened: the cells come from the store. A source belongs to the
dataset of its name, else to those whose path it has. A context is one thing in all sources here, and in each dataset
another in cell-load: where the difference matters, the table is refused, as is whatever would be silently ignored.
"""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.ground.paths import expand

Share = Literal["train", "val", "test"]
Lists = dict[Share, list[str]]

_SHARES = ("train", "val", "test")
_SECTIONS = ("datasets", "training", "zeroshot", "fewshot")


@dataclass(frozen=True)
class CellLoadTable:
    """What a table says, keyed by context.

    Attributes:
        zeroshot: context -> the share that takes all its perturbations.
        fewshot: context -> {"val": labels, "test": labels}; its other perturbations train. Never a zeroshot context.
        unlisted: context in neither section -> whether it trains, as it does if its dataset is in [training].
        warnings: what was read otherwise than it is written.
    """

    zeroshot: dict[str, Share]
    fewshot: dict[str, Lists]
    unlisted: dict[str, bool]
    warnings: list[str]


def read_cell_load_table(path: str | Path, contexts: Mapping[str, Mapping[str, str]]) -> CellLoadTable:
    """Read a cell-load TOML and match it to the contexts there are.

    A name "dataset.context" means the context that equals what follows its first dot. As in cell-load, [zeroshot] wins
    over [fewshot], and a context in neither trains only if its dataset is in [training]. A label in both val and test,
    which cell-load allows, is a test label: what chooses a model is never tested.

    Args:
        path: the TOML file.
        contexts: context of the cell store -> the sources that have it, name -> path.

    Raises:
        UserError: the file is missing or no TOML; a section, a share or a value is none that cell-load knows; a name
            has no dataset in [datasets], or its dataset has no such context; two names give one context different
            roles, or a context of several datasets is named for some of them; or a context in no section cannot be
            placed: [training] has only some of the datasets, and it is in several, or its source is in none.
    """
    path = Path(path)
    content = _load(path)
    datasets = _mapping(path, content, "datasets")
    dotted = [name for name in datasets if "." in name]
    if dotted:
        raise UserError(f"{path}: [datasets] {dotted[0]}: a dataset's name must not contain a dot")
    trained = _trained_datasets(path, content, datasets)
    homes = {
        context: [_datasets_of(name, place, datasets) for name, place in sorted(contexts[context].items())]
        for context in sorted(contexts)
    }
    named: dict[str, set[str]] = {context: set() for context in homes}

    def meant(where: str, name: str) -> str:
        dataset, context = _context(path, where, name, datasets, homes)
        named[context].add(dataset)
        return context

    zeroshot = _zeroshot(path, _mapping(path, content, "zeroshot"), meant)
    fewshot: dict[str, Lists] = {}
    for name, lists in _mapping(path, content, "fewshot").items():
        context = meant(f'[fewshot."{name}"]', name)
        if context in fewshot:
            raise UserError(f"{path}: [fewshot] names context {context!r} twice; join the two in one section")
        fewshot[context] = _fewshot_lists(path, name, lists)
    fewshot = {context: lists for context, lists in fewshot.items() if context not in zeroshot}
    for context in (*zeroshot, *fewshot):
        rest = set[str]().union(*homes[context]) - named[context]
        # A source that fits several datasets is named as soon as one of them is.
        if any(owners and not owners & named[context] for owners in homes[context]):
            raise UserError(
                f"{path}: context {context!r} is also in dataset {_listed(rest)}, of which nothing is said. Here it "
                "is one context in all sources: name it in [zeroshot] there too, or give it another name in the recipe"
            )
    warnings = _tested_alone(path, fewshot)
    unlisted = [context for context in homes if context not in zeroshot and context not in fewshot]
    trains = {context: _trains(path, context, homes[context], trained, datasets) for context in unlisted}
    return CellLoadTable(zeroshot, fewshot, trains, warnings)


def _zeroshot(path: Path, section: dict[str, Any], meant: Callable[[str, str], str]) -> dict[str, Share]:
    zeroshot: dict[str, Share] = {}
    for name, share in section.items():
        context = meant(f'[zeroshot] "{name}"', name)
        if share not in _SHARES:
            raise UserError(f'{path}: [zeroshot] "{name}" is {shown(share)}; write "train", "val" or "test"')
        if zeroshot.setdefault(context, cast(Share, share)) != share:
            raise UserError(f"{path}: [zeroshot] gives context {context!r} both {zeroshot[context]!r} and {share!r}")
    return zeroshot


def _tested_alone(path: Path, fewshot: dict[str, Lists]) -> list[str]:
    """Take what is in both val and test out of val, and say so."""
    warnings = []
    for context, lists in fewshot.items():
        if both := [label for label in lists.get("val", []) if label in lists.get("test", [])]:
            lists["val"] = [label for label in lists["val"] if label not in both]
            said = f"{', '.join(both)} in both val and test of context {context}: taken as test alone"
            warnings.append(f"{path}: {said}")
    return warnings


def _datasets_of(source: str, place: str, datasets: Mapping[str, Any]) -> set[str]:
    """The datasets that a source is: that of its name, else those with its path, as a file, a folder or a pattern."""
    if source in datasets:
        return {source}
    return {name for name, where in datasets.items() if place and isinstance(where, str) and _matches(where, place)}


def _matches(where: str, place: str) -> bool:
    """Whether a path is what the path of a dataset means: {a,b} are alternatives, * and ? stand for any letters."""
    parts = re.split(r"\{([^{}]*)\}", where)
    alternatives = itertools.product(*(part.split(",") if n % 2 else [part] for n, part in enumerate(parts)))
    path = _absolute(place)
    meant = {_absolute("".join(pieces)) for pieces in alternatives}
    return not meant.isdisjoint({path, os.path.dirname(path)}) or any(fnmatchcase(path, one) for one in meant)


def _absolute(path: str) -> str:
    return os.path.abspath(expand(path))


def _trains(path: Path, context: str, homes: list[set[str]], trained: set[str], datasets: dict[str, Any]) -> bool:
    """Whether a context that no section names trains."""
    if not trained or trained == set(datasets):
        return bool(trained)
    said = {
        owners <= trained if owners and (owners <= trained or owners.isdisjoint(trained)) else None for owners in homes
    }
    if len(said) == 1 and None not in said:
        return said == {True}
    why = f"it is in {_listed(set[str]().union(*homes))}" if homes and all(homes) else "its source is none of them"
    raise UserError(
        f"{path}: context {context!r} is in no section, and [training] has only some of the datasets; {why}. Name the "
        'source as its dataset, or the context in [zeroshot], for example "dataset.context" = "train"'
    )


def _load(path: Path) -> dict[str, Any]:
    with reading(path, "TOML", "correct it"):
        try:
            with path.open("rb") as file:
                content = tomllib.load(file)
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"{path}: no such file; split.table is the path of a cell-load TOML") from None
    unknown = [section for section in content if section not in _SECTIONS]
    if unknown:
        raise UserError(f"{path}: unknown section [{unknown[0]}]; known: {', '.join(_SECTIONS)}")
    return content


def _mapping(path: Path, content: dict[str, Any], section: str) -> dict[str, Any]:
    value = content.get(section, {})
    if not isinstance(value, dict):
        raise UserError(f"{path}: {section} must be a section, [{section}], found {shown(value)}")
    return value


def _trained_datasets(path: Path, content: dict[str, Any], datasets: dict[str, Any]) -> set[str]:
    trained = _mapping(path, content, "training")
    for name, share in trained.items():
        if share != "train":
            raise UserError(f'{path}: [training] {name} is {shown(share)}; write "train" or leave it out')
        if name not in datasets:
            raise UserError(f"{path}: [training] {name} is not in [datasets] ({_listed(datasets)})")
    return set(trained)


def _context(
    path: Path, where: str, name: str, datasets: dict[str, Any], homes: dict[str, list[set[str]]]
) -> tuple[str, str]:
    dataset, dot, context = name.partition(".")
    if not dot:
        raise UserError(f'{path}: {where}: write "dataset.context" in quotes')
    if dataset not in datasets:
        raise UserError(f"{path}: {where}: {dataset!r} is not in [datasets] ({_listed(datasets)})")
    if context not in homes:
        raise UserError(f"{path}: {where}: there is no context {context!r}; there are {_listed(homes)}")
    # A source that is no dataset may be this one under another name.
    if homes[context] and all(owners and dataset not in owners for owners in homes[context]):
        there = _listed(one for one, found in homes.items() if any(dataset in owners for owners in found))
        raise UserError(f"{path}: {where}: dataset {dataset!r} has no context {context!r}; it has {there}")
    return dataset, context


def _fewshot_lists(path: Path, name: str, lists: Any) -> Lists:
    if not isinstance(lists, dict):
        raise UserError(f'{path}: [fewshot] {name}: write a section [fewshot."dataset.context"] with val and test')
    unknown = [key for key in lists if key not in ("val", "test")]
    if unknown:
        raise UserError(f'{path}: [fewshot."{name}"]: unknown key {unknown[0]}; known: val, test')
    for key, labels in lists.items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise UserError(
                f'{path}: [fewshot."{name}"] {key}: write a list of labels in quotes, found {shown(labels)}'
            )
    return cast(Lists, lists)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
