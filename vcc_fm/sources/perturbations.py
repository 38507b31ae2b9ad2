"""A column of perturbation labels, each brought to one form: the control, or target genes sorted and joined."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd

from vcc_fm.errors import UserError
from vcc_fm.recipe import SourceConfig
from vcc_fm.sources.controls import looks_like_control


def is_control(label: str, config: SourceConfig) -> bool:
    """Whether a label, stripped of spaces, is that of the control, or one of ``also_control``."""
    return label == config.control or any(_is(label, further.strip()) for further in config.also_control)


def _is(label: str, further: str) -> bool:
    return label.startswith(further[:-1]) if further.endswith("*") else label == further


def read_perturbations(
    column: pd.Series, config: SourceConfig, left_out: dict[str, int], where: str
) -> tuple[np.ndarray, dict[str, int]]:
    """Read the labels of the kept cells.

    Args:
        column: [n] label of each kept cell, none missing.
        config: what the control is, what joins the parts of a combination, and where the gene is in a part.
        left_out: labels of cells that were dropped for their label -> number of cells, for messages.
        where: source and file, for messages.

    Returns:
        [n] str labels, combinations as sorted parts joined by the separator; and repair -> number of cells.

    Raises:
        UserError: labels are numbers or all the same, no cell is a control or all are, or also_control or
            target_pattern applies to no label.
    """
    what = f"{where}: obs column {config.perturbation_column!r}"
    if not len(column):
        raise UserError(f"{what} has no label for any kept cell; set perturbation_column to the column that has")
    codes, labels = pd.factorize(column.astype(object))
    cells = np.bincount(codes)
    texts = [str(label).strip() for label in labels]
    if pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").notna().all():
        raise UserError(
            f"{what} holds numbers ({', '.join(texts[:5])}); set perturbation_column to target gene labels"
        )
    if len(texts) == 1:
        raise UserError(
            f"{what} is {texts[0]!r} in all {len(column)} kept cells; controls and perturbations are needed"
        )
    for further in config.also_control:
        if not any(_is(text, further.strip()) for text in texts):
            raise UserError(
                f"{what} has no label {further!r} (also_control) in a kept cell; {_frequent(texts, cells)}"
            )
    repairs: Counter[str] = Counter()
    parsed, matched = [], False
    for label, text, number in zip(labels, texts, cells.tolist(), strict=True):
        perturbation, done, found = _parse(text, config)
        if text != str(label):
            done.append("labels stripped of spaces")
        parsed.append(perturbation)
        matched |= found
        repairs.update(dict.fromkeys(done, number))
    if config.control not in parsed:
        raise UserError(
            f"{what} has no control label {config.control!r}; set control ({_hint(texts, cells, left_out)})"
        )
    if config.target_pattern is not None and not matched:
        raise UserError(
            f"{what}: target_pattern {config.target_pattern!r} matches no part of a label (parts are joined by "
            f"{config.separator!r}); {_frequent(texts, cells)}"
        )
    if len(set(parsed)) == 1:
        raise UserError(f"{what} holds controls only ({config.control!r}); perturbations are needed too")
    return np.array(parsed, dtype=object)[codes], dict(repairs)


def _hint(texts: list[str], cells: np.ndarray, left_out: dict[str, int]) -> str:
    likely = [text for text in texts if looks_like_control(text)]
    hint = f"likely: {', '.join(likely[:5])}" if likely else _frequent(texts, cells)
    if left_out:
        said = ", ".join(f"{label!r} ({number:,})" for label, number in list(left_out.items())[:5])
        hint += f"; cells left out by quality.unassigned: {said}"
    return hint


def _frequent(texts: list[str], cells: np.ndarray) -> str:
    frequent = [texts[place] for place in np.argsort(-cells, kind="stable")[:3]]
    return f"most frequent labels: {', '.join(frequent)}"


def _parse(text: str, config: SourceConfig) -> tuple[str, list[str], bool]:
    """A label in its one form, the repairs that led to it, and whether target_pattern matched a part."""
    control, separator = config.control, config.separator
    if text == control:
        return control, [], False
    if is_control(text, config):
        return control, ["labels read as control"], False
    done = []
    parts = text.split(separator)
    named = [part.strip() for part in parts]
    if named != parts:
        done.append("combination parts stripped of spaces")
    targets = [part for part in named if part and not is_control(part, config)]
    if "" in named:
        done.append("empty combination parts left out")
    if len(targets) + named.count("") < len(named):
        done.append(f"combinations with {control!r} read without it")
    matched = False
    if config.target_pattern is not None:
        found = [re.fullmatch(config.target_pattern, part) for part in targets]
        genes = [match.group(1) if match else None for match in found]
        matched = any(genes)
        if matched:
            done.append("target genes read by target_pattern")
        if not all(genes):
            done.append("labels with parts that target_pattern does not match, left as they are")
        targets = [gene or part for gene, part in zip(genes, targets, strict=True)]
    distinct = list(dict.fromkeys(targets))
    if len(distinct) < len(targets):
        done.append("repeated combination parts read once")
    if sorted(distinct) != distinct:
        done.append("combination parts sorted")
    return separator.join(sorted(distinct)) or control, done, matched
