"""What is wrong with a file, each in a line that says what to do."""

from __future__ import annotations

from vcc_fm.sources.inspect_genes import GeneFacts
from vcc_fm.sources.inspect_labels import LabelFacts, PerturbationFacts
from vcc_fm.sources.inspect_values import MatrixFacts

_GIANT = 4 << 30


def matrix_problems(facts: list[MatrixFacts], chosen: MatrixFacts | None) -> list[str]:
    """Problems of the values.

    Args:
        facts: of all matrices.
        chosen: the one to read.
    """
    found = []
    if chosen is None:
        found.append("no matrix gives counts: get the file with the raw counts (as X, raw, or a layer)")
    else:
        found += [f"{chosen.name}: {doubt}" for doubt in chosen.doubts]
        if chosen.found and chosen.proved < 0.99:
            found.append(
                f"{chosen.name}: the counts of {1 - chosen.proved:.1%} of the cells cannot be proved, and these are "
                "dropped: " + ("get the raw counts" if chosen.totals else "get the raw counts, or each cell's depth")
            )
        if chosen.encoding == "CSC":
            size = chosen.bytes / 1e9
            found.append(
                f"{chosen.name}: stored by column (CSC): reading it takes {size:.1f} GB of temporary disk and a turn "
                "by row; store it as CSR"
            )
    for one in facts:
        if one.encoding == "dense" and one.bytes >= _GIANT:
            found.append(
                f"{one.name}: {one.bytes / 1e9:.0f} GB stored dense, with {one.values_per_cell:,.0f} of {one.genes:,} "
                "values above zero in a cell: store it as CSR"
            )
    return found


def name_problems(genes: GeneFacts, labels: LabelFacts) -> list[str]:
    """Problems of the names of genes and of the labels of cells.

    Args:
        genes: how genes are named.
        labels: what the columns of obs are.
    """
    found = []
    index, used = genes.names[0], next((one for one in genes.names if one.column == genes.symbols), None)
    if used is None:
        found.append(f"no symbols: the var index holds {index.kind}; add a column of gene symbols to var")
    else:
        named = "the var index" if used.column == "index" else f"var column {used.column!r}"
        if used.column != "index":
            found.append(f"the var index holds {index.kind}: set symbols to {used.column}")
        if used.duplicated:
            found.append(
                f"{named} repeats {used.duplicated:,} symbols ({', '.join(used.duplicates)}): set duplicate_genes to "
                "sum, or make them distinct"
            )
        if used.spaces:
            found.append(f"{used.spaces:,} symbols in {named} have spaces around them: they are stripped on reading")
        if genes.ensembl_among_symbols:
            found.append(
                f"{genes.ensembl_among_symbols:,} genes have an Ensembl id among the symbols: they are kept under it"
            )
    if " and " in genes.species:
        found.append(f"genes of two species ({genes.species}): keep the cells and genes of one")
    if genes.spike_ins:
        found.append(f"{genes.spike_ins:,} spike-ins (ERCC-) among the genes: they are read as genes; remove them")
    if len(genes.features) > 1:
        said = ", ".join(f"{number:,} {kind}" for kind, number in genes.features.items())
        found.append(f"var.feature_types holds {said}: all are read as genes; keep Gene Expression only")
    if labels.duplicate_barcodes:
        found.append(
            f"{labels.duplicate_barcodes:,} barcodes repeat: they are numbered on reading; make them distinct"
        )
    if labels.perturbations:
        found += _label_problems(labels.perturbations[0])
    else:
        found.append("no obs column looks like a perturbation label: name it with --perturbation, or add one")
    return found


def _label_problems(best: PerturbationFacts) -> list[str]:
    found = []
    if not best.controls:
        found.append(f"no label of {best.column!r} looks like a control: name it with --control")
    elif len(best.controls) > 1:
        said = ", ".join(f"{label} ({number:,})" for label, number in list(best.controls.items())[:5])
        found.append(
            f"{len(best.controls)} labels of {best.column!r} look like controls: {said}; one is taken, the others "
            "count as perturbations: make them one label, or remove those cells"
        )
    if best.unassigned:
        said = ", ".join(f"{label} ({number:,} cells)" for label, number in best.unassigned.items())
        found.append(f"labels of {best.column!r} that are no perturbation: {said}: add them to quality.unassigned")
    if best.guides > best.genes:
        found.append(
            f"{best.column!r} holds guides, and each would be a perturbation of its own: add a column of target genes"
        )
    return found
