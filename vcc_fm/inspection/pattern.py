"""A regular expression that finds the target gene in a label: BLMH in BLMH_sg1, in sgBLMH-2, in BLMH_KO."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Set
from typing import NamedTuple

from vcc_fm.sources.perturbations import STRAND, split_label

_MARK = "-_.:#/ "
_MOST_LABELS = 5000
_MOST_FORMS = 4
_LEAST_MATCHED = 0.8
_MOST_DOUBLE = 0.01
_GLUED_BEFORE = re.compile(r"(sg|si|sh|g)(?=[A-Za-z])")
_GLUED_AFTER = re.compile(r"(sg|g)\d+$")


class Pattern(NamedTuple):
    """What reads labels."""

    pattern: str
    separator: str  # what joins the parts of combinations
    genes: float  # share of the labels of which every part is a gene then


def find_pattern(
    labels: list[str], genes: Set[str], controls: Set[str], separators: tuple[str, ...]
) -> Pattern | None:
    """The expression and the separator that find genes in most labels; None where none does.

    Args:
        labels: distinct, without those of controls.
        genes: names of the genes of the file; what holds no letter is none.
        controls: labels of controls, which may be parts of combinations.
        separators: to try.
    """
    some = labels[:: max(1, len(labels) // _MOST_LABELS)]
    genes = {gene for gene in genes if any(letter.isalpha() for letter in gene)}
    known = genes | controls
    found = []
    for separator in separators:
        if separator != separators[0] and not any(separator in label for label in some):
            continue
        split = [[part.strip() for part in split_label(label, separator)] for label in some]
        parts = list(dict.fromkeys(part for label in split for part in label if part not in known))
        for pattern in (f"(.+){STRAND}", *_candidates(parts, genes)):
            read = {part: re.fullmatch(pattern, part) for part in parts}
            if sum(match is not None for match in read.values()) < _LEAST_MATCHED * len(parts):
                continue
            names = {part: match.group(1) for part, match in read.items() if match is not None}
            share = sum(all(names.get(part, part) in known for part in label) for label in split) / len(split)
            found.append((share, sum(map(len, split)), Pattern(pattern, separator, share)))
    # Of two that read as much, the one that takes more apart: a second guide is no tail of the first.
    return max(found, key=lambda one: one[:2])[2] if found else None


def _candidates(parts: list[str], genes: Set[str]) -> Iterator[str]:
    """Expressions, the most exact first: of those that find as many genes, that is taken."""
    cuts = [cut for part in parts if (cut := _cut(part, genes)) is not None]
    # A second gene beside the first is no part of a form: the labels are combinations.
    if sum(_has_other(f"{before} {after}", gene, genes) for before, gene, after in cuts) > _MOST_DOUBLE * len(cuts):
        return
    forms = Counter((_general(before), _general(after)) for before, _, after in cuts).most_common()
    if not forms:
        return
    for number in range(1, min(_MOST_FORMS, len(forms)) + 1):
        before = list(dict.fromkeys(form[0] for form, _ in forms[:number]))
        after = list(dict.fromkeys(form[1] for form, _ in forms[:number]))
        yield f"{_any_of(before)}(.+){_any_of(after)}"
    # What follows is free, as a guide's sequence is.
    first = forms[0][0][1][:1]
    if first and first in _MARK:
        yield f"([^{first}]+){_escaped(first)}.*"


def _cut(part: str, genes: Set[str]) -> tuple[str, str, str] | None:
    """What is before the longest gene in a part, the gene, and what is after it."""
    marks = [place for place, letter in enumerate(part) if letter in _MARK]
    glued = _GLUED_BEFORE.match(part)
    tail = _GLUED_AFTER.search(part)
    starts = [0, *(place + 1 for place in marks)] + ([glued.end()] if glued else [])
    stops = [*marks, len(part)] + ([tail.start()] if tail else [])
    inside = [(start, stop) for start in starts for stop in stops if part[start:stop] in genes]
    if not inside:
        return None
    start, stop = max(inside, key=lambda one: (one[1] - one[0], -one[0]))
    return part[:start], part[start:stop], part[stop:]


def _has_other(text: str, gene: str, genes: Set[str]) -> bool:
    return any(word in genes and word != gene for word in re.split(f"[{re.escape(_MARK)}+|,;]", text))


def _general(text: str) -> str:
    if re.fullmatch(STRAND, text):
        return STRAND
    return re.sub(r"\d+", lambda number: r"\d+", _escaped(text))


def _escaped(text: str) -> str:
    """For a regular expression; - and a space need nothing, and are easier to read so."""
    return re.sub(r"[.^$*+?{}\[\]\\|()]", lambda mark: "\\" + mark.group(), text)


def _any_of(forms: list[str]) -> str:
    return forms[0] if len(forms) == 1 else f"(?:{'|'.join(forms)})"
