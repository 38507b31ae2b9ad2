"""A column of obs that may label the perturbation: its controls, combinations, and whether its targets are genes."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.inspection.genes import GENOME, is_ensembl
from vcc_fm.inspection.pattern import find_pattern
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
_MOST_CANDIDATES = 5


@dataclass(frozen=True)
class PerturbationFacts:
    """A column that may label the perturbation."""

    column: str
    labels: int
    genes: float  # share of the labels, without controls and unassigned ones, of which every part is a gene
    pattern: str | None  # regular expression that finds the genes in labels which hold more, where there is need
    by_pattern: float  # share of the labels of which every part is a gene, with ``pattern``
    separator: str  # what joins the parts of combinations, or is in no label
    combinations: int
    torn: bool  # whether what stands beside a + is unknown, and ``separator`` therefore in no label
    controls: dict[str, int]  # labels that look like a control -> cells, the most frequent first
    control: str | None  # what ``control`` of a recipe is to be
    also_control: list[str]  # and ``also_control``
    unassigned: dict[str, int]  # labels of cells without a guide, or several, which a recipe keeps -> cells
    unlabelled: int  # cells without a label
    candidates: dict[str, int]  # where there is no control: the most frequent labels -> cells, genes last
    examples: list[str]  # labels of targets
    otherwise: str | None  # how nearly all targets are named, where nearly none is a gene of the file
    genetic: bool  # whether the labels are genes, of the file or not; else drugs, stimuli, genotypes
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


def read_perturbation(column: pd.Series, counted: pd.Series, genes: Set[str]) -> PerturbationFacts:
    """Tell what a column of obs holds, whose labels were ``counted`` (label -> cells), beside these genes."""
    name = str(column.name)
    everything = _by_label(counted)
    cells = {label: n for label, n in everything.items() if folded(label) not in _DROPPED or label in genes}
    unassigned = {label: n for label, n in cells.items() if _UNASSIGNED.match(label) and label not in genes}
    controls = _controls({label: n for label, n in cells.items() if label not in unassigned}, genes)
    control, also = _control(list(controls), [label for label in everything if label not in controls])
    rest = [label for label in cells if label not in controls and label not in unassigned]
    read = _take_apart(rest, genes, controls.keys())
    share = max(read.genes, read.by_pattern)
    otherwise = _otherwise(rest, genes) if rest and share < HARDLY else None
    return PerturbationFacts(
        column=name,
        labels=len(cells),
        genes=read.genes,
        pattern=read.pattern,
        by_pattern=read.by_pattern,
        separator=read.separator,
        combinations=sum(len(split_label(label, read.separator)) > 1 for label in rest),
        torn=read.torn,
        controls=controls,
        control=control,
        also_control=also,
        unassigned=unassigned,
        unlabelled=len(column) - sum(everything.values()),
        candidates={} if controls else _candidates(everything, genes),
        examples=rest[:3],
        otherwise=otherwise,
        genetic=share >= HARDLY or read.pattern is not None or otherwise is not None or _genetic(name, rest),
        score=_score(name, rest, read, bool(controls)),
    )


class _Read(NamedTuple):
    """How labels are read; see :class:`PerturbationFacts`."""

    genes: float
    pattern: str | None
    by_pattern: float
    separator: str
    torn: bool


def _by_label(counted: pd.Series) -> dict[str, int]:
    """Label, stripped of spaces -> cells, the most frequent first; without those that stand for no label."""
    cells = counted.groupby(counted.index.astype(str).str.strip(), sort=False).sum()
    cells = cells.sort_values(ascending=False, kind="stable")
    labelled = cells[~missing_labels(pd.Series(cells.index, dtype=object))]
    return {str(label): int(number) for label, number in labelled.items()}


def _controls(cells: dict[str, int], genes: Set[str]) -> dict[str, int]:
    found = {label: n for label, n in cells.items() if label not in genes and looks_like_control(label)}
    # CTRL is a gene, too.
    return found or {label: n for label, n in cells.items() if label == "CTRL"}


def _control(controls: list[str], others: list[str]) -> tuple[str | None, list[str]]:
    """The control, and the further labels that are one: numbered ones by what they begin with, others by name."""
    if len(controls) < 2:
        return next(iter(controls), None), []
    control, *further = controls
    stems = {match.group(1) if (match := _NUMBERED.match(label)) else label for label in controls}
    first, last = min(controls), max(controls)
    same = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    prefix = first[:same].rstrip("0123456789")
    # A prefix that another label begins with too would make that a control.
    if len(stems) == 1 and "" not in stems and prefix and not any(label.startswith(prefix) for label in others):
        return control, [f"{prefix}*"]
    return control, further


def _take_apart(labels: list[str], genes: Set[str], controls: Set[str]) -> _Read:
    """Find what joins the parts of combinations, and the pattern where the parts are no genes."""
    known = {*genes, *controls}
    splits = {separator: _combinations(labels, separator, known.union(labels)) for separator in SEPARATORS}
    separator = max(SEPARATORS, key=lambda one: len(splits[one]))
    joined = splits[separator]
    parts = [_parts(label, separator) if label in joined else [label] for label in labels]
    named = float(np.mean([known.issuperset(label) for label in parts])) if parts else 0.0
    found = find_pattern(labels, genes, controls, SEPARATORS[:-1]) if labels and named < 0.5 else None
    if found is not None and (found.genes > named + HARDLY or found.pattern.endswith(STRAND)):
        return _Read(named, found.pattern, found.genes, found.separator, False)
    if joined:
        return _Read(named, None, 0.0, separator, False)
    beside = {part for label in labels if "+" in label for part in _parts(label, "+")}
    unused = next((one for one in SEPARATORS if not any(one in label for label in labels)), "+")
    torn = bool(beside) and known.isdisjoint(beside) and unused != "+"
    return _Read(named, None, 0.0, unused if torn else "+", torn)


def _combinations(labels: list[str], separator: str, known: set[str]) -> set[str]:
    """The labels of which every part is a gene, a control, or a label of its own."""
    parts = {label: _parts(label, separator) for label in labels if separator in label}
    return {label for label, split in parts.items() if len(split) > 1 and known.issuperset(split)}


def _parts(label: str, separator: str) -> list[str]:
    return [part.strip() for part in split_label(label, separator)]


def _candidates(cells: dict[str, int], genes: Set[str]) -> dict[str, int]:
    order = sorted(cells, key=lambda label: label in genes)
    return {label: cells[label] for label in order[:_MOST_CANDIDATES]}


def _genetic(name: str, labels: list[str]) -> bool:
    """Whether labels that are no genes of the file are genes all the same, by the column's name or as they look."""
    if _OF_GENES.search(name) or _OF_OTHERS.search(name):
        return not _OF_OTHERS.search(name)
    alike = sum(re.match(_SYMBOL, label) is not None for label in labels)
    return len(labels) >= _LEAST_GENES and 2 * alike >= len(labels)


def _score(name: str, labels: list[str], read: _Read, controls: bool) -> float:
    # A control alone, or a name alone, is no perturbation; nor is a number.
    if not labels or pd.to_numeric(pd.Series(labels, dtype=object), errors="coerce").notna().all():
        return 0.0
    return max(read.genes, 0.5 * read.by_pattern) + 0.5 * controls + 0.25 * bool(PERTURBATION.search(name))


def _otherwise(labels: list[str], genes: Set[str]) -> str | None:
    """How labels name genes, if not as the symbols that are read; None where they do in no way that is known."""
    if is_ensembl(pd.Series(labels, dtype=object)):
        return "Ensembl ids"
    bare = {re.sub(f"^{GENOME}", "", gene).upper(): gene for gene in genes}
    alike = [label for label in labels if label.upper() in bare]
    if 2 * len(alike) >= len(labels):
        return f"spelled otherwise ({alike[0]}; the gene is {bare[alike[0].upper()]})"
    return None
