"""An inspection as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from vcc_fm.ground.words import many
from vcc_fm.inspection.groups import FEW, Groups
from vcc_fm.inspection.inspection import Inspection
from vcc_fm.inspection.problems import some, with_cells
from vcc_fm.inspection.roles import Role
from vcc_fm.inspection.targets import LOW, KnockDown
from vcc_fm.inspection.values import MatrixFacts

_WORST = 10

Lines = Iterator[tuple[str, str]]
"""What a line is about, or nothing where the line before says it, and what it says."""


def print_inspection(found: Inspection, console: Console) -> None:
    """Show what is in a file to a person, the recipe lines last."""
    size = f"{many(found.cells, 'cell')} x {many(found.matrices[0].genes, 'gene')}"
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(found):
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    said = [f"[bold]{escape(found.path)}[/bold]  {decimal(found.bytes)}, {size}", table]
    said += [f"[dim]note[/dim]     {escape(note)}" for note in found.notes]
    said += [f"[yellow]problem[/yellow]  {escape(problem)}" for problem in found.problems]
    if found.recipe is None:
        said.append("no recipe lines: see the problems")
    else:
        tried = "the file opens with these lines" if found.tried else "not tried"
        said += [f"\n[bold]for a recipe[/bold] ({tried}):", escape(found.recipe.rstrip())]
    for one in said:
        console.print(one, highlight=False, soft_wrap=isinstance(one, str))


def _lines(found: Inspection) -> Lines:
    for matrix in found.matrices:
        yield from _matrix(matrix, found.every_value)
    yield from found.unreadable.items()
    yield from _values(found)
    yield "genes", _genes(found)
    yield from _labels(found)
    if found.groups is not None:
        yield from _groups(found.groups)
    if found.targets is not None:
        yield from _targets(found.targets, found.every_value)


def _matrix(one: MatrixFacts, every_value: bool) -> Lines:
    values = f"{one.values_per_cell:,.0f} values a cell above zero" if one.values_per_cell else "no values"
    yield one.name, f"{one.encoding} {one.stored}, {many(one.genes, 'gene')}, {values}"
    read = "every value read" if every_value else f"told from {one.looked_at:,} of {many(one.cells, 'cell')}"
    yield "", f"{one.sentence} ({read})"


def _values(found: Inspection) -> Lines:
    chosen = found.chosen
    if chosen is None:
        yield "to read", "none"
        if found.matrices[0].depth:
            yield "depth", f"not known; stored values of a cell add up to {_spread(found.matrices[0].depth)}"
        return
    yield "to read", f"{chosen.name}: " + (chosen.found or "not told yet")
    tried = "; ".join(f"{one.column} proves {one.proved:.1%} of the cells" for one in chosen.totals_tried[:3])
    if tried:
        yield "", tried + (f": set totals_column to {chosen.totals}" if chosen.totals else ": no need of it")
    elif chosen.evidence is not None and "totals" in chosen.evidence and chosen.proved < 1:
        yield "", "no obs column is the depth before normalisation"
    if chosen.depth:
        part = "" if chosen.proved == 1 else f", of the cells with proved counts ({chosen.proved:.1%})"
        yield "depth", f"{_spread(chosen.depth)} UMI a cell (5 %, median, 95 %){part}"
    if chosen.genes_per_cell:
        none = f"; {many(chosen.empty_cells, 'cell')} without a count" if chosen.empty_cells else ""
        yield "", f"{_spread(chosen.genes_per_cell)} genes with a count{none}"


def _genes(found: Inspection) -> str:
    said = []
    for one in found.genes.names:
        text = f"{'var index' if one.column == 'index' else one.column}: {one.kind} ({', '.join(one.examples)}, …)"
        text += f", {one.duplicated:,} repeat" if one.duplicated else ""
        said.append(text + (f", {one.missing:,} missing" if one.missing else ""))
    said.append(found.genes.species)
    return "; ".join(said)


def _labels(found: Inspection) -> Lines:
    best = found.labels.best
    if best is None:
        yield "labels", "no perturbation found"
    else:
        yield "perturbation", f"{best.column}: {best.why}"
        for one in found.labels.perturbations[1:4]:
            yield "", f"or {one.column}: {one.why}"
        yield "control", _control(found, best.controls)
    yield "context", _roles(found.roles.contexts)
    yield "batch", _roles(found.roles.batches)
    further = [name for name in found.roles.further if name != found.batch]
    if further:
        yield "also", f"{', '.join(further[:6])}: may make one context several"


def _control(found: Inspection, controls: dict[str, int]) -> str:
    said = with_cells(controls, 4)
    cells = "" if found.groups is None else f" ({many(found.groups.control_cells, 'cell')})"
    if found.also_control:
        return f"{found.control} and {', '.join(found.also_control[:4])}{cells}: {said}"
    return said or "none found" if found.control is None or found.control in controls else f"{found.control}{cells}"


def _roles(roles: list[Role]) -> str:
    return " or ".join(f"{one.column} ({one.why})" for one in roles[:4] if one.fits) or "no column"


def _groups(groups: Groups) -> Lines:
    said = many(groups.perturbations, "perturbation")
    said += f", {groups.combinations:,} of them combinations" if groups.combinations else ""
    if len(groups.contexts) > 1:
        contexts = some([f"{name} ({n:,})" for name, n in groups.contexts.items()], 6)
        said += f", in {len(groups.contexts)} contexts: {contexts}"
    yield "groups", said
    least, middle, most = groups.cells_per_group
    yield "", f"cells in each: {least:,} to {most:,}, median {middle:,}; fewer than {FEW} in {groups.few:,}"
    said = many(groups.control_cells, "control cell")
    if groups.batches > 1:
        least, middle, most = groups.controls_per_batch
        said += f", {least:,} to {most:,} in each of {groups.batches:,} batches, median {middle:,}"
    yield "", said
    changed = "; ".join(f"{reason}: {number:,}" for reason, number in (groups.dropped | groups.repairs).items())
    if changed:
        yield "", changed


def _targets(targets: KnockDown, every_value: bool) -> Lines:
    if targets.reason is not None:
        yield "knock-down", f"not told: {targets.reason}"
        return
    read = f"{targets.cells:,} of {many(targets.of_cells, 'cell')}" + ("" if every_value else " read")
    if targets.median is None:
        yield "knock-down", f"no target gene can be judged ({read})"
    else:
        number = len(targets.targets)
        said = f"{targets.median:.2f} x control (median of {many(number, 'target')}), {targets.low:,} below {LOW:.2f}"
        if targets.median > 1.5:
            said += ": targets go up, as by CRISPRa"
        elif number > 2 and targets.low * 2 < number:
            # A knock-out breaks the protein, and leaves much of the messenger.
            said += ": usual for knock-outs, too few for CRISPRi"
        yield "knock-down", f"target gene at {said} ({read})"
        worst = targets.targets[:_WORST]
        yield "", "highest ratios: " + ", ".join(f"{one.perturbation} {one.ratio:.2f}" for one in worst)
    for names, what in (
        (targets.not_measured, "not in the matrix"),
        (targets.hardly_expressed, "seen in too few cells for a ratio (hardly expressed)"),
        (targets.too_few_cells, "with too few cells"),
    ):
        if names:
            yield "", f"{len(names):,} of {targets.perturbations:,} {what}: {some(names, 6)}"
    unread = targets.perturbations - len(targets.not_measured) - targets.read
    if unread:
        yield "", f"{unread:,} of {targets.perturbations:,} not read; --all reads all"


def _spread(percentiles: dict[str, float]) -> str:
    return ", ".join(f"{percentiles[at]:,.0f}" for at in ("5", "50", "95"))
