"""Reader of a cell-load TOML, the field's own table of held-out contexts and perturbations.

The sections are ``[datasets]`` (name = path), ``[training]`` (name = "train"), ``[zeroshot]``
("dataset.context" = "train", "val" or "test") and ``[fewshot."dataset.context"]`` (val = [...], test = [...]; the
context's other perturbations train). Paths are not opened: the cells come from the store. Stricter than cell-load in
one respect: whatever would be silently ignored or would let a test cell into training is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vcc_fm.errors import UserError

Share = Literal["train", "val", "test"]

_SHARES = ("train", "val", "test")
_SECTIONS = ("datasets", "training", "zeroshot", "fewshot")


@dataclass(frozen=True)
class CellLoadTable:
    """What a table says, keyed by context.

    Attributes:
        zeroshot: context -> the share that takes all its perturbations.
        fewshot: context -> {"val": labels, "test": labels}; its other perturbations train. Never a zeroshot context.
        unlisted: contexts in neither section, which train if their dataset is in [training].
        rest_trains: whether the unlisted contexts train.
    """

    zeroshot: dict[str, Share]
    fewshot: dict[str, dict[Share, list[str]]]
    unlisted: list[str]
    rest_trains: bool


def read_cell_load_table(path: str | Path, contexts: Iterable[str]) -> CellLoadTable:
    """Read a cell-load TOML and match it to the contexts there are.

    A name "dataset.context" means the context that equals what follows its first dot. As in cell-load, [zeroshot] wins
    over [fewshot], and a context in neither trains only if its dataset is in [training].

    Args:
        path: the TOML file.
        contexts: the contexts of the cell store.

    Raises:
        UserError: the file is missing or no TOML; a section, a share or a value is none that cell-load knows; a name
            has no dataset in [datasets] or matches no context; two names give one context different roles; or a
            context in no section cannot be placed, because only some of the datasets are in [training].
    """
    path, known = Path(path), sorted(contexts)
    content = _load(path)
    datasets = _mapping(path, content, "datasets")
    dotted = [name for name in datasets if "." in name]
    if dotted:
        raise UserError(f"{path}: [datasets] {dotted[0]}: a dataset's name must not contain a dot")
    trained = _trained_datasets(path, content, datasets)

    zeroshot: dict[str, Share] = {}
    for name, share in _mapping(path, content, "zeroshot").items():
        context = _context(path, f'[zeroshot] "{name}"', name, datasets, known)
        if share not in _SHARES:
            raise UserError(f'{path}: [zeroshot] "{name}" is {share!r}; write "train", "val" or "test"')
        if zeroshot.setdefault(context, cast(Share, share)) != share:
            raise UserError(f"{path}: [zeroshot] gives context {context!r} both {zeroshot[context]!r} and {share!r}")

    fewshot: dict[str, dict[Share, list[str]]] = {}
    for name, lists in _mapping(path, content, "fewshot").items():
        context = _context(path, f'[fewshot."{name}"]', name, datasets, known)
        if context in fewshot:
            raise UserError(f"{path}: [fewshot] names context {context!r} twice; join the two in one section")
        fewshot[context] = _fewshot_lists(path, name, lists)
    fewshot = {context: lists for context, lists in fewshot.items() if context not in zeroshot}

    unlisted = [context for context in known if context not in zeroshot and context not in fewshot]
    if unlisted and trained and trained != set(datasets):
        raise UserError(
            f"{path}: context {unlisted[0]!r} is in no section, and [training] has only some of the datasets; "
            'name it in [zeroshot], for example "dataset.context" = "train"'
        )
    return CellLoadTable(zeroshot, fewshot, unlisted, bool(trained))


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; split.table is the path of a cell-load TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as TOML: {error}") from None
    unknown = [section for section in content if section not in _SECTIONS]
    if unknown:
        raise UserError(f"{path}: unknown section [{unknown[0]}]; known: {', '.join(_SECTIONS)}")
    return content


def _mapping(path: Path, content: dict[str, Any], section: str) -> dict[str, Any]:
    value = content.get(section, {})
    if not isinstance(value, dict):
        raise UserError(f"{path}: {section} must be a section, [{section}], found {value!r}")
    return value


def _trained_datasets(path: Path, content: dict[str, Any], datasets: dict[str, Any]) -> set[str]:
    trained = _mapping(path, content, "training")
    for name, share in trained.items():
        if share != "train":
            raise UserError(f'{path}: [training] {name} is {share!r}; write "train" or leave it out')
        if name not in datasets:
            raise UserError(f"{path}: [training] {name} is not in [datasets] ({_listed(datasets)})")
    return set(trained)


def _context(path: Path, where: str, name: str, datasets: dict[str, Any], known: list[str]) -> str:
    dataset, dot, context = name.partition(".")
    if not dot:
        raise UserError(f'{path}: {where}: write "dataset.context" in quotes')
    if dataset not in datasets:
        raise UserError(f"{path}: {where}: {dataset!r} is not in [datasets] ({_listed(datasets)})")
    if context not in known:
        raise UserError(f"{path}: {where}: there is no context {context!r}; there are {_listed(known)}")
    return context


def _fewshot_lists(path: Path, name: str, lists: Any) -> dict[Share, list[str]]:
    if not isinstance(lists, dict):
        raise UserError(f'{path}: [fewshot] {name}: write a section [fewshot."dataset.context"] with val and test')
    unknown = [key for key in lists if key not in ("val", "test")]
    if unknown:
        raise UserError(f'{path}: [fewshot."{name}"]: unknown key {unknown[0]}; known: val, test')
    for key, labels in lists.items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise UserError(f'{path}: [fewshot."{name}"] {key}: write a list of labels in quotes, found {labels!r}')
    both = sorted(set(lists.get("val", [])) & set(lists.get("test", [])))
    if both:
        raise UserError(f'{path}: [fewshot."{name}"]: {both[0]!r} is in both val and test; keep it in one')
    return cast(dict[Share, list[str]], lists)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
