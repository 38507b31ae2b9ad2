"""The target genes of perturbations, and which of them have a protein vector."""

from __future__ import annotations

from collections.abc import Iterable

from vcc_fm.recipe import Recipe
from vcc_fm.sources.symbols import Coverage, SymbolTable, coverage, read_symbols


def separator_of(recipe: Recipe) -> str:
    """What joins the target genes of a combination."""
    return recipe.data.sources[0].separator if recipe.data.sources else "+"


def protein_coverage(
    recipe: Recipe, perturbations: Iterable[str], genes: Iterable[str], known: Iterable[str]
) -> Coverage:
    """Under which name each target gene and each gene of the axis stands among the protein vectors.

    Args:
        recipe: its ``embed.proteins`` section says what other names are known.
        perturbations: labels, the control not among them.
        genes: gene axis.
        known: symbols that have a protein vector.

    Raises:
        UserError: the table of symbols cannot be read, or a pin is wrong.
    """
    config = recipe.embed.proteins
    table = read_symbols(config.symbols) if config.symbols is not None else SymbolTable()
    targets = sorted({gene for label in perturbations for gene in label.split(separator_of(recipe))})
    return coverage(targets, genes, table, set(map(str, known)), config.pins)


def without_any(covered: Coverage, missing: str) -> str:
    """What it means that no target gene has a protein vector, and all learn one; empty where some has."""
    if missing != "learned" or any(target.found is not None for target in covered.targets):
        return ""
    return (
        "no perturbation has a protein sequence (drugs and stimuli have none): each learns a vector of its own, and "
        "one that no training group has is predicted as any other"
    )


def with_vectors(
    group_cells: dict[tuple[str, str], int], known: set[str], control: str, separator: str
) -> dict[tuple[str, str], int]:
    """The groups whose target genes all have a protein vector, and the controls: ``embed.proteins.missing=drop``."""
    return {
        (context, label): cells
        for (context, label), cells in group_cells.items()
        if label == control or known.issuperset(label.split(separator))
    }
