"""The lines of a recipe that read a file."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from vcc_fm.ground.words import many
from vcc_fm.inspection.groups import FEW, Groups
from vcc_fm.inspection.inspection import Inspection
from vcc_fm.inspection.roles import FEW_PERTURBATIONS, may_be_contexts
from vcc_fm.inspection.values import ENOUGH, MatrixFacts

LEAST_RECOVERED = 0.5
"""Share of proved cells below which no lines are suggested: what is left would be the odd cells of a file."""


def source_keys(found: Inspection, perturbation: str | None, control: str | None) -> dict[str, Any]:
    """What is known of the keys of a source, but for context and batch; notes the labels in what is found.

    perturbation_column and control are absent where they are not known.

    Args:
        found: matrices, genes and labels.
        perturbation: the column with the perturbation label, where the user says.
        control: label of the control, where the user says.
    """
    path, chosen, genes, best = Path(found.path), found.chosen, found.genes, found.labels.best
    name = re.sub(r"[^\w\-]+", "-", path.name.removesuffix(path.suffix)).strip("-") or "screen"
    keys: dict[str, Any] = {"name": name, "path": os.path.abspath(path)}
    if chosen is not None:
        keys |= {"matrix": chosen.name, "values": chosen.found or "auto", "totals_column": chosen.totals}
        if chosen.proved < ENOUGH and chosen.found:
            keys["recovered"] = _recovered(chosen)
    if genes.symbols != "index":
        keys["symbols"] = genes.symbols
    if genes.best.duplicated:
        keys["duplicate_genes"] = "sum"
    found.perturbation, found.control = perturbation, control
    if best is not None and perturbation is None:
        found.perturbation = best.column
    if best is not None and control is None:
        found.control, found.also_control = best.control, best.also_control
    keys |= {"perturbation_column": found.perturbation, "control": found.control, "also_control": found.also_control}
    keys |= {"separator": best.separator if best else "+", "target_pattern": best.pattern if best else None}
    return {key: value for key, value in keys.items() if value not in (None, [])}


def worth_reading(chosen: MatrixFacts) -> bool:
    """Whether a recipe that drops the cells without proved counts would keep most of the cells."""
    return chosen.found is None or _recovered(chosen) >= LEAST_RECOVERED


def _recovered(chosen: MatrixFacts) -> float:
    """Four standard errors below the proved share of the sample, so that the whole file has as much."""
    error = math.sqrt(chosen.proved * (1 - chosen.proved) / chosen.looked_at)
    return math.floor(100 * (chosen.proved - 4 * error)) / 100


def recipe_lines(found: Inspection, keys: dict[str, Any]) -> str:
    """The keys of the source as YAML, with what to know beside them; what a recipe assumes anyway is left out."""
    labels, groups = found.labels, found.groups
    assert groups is not None
    lines = ["data:"]
    if groups.few:
        lines.append(f"  # minimum_cells: {FEW}   # {groups.few:,} of {many(groups.groups, 'group')} with fewer")
    lines.append("  sources:")
    notes, usual = _notes(found, groups), {"matrix": "X", "separator": "+"}
    for key, value in keys.items():
        if usual.get(key) != value:
            note = f"   # {notes[key]}" if key in notes else ""
            lines.append(f"    {'-' if key == 'name' else ' '} {key}: {_as_yaml(value)}{note}")
    for column, number in labels.choices.items():
        lines.append(f"      # keep: {{{_as_yaml(column)}: {labels.good(column)}}}   # {many(number, 'cell')}")
    for column, numbers in groups.guides.items():
        given = "" if list(numbers) == [1] else f", guides: {list(numbers)}"
        kept = many(sum(numbers.values()), "cell")
        lines.append(f"      # quality: {{guides_column: {_as_yaml(column)}{given}}}   # {kept}")
    best = labels.perturbations[0]
    if not best.genetic:
        lines += [
            "embed:",
            "  proteins:",
            f"    missing: learned   # no label of {best.column} is a gene",
            "    # fasta: PATH   # proteins, which tell the decoder of the genes of the matrix",
        ]
    if groups.perturbations <= FEW_PERTURBATIONS and len(groups.contexts) > 1:
        kind = next(one.kind for one in found.roles.contexts if one.fits).removesuffix("s")
        turns = f"contexts: [{', '.join(map(_as_yaml, groups.contexts))}], folds: {len(groups.contexts)}"
        lines.append(
            f"# split: {{hold_out: contexts, {turns}}}   # too few perturbations to hold any out: each {kind} in turn"
        )
    return "\n".join(lines) + "\n"


def _notes(found: Inspection, groups: Groups) -> dict[str, str]:
    """Key -> what to know of it, whether it is among the lines or not."""
    chosen, labels = found.chosen, found.labels
    assert chosen is not None
    lost = f"{chosen.proved:.1%} of the cells that were looked at; about {many(chosen.lost, 'cell')} would be lost"
    notes = {"recovered": lost, "context": "no column holds it: name the cell line or type"}
    if found.labels.perturbations[0].torn:
        notes["separator"] = "in no label: nothing that stands beside a + is known, and labels are read whole"
    if not chosen.told:
        notes["values"] = "not told yet"
    lacking = may_be_contexts(dict.fromkeys(labels.lacking, 1))
    if lacking:
        notes["context"] = f"{lacking[0]} lacks a value in {many(labels.lacking[lacking[0]], 'cell')}"
    if groups.batches_without_control:
        number, batches = len(groups.batches_without_control), many(groups.batches, "batch", "batches")
        notes["batch_column"] = f"{number:,} of {batches} without control cells: a coarser one, or none"
    return notes


def _as_yaml(value: Any) -> str:
    """A value in YAML: plain where every reader takes it for the same, else in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./+ -]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
