"""An inspection as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcc_fm.ground.words import many
from vcc_fm.inspection.groups import FEW, Groups
from vcc_fm.inspection.inspect import Inspection
from vcc_fm.inspection.roles import Role
from vcc_fm.inspection.targets import LOW, KnockDown
from vcc_fm.inspection.values import MatrixFacts

_WORST = 10


def print_inspection(found: Inspection, console: Console) -> None:
    """Show what is in a file to a person, the recipe lines last."""
    first = found.matrices[0]
    size = f"{many(found.cells, 'cell')} x {many(first.genes, 'gene')}"
    console.print(
        f"[bold]{escape(found.path)}[/bold]  {_size(found.bytes)}, {size}",
        highlight=False,
        soft_wrap=True,
    )
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for name, text in _lines(found):
        lines.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    console.print(lines, highlight=False)
    for note in found.notes:
        console.print(f"[dim]note[/dim]     {escape(note)}", highlight=False, soft_wrap=True)
    for problem in found.problems:
        console.print(f"[yellow]problem[/yellow]  {escape(problem)}", highlight=False, soft_wrap=True)
    if found.recipe is None:
        console.print("no recipe lines: see the problems", highlight=False)
        return
    tried = "the file opens with these lines" if found.tried else "not tried"
    console.print(f"\n[bold]for a recipe[/bold] ({tried}):", highlight=False)
    console.print(found.recipe.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _lines(found: Inspection) -> Iterable[tuple[str, str]]:
    for matrix in found.matrices:
        yield matrix.name, _matrix(matrix)
        yield "", f"{matrix.sentence} ({_checked(matrix, found.every_value)})"
    yield from found.unreadable.items()
    chosen = next((matrix for matrix in found.matrices if matrix.name == found.read), None)
    if chosen is None:
        yield "to read", "none"
        if found.matrices[0].depth:
            yield "depth", f"not known; stored values of a cell add up to {_spread(found.matrices[0].depth)}"
    else:
        yield "to read", f"{chosen.name}: " + (chosen.found or "not told yet")
        yield from _totals(chosen)
        if chosen.depth:
            some = "" if chosen.proved == 1 else f", of the cells with proved counts ({chosen.proved:.1%})"
            yield "depth", f"{_spread(chosen.depth)} UMI a cell (5 %, median, 95 %){some}"
        if chosen.genes_per_cell:
            none = f"; {many(chosen.empty_cells, 'cell')} without a count" if chosen.empty_cells else ""
            yield "", f"{_spread(chosen.genes_per_cell)} genes with a count{none}"
    yield from _genes(found)
    yield from _labels(found)
    if found.groups is not None:
        yield from _groups(found.groups)
    if found.targets is not None:
        yield from _targets(found.targets, found.every_value)


def _matrix(one: MatrixFacts) -> str:
    return (
        f"{one.encoding} {one.stored}, {many(one.genes, 'gene')}, {one.values_per_cell:,.0f} values a cell above zero"
        if one.values_per_cell
        else f"{one.encoding} {one.stored}, {many(one.genes, 'gene')}, no values"
    )


def _checked(one: MatrixFacts, every_value: bool) -> str:
    return "every value read" if every_value else f"told from {one.looked_at:,} of {many(one.cells, 'cell')}"


def _totals(chosen: MatrixFacts) -> Iterable[tuple[str, str]]:
    tried = [f"{one.column} proves {one.proved:.1%} of the cells" for one in chosen.totals_tried[:3]]
    if tried:
        yield (
            "",
            "; ".join(tried) + (f": set totals_column to {chosen.totals}" if chosen.totals else ": no need of it"),
        )
    elif chosen.evidence is not None and "totals" in chosen.evidence and chosen.proved < 1:
        yield "", "no obs column is the depth before normalisation"


def _genes(found: Inspection) -> Iterable[tuple[str, str]]:
    genes = found.genes
    said = []
    for one in genes.names:
        text = f"{'var index' if one.column == 'index' else one.column}: {one.kind} ({', '.join(one.examples)}, …)"
        text += f", {one.duplicated:,} repeat" if one.duplicated else ""
        said.append(text + (f", {one.missing:,} missing" if one.missing else ""))
    said.append(genes.species)
    said += [f"{genes.mitochondrial} mitochondrial"] if genes.mitochondrial else []
    yield "genes", "; ".join(said)


def _labels(found: Inspection) -> Iterable[tuple[str, str]]:
    labels = found.labels
    if not labels.perturbations:
        yield "labels", "no perturbation found"
    for place, one in enumerate(labels.perturbations[:4]):
        yield (
            "perturbation" if place == 0 else "",
            f"{one.column}: {one.why}" if place == 0 else (f"or {one.column}: {one.why}"),
        )
    if labels.perturbations:
        yield "control", _control(found)
    yield "context", _roles(found.roles.contexts)
    yield "batch", _roles(found.roles.batches)
    further = [name for name in found.roles.further if name != found.batch]
    if further:
        yield "also", f"{', '.join(further[:6])}: may make one context several"


def _roles(roles: list[Role]) -> str:
    return " or ".join(f"{one.column} ({one.why})" for one in roles[:4] if one.fits) or "no column"


def _control(found: Inspection) -> str:
    controls = found.labels.perturbations[0].controls
    said = ", ".join(f"{label} ({many(number, 'cell')})" for label, number in list(controls.items())[:4])
    said += ", …" if len(controls) > 4 else ""
    cells = "" if found.groups is None else f" ({many(found.groups.control_cells, 'cell')})"
    if found.also_control:
        return f"{found.control} and {', '.join(found.also_control[:4])}{cells}: {said}"
    return said or "none found" if found.control is None or found.control in controls else f"{found.control}{cells}"


def _groups(groups: Groups) -> Iterable[tuple[str, str]]:
    said = many(groups.perturbations, "perturbation")
    said += f", {groups.combinations:,} of them combinations" if groups.combinations else ""
    contexts = [f"{name} ({n:,})" for name, n in list(groups.contexts.items())[:6]]
    if len(groups.contexts) > 1:
        said += f", in {len(groups.contexts)} contexts: {', '.join(contexts)}"
        said += ", …" if len(groups.contexts) > len(contexts) else ""
    yield "groups", said
    least, middle, most = groups.cells_per_group
    yield "", f"cells in each: {least:,} to {most:,}, median {middle:,}; fewer than {FEW} in {groups.few:,}"
    said = many(groups.control_cells, "control cell")
    if groups.batches > 1:
        least, middle, most = groups.controls_per_batch
        said += f", {least:,} to {most:,} in each of {groups.batches:,} batches, median {middle:,}"
    yield "", said
    changed = "; ".join(f"{reason}: {number:,}" for reason, number in {**groups.dropped, **groups.repairs}.items())
    if changed:
        yield "", changed


def _targets(targets: KnockDown, every_value: bool) -> Iterable[tuple[str, str]]:
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
        elif (
            number > 2 and targets.low * 2 < number
        ):  # a knock-out breaks the protein, and leaves much of the messenger
            said += ": usual for knock-outs, too few for CRISPRi"
        yield "knock-down", f"target gene at {said} ({read})"
        worst = targets.targets[:_WORST]
        yield "", "highest ratios: " + ", ".join(f"{one.perturbation} {one.ratio:.2f}" for one in worst)
    unread = targets.perturbations - len(targets.not_measured) - targets.read
    for names, what in (
        (targets.not_measured, "not in the matrix"),
        (targets.hardly_expressed, "seen in too few cells for a ratio (hardly expressed)"),
        (targets.too_few_cells, "with too few cells"),
    ):
        if names:
            more = ", …" if len(names) > 6 else ""
            yield "", f"{len(names):,} of {targets.perturbations:,} {what}: {', '.join(names[:6])}{more}"
    if unread:
        yield "", f"{unread:,} of {targets.perturbations:,} not read; --all reads all"


def _spread(percentiles: dict[str, float]) -> str:
    return ", ".join(f"{percentiles[at]:,.0f}" for at in ("5", "50", "95"))


def _size(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
