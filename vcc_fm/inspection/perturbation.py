"""A column of obs that may label the perturbation: its controls, combinations, and whether its targets are genes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.inspection.genes import is_ensembl
from vcc_fm.inspection.pattern import Pattern, find_pattern
from vcc_fm.recipe.data import QualityConfig
from vcc_fm.sources.controls import looks_like_control
from vcc_fm.sources.labels import folded, missing_labels
from vcc_fm.sources.perturbations import STRAND, split_label

SEPARATORS = ("+", "|", ",", ";", "_")
_GENETIC = r"targets?|genes?|guides?|sg_?rnas?|grnas?|sg_?ids?|knock_?(?:outs?|downs?)|crispr[a-z]*"
_OTHER = (
    r"treat(?:ments?|ed)?|drugs?|compounds?|chemicals?|agents?|stim[a-z]*|cytokines?|ligands?|exposures?|infections?"
    r"|genotypes?"
)
PERTURBATION = re.compile(rf"(?:^|[^a-z])(?:perturb[a-z]*|conditions?|{_GENETIC}|{_OTHER})(?:$|[^a-z])", re.IGNORECASE)
HARDLY = 0.1
"""Share of targets below which nearly none is a gene of the file."""
_OF_GENES = re.compile(rf"(?:^|[^a-z])(?:{_GENETIC})(?:$|[^a-z])", re.IGNORECASE)
_OF_OTHERS = re.compile(rf"(?:^|[^a-z])(?:{_OTHER})(?:$|[^a-z])", re.IGNORECASE)
_SYMBOL = r"[A-Z][A-Z0-9]+(?:[-.][A-Z0-9]+)*(?:orf\d+)?$|[A-Z][a-z]+[a-z0-9]*\d[a-z0-9]*$"
_LEAST_GENES = 4  # labels; of fewer that look like symbols, LPS and PMA, nothing follows
_UNASSIGNED = re.compile(
    r"(un-?(assigned|known|labell?ed|determined|mapped)|n/?a|multiplets?|doublets?|ambiguous|negative"
    r"|no[-_ ]?(guide|call|grna|sgrna)s?)$",
    re.IGNORECASE,
)
_DROPPED = frozenset(folded(label) for label in QualityConfig().unassigned)
# A guide's mark stands apart, or after capitals: NTC_sg1, NTg1; the last letter of non-targeting_1 is none.
_NUMBERED = re.compile(r"(.*?)(?:[-_. #]+(?:sg|g|guide)?|(?<=[A-Z])(?:sg|g))?[-_. #]*\d+$")
_PREFIX = re.compile(r"(GRCh\d+|GRCm\d+|hg\d+|mm\d+)_+")
_VERSION = re.compile(r"\.\d+$")
_MOST_CANDIDATES = 5


class GeneNames(NamedTuple):
    """Names of the genes of a file."""

    read: frozenset[str]
    """The symbols that a recipe is to read."""
    elsewhere: Mapping[str, frozenset[str]]
    """``the var index`` or a column of var with other names -> these."""


@dataclass(frozen=True)
class PerturbationFacts:
    """A column that may label the perturbation."""

    column: str
    labels: int
    genes: float
    """Share of the labels, controls and unassigned ones excepted, of which every part is a gene of the file."""
    pattern: str | None
    """Regular expression that finds the genes in labels which hold more; None where there is no need, or none."""
    by_pattern: float
    """Share of the labels of which every part is a gene, with ``pattern``."""
    separator: str
    """What joins the parts of combinations, or is in no label."""
    combinations: int
    torn: list[str]
    """Labels that hold a + of which neither side is a gene, a control or a label: no combinations."""
    controls: dict[str, int]
    """Labels that look like a control -> cells, the most frequent first."""
    control: str | None
    """What ``control`` of a recipe is to be."""
    also_control: list[str]
    """And ``also_control``."""
    unassigned: dict[str, int]
    """Labels of cells without a guide, or with several -> cells; those that a recipe does not drop by itself."""
    unlabelled: int
    """Cells without a label."""
    candidates: dict[str, int]
    """Where no label looks like a control: the most frequent ones -> cells, those that are no genes first."""
    examples: list[str]
    """Labels of targets."""
    otherwise: str | None
    """How nearly all targets are named, where nearly none is a gene of the file."""
    genetic: bool
    """Whether the labels are of genes, of the file or not; else they are drugs, stimuli, genotypes or the like."""
    score: float

    @property
    def why(self) -> str:
        """What speaks for the column."""
        said = [many(self.labels, "label")]
        if self.genes:
            said.append(f"{self.genes:.0%} of them genes of the file")
        if self.pattern is not None:
            said.append(f"{self.by_pattern:.0%} of them genes, read by {self.pattern}")
        if self.combinations:
            said.append(f"{many(self.combinations, 'combination')} joined by {self.separator!r}")
        if self.unlabelled:
            said.append(f"{many(self.unlabelled, 'cell')} without a label")
        return ", ".join(said)


def read_perturbation(column: pd.Series, counted: pd.Series, names: GeneNames) -> PerturbationFacts:
    """Tell what a column of labels holds.

    Args:
        column: of obs.
        counted: label -> cells.
        names: of the genes of the file.
    """
    genes = names.read
    everything: dict[str, int] = {}
    for label, number in counted.items():
        text = str(label).strip()
        if number:
            everything[text] = everything.get(text, 0) + int(number)
    without = missing_labels(pd.Series(list(everything), dtype=object))
    everything = {label: n for (label, n), none in zip(everything.items(), without, strict=True) if not none}
    cells = {label: n for label, n in everything.items() if folded(label) not in _DROPPED or label in genes}
    unassigned = {label: n for label, n in cells.items() if _UNASSIGNED.match(label) and label not in genes}
    controls = {
        label: n
        for label, n in cells.items()
        if label not in genes and label not in unassigned and looks_like_control(label)
    }
    if not controls and "CTRL" in cells:  # a gene has that name
        controls = {"CTRL": cells["CTRL"]}
    controls = dict(sorted(controls.items(), key=lambda one: -one[1]))
    control, also = _control(list(controls), [label for label in everything if label not in controls])
    rest = [label for label in cells if label not in controls and label not in unassigned]
    known = genes | set(controls)
    splits = {separator: _combinations(rest, separator, known | set(rest)) for separator in SEPARATORS}
    separator = max(SEPARATORS, key=lambda one: len(splits[one]))
    joined = splits[separator]
    parts = [split_label(label, separator) if label in joined else [label] for label in rest]
    named = float(np.mean([all(part.strip() in known for part in label) for label in parts])) if parts else 0.0
    found = find_pattern(rest, genes, controls.keys(), SEPARATORS[:-1]) if rest and named < 0.5 else None
    if found is not None and found.genes <= named + HARDLY and not found.pattern.endswith(STRAND):
        found = None
    torn: list[str] = []
    if found is not None:
        separator = found.separator
    elif not joined:
        apart = {label: _parts(label, "+") for label in rest if "+" in label}
        torn = [label for label, split in apart.items() if known.isdisjoint(split)]
        whole = apart and len(torn) == len(apart)
        separator = next((one for one in SEPARATORS if not any(one in label for label in rest)), "+") if whole else "+"
    share = max(named, found.genes if found else 0.0)
    otherwise = _otherwise(rest, names) if rest and share < HARDLY else None
    return PerturbationFacts(
        column=str(column.name),
        labels=len(cells),
        genes=named,
        pattern=found.pattern if found else None,
        by_pattern=found.genes if found else 0.0,
        separator=separator,
        combinations=sum(len(split_label(label, separator)) > 1 for label in rest),
        torn=torn,
        controls=controls,
        control=control,
        also_control=also,
        unassigned=unassigned,
        unlabelled=len(column) - sum(everything.values()),
        candidates={} if controls else _candidates(everything, genes),
        examples=rest[:3],
        otherwise=otherwise,
        genetic=share >= HARDLY or found is not None or otherwise is not None or _genetic(str(column.name), rest),
        score=_score(str(column.name), rest, named, found, bool(controls)),
    )


def _genetic(name: str, labels: list[str]) -> bool:
    """Whether labels that are no genes of the file are genes all the same, by the column's name or as they look."""
    if _OF_GENES.search(name) or _OF_OTHERS.search(name):
        return not _OF_OTHERS.search(name)
    alike = pd.Series(labels, dtype=object).str.match(_SYMBOL) if labels else pd.Series([False])
    return len(labels) >= _LEAST_GENES and bool(alike.mean() >= 0.5)


def _score(name: str, labels: list[str], named: float, found: Pattern | None, controls: bool) -> float:
    # A control alone, or a name alone, is no perturbation; nor is a number.
    if not labels or pd.to_numeric(pd.Series(labels, dtype=object), errors="coerce").notna().all():
        return 0.0
    by_pattern = found.genes if found else 0.0
    return max(named, 0.5 * by_pattern) + 0.5 * controls + 0.25 * bool(PERTURBATION.search(name))


def _control(controls: list[str], others: list[str]) -> tuple[str | None, list[str]]:
    """The control, and the further labels that are one: numbered ones by what they begin with, others by name."""
    if len(controls) < 2:
        return next(iter(controls), None), []
    stems = {match.group(1) if (match := _NUMBERED.match(label)) else label for label in controls}
    control, *further = controls
    first, last = min(controls), max(controls)
    same = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    prefix = first[:same].rstrip("0123456789")
    # A prefix that another label begins with too would make that a control.
    if len(stems) == 1 and "" not in stems and prefix and not any(label.startswith(prefix) for label in others):
        return control, [f"{prefix}*"]
    return control, further


def _candidates(cells: dict[str, int], genes: frozenset[str]) -> dict[str, int]:
    order = sorted(cells, key=lambda label: (label in genes, -cells[label]))
    return {label: cells[label] for label in order[:_MOST_CANDIDATES]}


def _combinations(labels: list[str], separator: str, known: set[str] | frozenset[str]) -> set[str]:
    """The labels of which every part is a gene, a control, or a label of its own."""
    parts = {label: _parts(label, separator) for label in labels if separator in label}
    return {label for label, split in parts.items() if len(split) > 1 and known.issuperset(split)}


def _parts(label: str, separator: str) -> list[str]:
    return [part.strip() for part in split_label(label, separator)]


def _otherwise(labels: list[str], names: GeneNames) -> str | None:
    """How labels name the genes of a file, if not by its symbols; None where they do in no way that is known."""
    text = pd.Series(labels, dtype=object)
    for where, others in names.elsewhere.items():
        if text.isin(others | {_VERSION.sub("", name) for name in others}).mean() >= 0.5:
            return f"named as in {where}"
    if is_ensembl(text):
        return "Ensembl ids"
    capitals = {name.upper(): name for name in names.read}
    first = next((label for label in labels if label.upper() in capitals), "")
    if text.str.upper().isin(capitals).mean() >= 0.5:
        return f"spelled with other capitals ({first}; the gene is {capitals[first.upper()]})"
    bare = {_PREFIX.sub("", name).upper(): name for name in names.read if _PREFIX.match(name)}
    first = next((label for label in labels if label.upper() in bare), "")
    if text.str.upper().isin(bare).mean() >= 0.5:
        return f"named without the prefix of the genes ({first}; the gene is {bare[first.upper()]})"
    return None
