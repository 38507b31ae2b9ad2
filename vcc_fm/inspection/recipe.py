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
from vcc_fm.inspection.genes import GeneFacts
from vcc_fm.inspection.groups import FEW, Groups
from vcc_fm.inspection.labels import LabelFacts
from vcc_fm.inspection.roles import FEW_PERTURBATIONS, Roles, may_be_contexts
from vcc_fm.inspection.values import ENOUGH, MatrixFacts

LEAST_RECOVERED = 0.5
"""Share of proved cells below which no lines are suggested: what is left would be the odd cells of a file."""


def source_keys(
    path: Path,
    chosen: MatrixFacts | None,
    genes: GeneFacts,
    labels: LabelFacts,
    perturbation: str | None,
    control: str | None,
) -> dict[str, Any]:
    """What is known of the keys of a source, but for context and batch.

    perturbation_column and control are absent where they are not known.

    Args:
        path: of the file.
        chosen: the matrix to read.
        genes: how its genes are named.
        labels: what the columns of obs are.
        perturbation: the column with the perturbation label, where the user says.
        control: label of the control, where the user says.
    """
    name = re.sub(r"[^\w\-]+", "-", path.name.removesuffix(path.suffix)).strip("-") or "screen"
    keys: dict[str, Any] = {"name": name, "path": os.path.abspath(path)}
    if chosen is not None:
        keys |= {"matrix": chosen.name, "values": chosen.found or "auto"}
        if chosen.totals is not None:
            keys["totals_column"] = chosen.totals
        if chosen.proved < ENOUGH and chosen.found:
            keys["recovered"] = _recovered(chosen)
    if genes.symbols not in (None, "index"):
        keys["symbols"] = genes.symbols
    named = next((one for one in genes.names if one.column == (genes.symbols or "index")), None)
    if named is not None and named.duplicated:
        keys["duplicate_genes"] = "sum"
    best = labels.perturbations[0] if labels.perturbations else None
    if perturbation is not None or best is not None:
        keys["perturbation_column"] = perturbation or (best.column if best else None)
    if control is not None:
        keys["control"] = control
    elif best is not None and best.control is not None:
        keys["control"] = best.control
        if best.also_control:
            keys["also_control"] = best.also_control
    keys["separator"] = best.separator if best is not None else "+"
    if best is not None and best.pattern is not None:
        keys["target_pattern"] = best.pattern
    return keys


def worth_reading(chosen: MatrixFacts) -> bool:
    """Whether a recipe that drops the cells without proved counts would keep most of the cells."""
    return chosen.found is None or _recovered(chosen) >= LEAST_RECOVERED


def _recovered(chosen: MatrixFacts) -> float:
    """Four standard errors below the proved share of the sample, so that the whole file has as much."""
    error = math.sqrt(chosen.proved * (1 - chosen.proved) / max(chosen.looked_at, 1))
    return math.floor(100 * (chosen.proved - 4 * error)) / 100


def recipe_lines(
    keys: dict[str, Any],
    chosen: MatrixFacts | None,
    labels: LabelFacts,
    roles: Roles,
    groups: Groups | None,
    guides: dict[str, dict[int, int]],
) -> str:
    """The keys as YAML, with what to know beside them; what a recipe assumes anyway is left out.

    Args:
        keys: of the source.
        chosen: the matrix to read.
        labels: what the columns of obs are.
        roles: columns that may be the context and the batch.
        groups: numbers of cells, where they are known.
        guides: column with numbers of guides -> the numbers to keep -> cells.
    """
    notes = {}
    if chosen is not None and not chosen.told:
        notes["values"] = "not told yet"
    if "recovered" in keys and chosen is not None:
        lost = round((1 - chosen.proved) * chosen.cells)
        notes["recovered"] = (
            f"{chosen.proved:.1%} of the cells that were looked at; about {many(lost, 'cell')} would be lost"
        )
    if "context" in keys:
        notes["context"] = "no column holds it: name the cell line or type"
        lacking = next((name for name in labels.lacking if may_be_contexts({name: 1})), None)
        if lacking is not None:
            notes["context"] = f"{lacking} lacks a value in {many(labels.lacking[lacking], 'cell')}"
    lines = ["data:"]
    if groups is not None and groups.few:
        lines.append(f"  # minimum_cells: {FEW}   # {groups.few:,} of {many(groups.groups, 'group')} with fewer")
    if groups is not None and groups.batches_without_control:
        number = len(groups.batches_without_control)
        batches = many(groups.batches, "batch", "batches")
        notes["batch_column"] = f"{number:,} of {batches} without control cells: a coarser one, or none"
    usual = {"matrix": "X", "separator": "+"}
    lines.append("  sources:")
    for key, value in keys.items():
        if usual.get(key) == value:
            continue
        note = f"   # {notes[key]}" if key in notes else ""
        lines.append(f"    {'-' if key == 'name' else ' '} {key}: {_scalar(value)}{note}")
    for column, number in labels.choices.items():
        wanted = str(column not in labels.bad).lower()
        lines.append(f"      # keep: {{{_scalar(column)}: {wanted}}}   # {many(number, 'cell')}")
    for column, numbers in guides.items():
        given = "" if list(numbers) == [1] else f", guides: {list(numbers)}"
        lines.append(
            f"      # quality: {{guides_column: {_scalar(column)}{given}}}   # {many(sum(numbers.values()), 'cell')}"
        )
    best = labels.perturbations[0]
    if not best.genetic:
        lines += [
            "embed:",
            "  proteins:",
            f"    missing: learned   # no label of {best.column} is a gene",
            "    # fasta: PATH   # proteins, which tell the decoder of the genes of the matrix",
        ]
    if groups is not None and groups.perturbations <= FEW_PERTURBATIONS and len(groups.contexts) > 1:
        kind = next(one.kind for one in roles.contexts if one.fits).removesuffix("s")
        turns = f"contexts: [{', '.join(map(_scalar, groups.contexts))}], folds: {len(groups.contexts)}"
        lines.append(
            f"# split: {{hold_out: contexts, {turns}}}   # too few perturbations to hold any out: each {kind} in turn"
        )
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    """A value in YAML: plain where every reader takes it for the same, else in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./+ -]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
