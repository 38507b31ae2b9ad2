"""What is wrong with a file, or good to know of it, each in a line that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vcc_fm.ground.words import many
from vcc_fm.inspection.genes import GeneFacts
from vcc_fm.inspection.groups import FEW
from vcc_fm.inspection.inspection import Inspection
from vcc_fm.inspection.perturbation import HARDLY, PerturbationFacts
from vcc_fm.inspection.recipe import worth_reading
from vcc_fm.inspection.values import ENOUGH


def some(names: Sequence[str], most: int) -> str:
    """The first names; an ellipsis says that there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def with_cells(cells: Mapping[str, int], most: int) -> str:
    """The first labels, each with its number of cells."""
    return some([f"{label} ({many(number, 'cell')})" for label, number in cells.items()], most)


def tell_matrices(found: Inspection) -> None:
    """Add what there is to say of the matrices and their values."""
    problems, notes, chosen = found.problems, found.notes, found.chosen
    for name, why in found.unreadable.items():
        problems.append(f"{name}: {why.removeprefix(f'{found.path}, {name}: ')}")
    if chosen is None:
        for one in found.matrices:
            if one.spoiled:
                problems.append(f"{one.name}: {one.spoiled}: mend or leave out these, or get the raw counts")
        problems.append("no matrix gives counts: get the file with the raw counts (as X, raw, or a layer)")
        return
    problems.extend(f"{chosen.name}: {doubt}" for doubt in chosen.doubts)
    if chosen.found and chosen.proved < ENOUGH:
        problems.append(
            f"{chosen.name}: the counts of {1 - chosen.proved:.1%} of the cells cannot be proved, and about "
            f"{chosen.lost:,} of {many(chosen.cells, 'cell')} would be lost: get the raw counts"
            + ("" if chosen.totals else ", or each cell's depth")
            + ("" if worth_reading(chosen) else "; no lines are suggested that lose most cells")
        )
    if chosen.empty_cells:
        notes.append(
            f"{chosen.name}: {chosen.empty_cells:,} of {many(chosen.empty_of, 'cell')} without a count: "
            "quality.minimum_depth leaves them out"
        )
    if chosen.encoding == "CSC":
        notes.append(
            f"{chosen.name}: stored by column (CSC): a turn by row takes time and temporary disk; CSR takes none"
        )


def tell_genes(found: Inspection) -> None:
    """Add what there is to say of the names of genes."""
    problems, notes, genes = found.problems, found.notes, found.genes
    index, best = genes.names[0], genes.best
    if genes.symbols is None:
        problems.append(_no_symbols(genes))
    else:
        named = "the var index" if best is index else f"var column {best.column!r}"
        if best.duplicated:
            notes.append(
                f"{named} repeats {many(best.duplicated, 'symbol')} ({', '.join(best.duplicates)}): duplicate_genes: "
                "sum adds their counts up"
            )
    if genes.made_unique:
        problems.append(
            f"{many(len(genes.made_unique), 'symbol')} made of another and a number "
            f"({', '.join(genes.made_unique[:5])}), as by var_names_make_unique, and read as genes of their own: take "
            "the number off, and set duplicate_genes to sum"
        )
    if " and " in genes.species:
        problems.append(f"genes of two species ({genes.species}): keep the cells and genes of one")
    if len(genes.features) > 1:
        said = ", ".join(f"{number:,} {kind}" for kind, number in genes.features.items())
        problems.append(f"var.feature_types holds {said}: all are read as genes; keep Gene Expression only")


def _no_symbols(genes: GeneFacts) -> str:
    index, best = genes.names[0], genes.best
    if genes.incomplete is not None:
        return f"var column {best.column!r} lacks {many(best.missing, 'name')}: fill in, e.g. the id"
    holds = f"no symbols: the var index holds {index.kind}"
    if index.kind.startswith("symbols joined"):
        return f"{holds} ({index.examples[0]}): add a column to var with the symbol alone"
    return f"{holds}; add a column of gene symbols to var"


def tell_labels(found: Inspection, control: str | None) -> None:
    """Add what there is to say of the labels of cells, given the label of the control, where the user says."""
    problems, notes, labels = found.problems, found.notes, found.labels
    if labels.duplicate_barcodes:
        notes.append(f"{many(labels.duplicate_barcodes, 'barcode')} more than once: numbered on reading")
    for column, number in labels.lacking.items():
        problems.append(
            f"{column} lacks a value in {many(number, 'cell')}: fill it in the file, or choose the cells that have "
            "one with keep"
        )
    for column, number in labels.choices.items():
        good = labels.good(column)
        problems.append(
            f"{column} is {good} in {many(number, 'cell')} only: the others may have no guide, or several, or be of "
            f"low quality; keep: {{{column}: {good}}} leaves them out"
        )
    best = labels.best
    if best is not None and best.column in labels.refused:
        problems.append(f"{best.column} {labels.refused[best.column]}")
    elif best is not None:
        _tell_controls(best, control, found)
        _tell_targets(best, control, found)
    elif labels.refused:
        problems.extend(f"{column} {why}" for column, why in labels.refused.items())
    else:
        problems.append("no obs column looks like a perturbation label: name it with --perturbation, or add one")


def _tell_controls(best: PerturbationFacts, control: str | None, found: Inspection) -> None:
    problems, notes = found.problems, found.notes
    without = f"{many(best.unlabelled, 'cell')} without a label"
    if control is None and not best.controls:
        problems.append(
            f"no label of {best.column!r} looks like a control: name it with --control (most frequent: "
            f"{with_cells(best.candidates, len(best.candidates))})"
            + (f"; {without}: if these are the controls, write one" if best.unlabelled else "")
        )
    elif best.unlabelled:
        notes.append(f"{without} in {best.column!r}: left out")
    others = [f"{label} ({number:,})" for label, number in best.controls.items() if label != control]
    if control is None and len(others) > 1:
        # Labels of one name and a number are the controls of one library; others may be something else.
        numbered = len(best.also_control) == 1 and best.also_control[0].endswith("*")
        (notes if numbered else problems).append(
            f"{len(others)} labels of {best.column!r} look like controls: {some(others, 5)}; all are read as the "
            f"control (also_control: {', '.join(best.also_control)}): take out what is none"
        )
    elif control is not None and others:
        problems.append(
            f"labels of {best.column!r} look like controls too: {some(others, 5)}; they count as perturbations: set "
            "also_control"
        )
    if best.unassigned:
        problems.append(
            f"labels of {best.column!r} that are no perturbation: "
            f"{with_cells(best.unassigned, len(best.unassigned))}: add them to quality.unassigned"
        )


def _tell_targets(best: PerturbationFacts, control: str | None, found: Inspection) -> None:
    problems, notes, genes = found.problems, found.notes, found.genes
    known = genes.symbols is not None or genes.incomplete is not None
    examples = ", ".join(best.examples)
    if not best.genetic:
        notes.append(
            f"no label of {best.column!r} ({examples}) is a gene: each gets a learned vector of its own "
            "(embed.proteins.missing: learned)"
        )
    elif known and best.pattern is None and best.genes < HARDLY and (best.controls or control):
        how = f"they are {best.otherwise}" if best.otherwise else "they are not in the file, or named otherwise"
        problems.append(
            f"{'hardly any' if best.genes else 'no'} target of {best.column!r} ({examples}) is a gene of the file: "
            f"{how}; write the targets as the symbols that are read, in obs or in var"
        )


def tell_roles(found: Inspection) -> None:
    """Add which columns are no context and no batch although they are named as one."""
    for what, columns in (("context", found.roles.contexts), ("batch", found.roles.batches)):
        found.notes.extend(f"{one.column} is no {what}: {one.why}" for one in columns if not one.fits)


def tell_groups(found: Inspection) -> None:
    """Add what there is to say of the numbers of cells."""
    groups = found.groups
    assert groups is not None
    lonely, without = groups.contexts_without_control, groups.batches_without_control
    if lonely:
        found.problems.append(
            f"no control cells in context {some(lonely, 5)}: nothing can be predicted there; choose another context "
            "column, or leave those cells out with keep"
        )
    if without and len(without) < groups.batches:
        batches = many(groups.batches, "batch", "batches")
        found.problems.append(
            f"no control cells in {len(without):,} of {batches} ({some(without, 5)}): the cells of such a batch have "
            "nothing to be compared with; use a coarser batch_column, or none"
        )
    if groups.few:
        found.notes.append(
            f"{groups.few:,} of {many(groups.groups, 'group')} with fewer than {FEW} cells: data.minimum_cells leaves "
            "such out"
        )
