"""Read a recipe: YAML with overrides, checked key by key, and every mistake said in the recipe's own words.

An unknown key is an error that names the nearest known one, a wrong type is an error that names the field.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.recipe.parts import Chosen
from vcc_fm.recipe.recipe import CzRecipe, Recipe, RunRecipe, SlideRecipe
from vcc_fm.recipe.section import Section

_MOST_FAULTS = 8  # told at once
_MOST_LETTERS = 120  # of a key


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, a key that repeats is an error, and so is what no file can hold."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise yaml.constructor.ConstructorError(None, None, "a text holds NUL or half a letter", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: what it brings gives way to what stands here
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise UserError(
                    f"{node.start_mark.name}, line {key_node.start_mark.line + 1}: {shown(key)} is no key; use a word"
                )
            if key in seen:
                raise UserError(
                    f"{node.start_mark.name}, line {key_node.start_mark.line + 1}: key {shown(key)} repeats"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|^[-+]?(\d[\d_]*)?\.\d+([eE][-+]?\d+)?$|^[-+]?\d[\d_]*\.$"),
    list("-+0123456789."),
)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """:func:`load_any`, for what works on perturbations alone.

    Raises:
        UserError: as there, or it is a recipe of another kind.
    """
    recipe = load_any(path, overrides)
    if not isinstance(recipe, Recipe):
        kind = next(section for section, other in KINDS.items() if isinstance(recipe, other))
        raise UserError(f"{path}: a recipe on {kind}, which this command does not take; use `vcc-fm run`")
    return recipe


def load_any(path: str | Path, overrides: list[str] | None = None) -> RunRecipe:
    """Read a YAML recipe, apply ``key.key=value`` overrides, and check it; its kind follows from ``KINDS``.

    Raises:
        UserError: the file is missing or no YAML mapping, an override has no ``=`` or names no key of the recipe,
            a key is unknown (the nearest one is named), or a value has the wrong type.
    """
    path = Path(path)
    with reading(path, "YAML", "correct it"):
        try:
            with path.open(encoding="utf-8") as file:
                content = _read_yaml(file)
        except FileNotFoundError:
            raise UserError(f"{path}: no such recipe") from None
        except IsADirectoryError:
            raise UserError(f"{path}: is a folder; give a recipe, a YAML file") from None
        except yaml.MarkedYAMLError as error:
            raise UserError(f"{path} is not readable as YAML: {_marked(error)}; correct it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, found {type(content).__name__}")
    for override in overrides or []:
        with reading(f"override {shown(override)}", "key=value", "correct it"):
            _apply(content, override)
    with reading(path, "a recipe", "correct it"):
        try:
            return _kind(content).model_validate(content)
        except ValidationError as error:
            faults = error.errors()
            more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
            said = "; ".join(_describe(entry, content) for entry in faults[:_MOST_FAULTS])
            raise UserError(f"{path}: {said}{more}") from None


KINDS: dict[str, type[RunRecipe]] = {"slides": SlideRecipe, "cz": CzRecipe}
"""The section that only one kind of recipe has, and that kind."""


def _kind(content: dict[str, Any]) -> type[RunRecipe]:
    return next((kind for section, kind in KINDS.items() if section in content), Recipe)


def _marked(error: yaml.MarkedYAMLError) -> str:
    """What YAML finds wrong, and where, in one line."""
    mark = error.problem_mark or error.context_mark
    at = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    return (error.problem or error.context or "damaged") + at


def _read_yaml(text: str | typing.TextIO) -> Any:
    # The loader's name says unsafe to a linter; it derives from SafeLoader and builds plain values only.
    return yaml.load(text, Loader=_Loader)  # noqa: S506


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"override {shown(override)}: write key=value, for example train.lr=1e-4")
    try:
        parsed = _read_yaml(value)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"override {shown(override)}: the value is not YAML: {_marked(error)}") from None
    *parents, last = key.split(".")
    place: Any = content
    for depth, part in enumerate(parents):
        if isinstance(place, list):
            place = place[_position(place, part, key)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise UserError(f"override {shown(override)}: {_key(parents[: depth + 1])} holds a value, not keys")
    if isinstance(place, list):
        place[_position(place, last, key)] = parsed
    else:
        place[last] = parsed


def _key(parts: Iterable[str]) -> str:
    """A key of the recipe as messages call it: not too long, and in one line whatever it holds."""
    text = ".".join(parts)[:_MOST_LETTERS]
    return text if text.isprintable() else repr(text)


def _position(place: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(place):
        raise UserError(f"override {_key([key])}: {shown(part)} is no position in a list of {len(place)}")
    return int(part)


def _describe(entry: Any, content: dict[str, Any]) -> str:
    """One pydantic error in the words of the recipe."""
    where = _key(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        *parents, last = (str(part) for part in entry["loc"])
        return f"unknown key {where} ({_hint(parents, last[:_MOST_LETTERS], content)})"
    if entry["type"] == "missing":
        return f"{where} is missing"
    if entry["type"] == "value_error":
        return str(entry["ctx"]["error"])
    return f"{where}: {entry['msg'].lower()}, found {shown(entry['input'])}"


def _hint(parents: list[str], last: str, content: dict[str, Any]) -> str:
    """What an unknown key may have meant."""
    section, owners = _section_at(parents, content)
    if near := difflib.get_close_matches(last, list(section.model_fields), n=1):
        return f"did you mean {near[0]}?"
    if of := [name for name, other in owners.items() if last in other.model_fields]:
        return f"a key of encoder: {' and '.join(of)}"
    return f"known keys: {', '.join(section.model_fields)}"


def _section_at(parents: list[str], content: Any) -> tuple[type[Section], dict[str, type[Section]]]:
    """The section at a place of the recipe, and the sections of all parts that it could be of."""
    section: type[Section] = _kind(content)
    owners = dict[str, type[Section]]()
    for part in parents:
        content = content[int(part)] if isinstance(content, list) else content.get(part)
        if part not in section.model_fields:  # a place in a list, a name in a mapping
            continue
        field = section.model_fields[part]
        chosen = _chosen(field)
        owners = {} if chosen is None else chosen.sections()
        section = owners[chosen.name_in(content)] if chosen else next(_sections(field.annotation))
    return section, owners


def _chosen(field: FieldInfo) -> Chosen | None:
    """Where the keys of a field are those of a part that the recipe chooses."""
    found = (getattr(one, "func", None) for one in field.metadata)
    return next((one for one in found if isinstance(one, Chosen)), None)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The Section classes inside a type annotation (Optional, list)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif typing.get_origin(annotation) in (list, dict, types.UnionType, typing.Union, Annotated):
        for inner in typing.get_args(annotation):
            yield from _sections(inner)


def explain(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key of the recipe as (dotted key, default or ``required``, description with unit).

    The description of a key that not every encoder has begins with the names of those that have it.
    """
    for name, field in section.model_fields.items():
        inner, chosen = next(_sections(field.annotation), None), _chosen(field)
        within: dict[Any, str] = {} if inner is None else {list: ".0", dict: ".NAME"}
        key = prefix + name + within.get(typing.get_origin(field.annotation), "")
        if chosen is not None:
            yield key, "", field.description or ""
            yield from _explain_parts(chosen, key)
        elif inner is not None:
            yield key, "", field.description or ""
            yield from explain(inner, key + ".")
        else:
            default = "required" if field.is_required() else json.dumps(field.default)
            yield key, default, field.description or ""


def _explain_parts(chosen: Chosen, key: str) -> Iterator[tuple[str, str, str]]:
    """The keys of all parts of one kind, each once."""
    sections = chosen.sections()
    told = {part: {row[0]: row for row in explain(section, f"{key}.")} for part, section in sections.items()}
    names = [f"{key}.encoder"]
    descriptions = "; ".join(f"{part}: {rows[names[0]][2]}" for part, rows in told.items())
    yield names[0], json.dumps(chosen.default), descriptions
    for name in dict.fromkeys(name for rows in told.values() for name in rows if name not in names):
        having = [part for part, rows in told.items() if name in rows]
        _, default, description = told[having[0]][name]
        yield name, default, description if len(having) == len(told) else f"{', '.join(having)}: {description}"
