"""What is wrong with a file, or good to know of it, each in a line that says what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from vcc_fm.ground.words import many
from vcc_fm.inspection.genes import GeneFacts
from vcc_fm.inspection.groups import FEW, Groups
from vcc_fm.inspection.labels import LabelFacts
from vcc_fm.inspection.perturbation import HARDLY, PerturbationFacts
from vcc_fm.inspection.recipe import worth_reading
from vcc_fm.inspection.roles import Roles
from vcc_fm.inspection.values import ENOUGH, MatrixFacts

_GIANT = 4 << 30
_PARTS = ("layers/spliced", "layers/unspliced", "layers/ambiguous")


@dataclass(frozen=True)
class Remarks:
    """What is to be said of a file."""

    problems: list[str] = field(default_factory=list)
    """What a reader has to decide or to mend."""
    notes: list[str] = field(default_factory=list)
    """What does no harm with the suggested lines."""


def tell_matrices(facts: list[MatrixFacts], chosen: MatrixFacts | None, told: Remarks) -> None:
    """Add what there is to say of the values.

    Args:
        facts: of all matrices.
        chosen: the one to read.
        told: added to.
    """
    for one in facts:
        if one.spoiled and chosen is None:
            told.problems.append(f"{one.name}: {one.spoiled}: mend or leave out these, or get the raw counts")
        if one.encoding == "dense" and one.bytes >= _GIANT:
            told.notes.append(
                f"{one.name}: {one.bytes / 1e9:.0f} GB stored dense, with {one.values_per_cell:,.0f} of {one.genes:,} "
                "values above zero in a cell: CSR is smaller and faster"
            )
    if chosen is None:
        told.problems.append("no matrix gives counts: get the file with the raw counts (as X, raw, or a layer)")
        return
    told.problems.extend(f"{chosen.name}: {doubt}" for doubt in chosen.doubts)
    if chosen.found and chosen.proved < ENOUGH:
        lost = round((1 - chosen.proved) * chosen.cells)
        told.problems.append(
            f"{chosen.name}: the counts of {1 - chosen.proved:.1%} of the cells cannot be proved, and about {lost:,} "
            f"of {many(chosen.cells, 'cell')} would be lost: get the raw counts"
            + ("" if chosen.totals else ", or each cell's depth")
            + ("" if worth_reading(chosen) else "; no lines are suggested that lose most cells")
        )
    if chosen.name in _PARTS:
        told.problems.append(
            f"{chosen.name}: a part of the counts; store the sum of spliced, unspliced and ambiguous ones as a layer"
        )
    if chosen.empty_cells:
        told.notes.append(
            f"{chosen.name}: {chosen.empty_cells:,} of {many(chosen.empty_of, 'cell')} without a count: "
            "quality.minimum_depth leaves them out"
        )
    if chosen.encoding == "CSC":
        told.notes.append(
            f"{chosen.name}: stored by column (CSC): reading it takes {chosen.bytes / 1e9:.1f} GB of temporary disk "
            "and a turn by row; CSR is faster"
        )


def tell_genes(genes: GeneFacts, told: Remarks) -> None:
    """Add what there is to say of the names of genes."""
    problems, notes = told.problems, told.notes
    index, used = genes.names[0], next((one for one in genes.names if one.column == genes.symbols), None)
    if used is not None:
        named = "the var index" if used.column == "index" else f"var column {used.column!r}"
        if used.column != "index":
            notes.append(f"the var index holds {index.kind}; symbols are read from {used.column}")
        if used.duplicated:
            notes.append(
                f"{named} repeats {many(used.duplicated, 'symbol')} ({', '.join(used.duplicates)}): duplicate_genes: "
                "sum adds their counts up"
            )
        if used.spaces:
            notes.append(f"{many(used.spaces, 'symbol')} in {named} with spaces around, which are stripped on reading")
        if genes.ensembl_among_symbols:
            notes.append(
                f"{many(genes.ensembl_among_symbols, 'gene')} with an Ensembl id in place of a symbol, kept under it"
            )
    elif genes.incomplete is not None:
        lacks = next(one.missing for one in genes.names if one.column == genes.incomplete)
        problems.append(f"var column {genes.incomplete!r} lacks {many(lacks, 'name')}: fill in, e.g. the id")
    elif index.kind.startswith("symbols joined"):
        problems.append(
            f"no symbols: the var index holds {index.kind} ({index.examples[0]}): add a column to var with the symbol "
            "alone"
        )
    else:
        problems.append(f"no symbols: the var index holds {index.kind}; add a column of gene symbols to var")
    if genes.made_unique:
        problems.append(
            f"{many(len(genes.made_unique), 'symbol')} made of another and a number "
            f"({', '.join(genes.made_unique[:5])}), as by var_names_make_unique, and read as genes of their own: take "
            "the number off, and set duplicate_genes to sum"
        )
    if genes.dates:
        problems.append(
            f"{many(len(genes.dates), 'date')} among the symbols ({', '.join(genes.dates[:5])}), by a spreadsheet: "
            "write the genes in their place (1-Mar is MARCHF1, 1-Sep is SEPTIN1)"
        )
    if " and " in genes.species:
        problems.append(f"genes of two species ({genes.species}): keep the cells and genes of one")
    if genes.spike_ins:
        problems.append(
            f"{many(genes.spike_ins, 'spike-in')} (ERCC-) among the genes, read as genes: leave spike-ins out"
        )
    if len(genes.features) > 1:
        said = ", ".join(f"{number:,} {kind}" for kind, number in genes.features.items())
        problems.append(f"var.feature_types holds {said}: all are read as genes; keep Gene Expression only")


def tell_labels(labels: LabelFacts, control: str | None, named: bool, told: Remarks) -> None:
    """Add what there is to say of the labels of cells.

    Args:
        labels: what the columns of obs are.
        control: label of the control, where the user says.
        named: whether the symbols of the genes are known.
        told: added to.
    """
    if labels.duplicate_barcodes:
        told.notes.append(f"{many(labels.duplicate_barcodes, 'barcode')} more than once: numbered on reading")
    for column, number in labels.lacking.items():
        told.problems.append(
            f"{column} lacks a value in {many(number, 'cell')}: fill it in the file, or choose the cells that have "
            "one with keep"
        )
    for column, number in labels.choices.items():
        wanted = str(column not in labels.bad).lower()
        told.problems.append(
            f"{column} is {wanted} in {many(number, 'cell')} only: the others may have no guide, or several, or "
            f"be of low quality; keep: {{{column}: {wanted}}} leaves them out"
        )
    best = labels.perturbations[0] if labels.perturbations else None
    if best is not None and best.column in labels.refused:
        told.problems.append(f"{best.column} {labels.refused[best.column]}")
    elif best is not None:
        _tell_perturbation(best, control, named, told)
    elif labels.refused:
        told.problems.extend(f"{column} {why}" for column, why in labels.refused.items())
    else:
        told.problems.append("no obs column looks like a perturbation label: name it with --perturbation, or add one")


def _tell_perturbation(best: PerturbationFacts, control: str | None, named: bool, told: Remarks) -> None:
    if control is None and not best.controls:
        likely = ", ".join(f"{label} ({many(number, 'cell')})" for label, number in best.candidates.items())
        none = f"; {many(best.unlabelled, 'cell')} without a label: if these are the controls, write one" * (
            best.unlabelled > 0
        )
        told.problems.append(
            f"no label of {best.column!r} looks like a control: name it with --control (most frequent: {likely}){none}"
        )
    elif best.unlabelled:
        told.notes.append(f"{many(best.unlabelled, 'cell')} without a label in {best.column!r}: left out")
    others = {label: number for label, number in best.controls.items() if label != control}
    said = ", ".join(f"{label} ({number:,})" for label, number in list(others.items())[:5])
    said += ", …" if len(others) > 5 else ""
    if control is None and len(others) > 1:
        # Labels of one name and a number are the controls of one library; others may be something else.
        numbered = len(best.also_control) == 1 and best.also_control[0].endswith("*")
        (told.notes if numbered else told.problems).append(
            f"{len(others)} labels of {best.column!r} look like controls: {said}; all are read as the control "
            f"(also_control: {', '.join(best.also_control)}): take out what is none"
        )
    elif control is not None and others:
        told.problems.append(
            f"labels of {best.column!r} look like controls too: {said}; they count as perturbations: set also_control"
        )
    if best.unassigned:
        said = ", ".join(f"{label} ({many(number, 'cell')})" for label, number in best.unassigned.items())
        told.problems.append(
            f"labels of {best.column!r} that are no perturbation: {said}: add them to quality.unassigned"
        )
    if best.torn:
        told.problems.append(
            f"{many(len(best.torn), 'label')} of {best.column!r} with a + ({', '.join(best.torn[:3])}) of which "
            f"neither side is a gene, a control or a label: read whole (separator: {best.separator!r})"
        )
    if best.pattern is not None:
        told.notes.append(
            f"labels of {best.column!r} hold more than the target gene ({', '.join(best.examples)}): target_pattern "
            "reads it"
        )
    elif not best.genetic:
        told.notes.append(
            f"no label of {best.column!r} ({', '.join(best.examples)}) is a gene: each gets a learned vector of its "
            "own (embed.proteins.missing: learned)"
        )
    elif named and best.genes < HARDLY and (best.controls or control):
        how = f"they are {best.otherwise}" if best.otherwise else "they are not in the file, or named otherwise"
        told.problems.append(
            f"{'hardly any' if best.genes else 'no'} target of {best.column!r} ({', '.join(best.examples)}) is a gene "
            f"of the file: {how}; write the targets as the symbols that are read, in obs or in var"
        )


def tell_roles(roles: Roles, told: Remarks) -> None:
    """Add which columns are no context and no batch although they are named as one."""
    for what, found in (("context", roles.contexts), ("batch", roles.batches)):
        told.notes.extend(f"{one.column} is no {what}: {one.why}" for one in found if not one.fits)


def tell_groups(groups: Groups, told: Remarks) -> None:
    """Add what there is to say of the numbers of cells."""
    lonely, without = groups.contexts_without_control, groups.batches_without_control
    if lonely:
        told.problems.append(
            f"no control cells in context {_some(lonely)}: nothing can be predicted there; choose another "
            "context column, or leave those cells out with keep"
        )
    if without and len(without) < groups.batches:
        batches = many(groups.batches, "batch", "batches")
        told.problems.append(
            f"no control cells in {len(without):,} of {batches} ({_some(without)}): the cells of such a batch have "
            "nothing to be compared with; use a coarser batch_column, or none"
        )
    if groups.few:
        told.notes.append(
            f"{groups.few:,} of {many(groups.groups, 'group')} with fewer than {FEW} cells: data.minimum_cells leaves "
            "such out"
        )


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
