"""A column of perturbation labels, each brought to one form: the control, or target genes sorted and joined."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.controls import looks_like_control

STRAND = r"_[+-]_\d.*"
"""What follows the gene in a guide's name of the CRISPRi v2 libraries: ``TP53_+_9084074.23-P1P2``."""


def split_label(label: str, separator: str) -> list[str]:
    """The parts of a label as they stand; the strand in a guide's name (``STRAND``) separates none."""
    return re.split(_between(separator), label)


def combination(genes: Iterable[str], separator: str) -> str:
    """The one label of a perturbation of these target genes: each once, in alphabetical order."""
    return separator.join(sorted(set(genes)))


def _between(separator: str) -> str:
    return rf"(?!(?<=_)[+-]_\d){re.escape(separator)}"


def is_control(label: str, config: SourceConfig) -> bool:
    """Whether a label, stripped of spaces, is that of the control, or one of ``also_control``."""
    return label == config.control or any(_is(label, further, config) for further in config.also_control)


def _is(label: str, further: str, config: SourceConfig) -> bool:
    """Whether a label is one of ``also_control``; the * of NTC_* is no separator: NTC_1+A is a perturbation."""
    return re.fullmatch(_expression(further, config.separator), label) is not None


def _expression(further: str, separator: str) -> str:
    further = further.strip()
    if not further.endswith("*"):
        return re.escape(further)
    return f"{re.escape(further[:-1])}(?:(?!{_between(separator)}).)*"


def _as_part(expression: str, separator: str) -> str:
    """Where an expression is a whole part of a label, with the separator before it."""
    between = _between(separator)
    return rf"(?:^|{between})\s*(?:{expression})\s*(?={between}|$)"


def _holds(text: str, further: str, config: SourceConfig) -> bool:
    """Whether a label is, or has as a part, one of ``also_control``, by its name or by the gene of a guide."""
    if re.search(_as_part(_expression(further, config.separator), config.separator), text):
        return True
    genes = [_gene(part.strip(), config.target_pattern or r"(?!)()") for part in _parts(text, config)]
    return any(_is(gene.strip(), further, config) for gene in genes if gene)


def _without_controls(text: str, config: SourceConfig) -> str:
    """A label without the controls in it whose names hold the separator: splitting would take these apart."""
    split = [name for name in (config.control, *config.also_control) if config.separator in name]
    if not split:
        return text
    names = "|".join(_expression(name, config.separator) for name in split)
    rest = re.sub(_as_part(names, config.separator), "", text)
    return rest.removeprefix(config.separator) if rest != text else text


def read_perturbations(
    labels: Sequence[object], cells: np.ndarray, config: SourceConfig, left_out: dict[str, int], where: str
) -> tuple[list[str], dict[str, int]]:
    """Read the labels of the kept cells.

    Args:
        labels: [L] the distinct labels of the kept cells, none missing, in the order in which they come.
        cells: [L] int64, number of kept cells with each.
        config: what the control is, what joins the parts of a combination, and where the gene is in a part.
        left_out: labels of cells that were dropped for their label -> number of cells, for messages.
        where: source and file, for messages.

    Returns:
        [L] str labels, combinations as sorted parts joined by the separator; and repair -> number of cells.

    Raises:
        UserError: labels are numbers or all the same, no cell is a control or all are, or also_control or
            target_pattern applies to no label.
    """
    what = f"{where}: obs column {config.perturbation_column!r}"
    if not labels:
        raise UserError(f"{what} has no label for any kept cell; set perturbation_column to the column that has")
    texts = [str(label).strip() for label in labels]
    _check_texts(texts, cells, config, what)
    repairs: Counter[str] = Counter()
    parsed, matched = [], False
    for label, text, number in zip(labels, texts, cells.tolist(), strict=True):
        perturbation, done, found = _parse(text, config)
        if len(split_label(perturbation, config.separator)) < perturbation.count(config.separator) + 1:
            raise UserError(
                f"{what}: {config.separator!r} in {text!r} is a guide's strand and joins no genes; set target_pattern "
                rf"to (.+){STRAND}, or separator to what is in no label"
            )
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
    return parsed, dict(repairs)


def _check_texts(texts: list[str], cells: np.ndarray, config: SourceConfig, what: str) -> None:
    if pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").notna().all():
        raise UserError(
            f"{what} holds numbers ({', '.join(texts[:5])}); set perturbation_column to target gene labels"
        )
    for further in config.also_control:
        if not any(_holds(text, further, config) for text in texts):
            raise UserError(
                f"{what} has no label {further!r} (also_control) in a kept cell; {_frequent(texts, cells)}"
            )


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


def _parts(text: str, config: SourceConfig) -> list[str]:
    return split_label(_without_controls(text, config), config.separator)


def _parse(text: str, config: SourceConfig) -> tuple[str, list[str], bool]:
    """A label in its one form, the repairs that led to it, and whether target_pattern matched a part."""
    control, separator = config.control, config.separator
    if text == control:
        return control, [], False
    if is_control(text, config):
        return control, ["labels read as control"], False
    done = []
    rest = _without_controls(text, config)
    parts = split_label(rest, separator)
    named = [part.strip() for part in parts]
    if named != parts:
        done.append("combination parts stripped of spaces")
    targets = [part for part in named if part and not is_control(part, config)]
    without = rest != text or len(targets) + named.count("") < len(named)
    if "" in named and rest:
        done.append("empty combination parts left out")
    matched = False
    if config.target_pattern is not None:
        genes = [_gene(part, config.target_pattern) for part in targets]
        whole = _gene(rest, config.target_pattern)
        if whole and separator not in whole and not any(genes) and len(targets) == len(parts):
            # What looks like a separator is a part of the guide's name.
            targets, genes, done = [rest], [whole], []
        matched = any(genes)
        if matched:
            done.append("target genes read by target_pattern")
        if not all(genes):
            done.append("labels with parts that target_pattern does not match, left as they are")
        targets = [(gene or part).strip() for gene, part in zip(genes, targets, strict=True)]
        # Guides of a control, NTC_sg2, are known for controls by their gene only.
        perturbed = [gene for gene in targets if not is_control(gene, config)]
        without |= len(perturbed) < len(targets)
        targets = perturbed
    if without:
        done.append(f"combinations with {control!r} read without it" if targets else "labels read as control")
    distinct = list(dict.fromkeys(targets))
    if len(distinct) < len(targets):
        done.append("repeated combination parts read once")
    if sorted(distinct) != distinct:
        done.append("combination parts sorted")
    return combination(distinct, separator) or control, done, matched


def _gene(text: str, pattern: str) -> str | None:
    match = re.fullmatch(pattern, text)
    return match.group(1) if match else None
