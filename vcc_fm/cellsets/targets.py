"""The target genes of perturbations, and which of them have a protein vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.sources.symbol_files import read_symbols
from vcc_fm.sources.symbols import Coverage, SymbolTable, coverage


def separator_of(recipe: Recipe) -> str:
    """What joins the target genes of a combination."""
    return recipe.data.sources[0].separator if recipe.data.sources else "+"


def protein_coverage(
    recipe: Recipe,
    perturbations: Iterable[str],
    genes: Iterable[str],
    known: Iterable[str],
    faulty: Mapping[str, str] | None = None,
) -> Coverage:
    """Under which name each target gene and each gene of the axis stands among the protein vectors.

    Args:
        recipe: its ``embed.proteins`` section says what other names are known.
        perturbations: labels, the control not among them.
        genes: gene axis.
        known: symbols that have a protein vector.
        faulty: symbol -> what is wrong with its protein, of those that the FASTA has in vain.

    Raises:
        UserError: the table of symbols cannot be read, a pin is wrong, or a target gene or a gene of the axis has a
            faulty protein and no other.
    """
    config = recipe.embed.proteins
    table = SymbolTable()
    if config.symbols is not None:
        table = read_symbols(config.symbols, sha256=config.symbols_sha256)
    targets = sorted({gene for label in perturbations for gene in label.split(separator_of(recipe))})
    covered = coverage(targets, genes, table, set(map(str, known)), config.pins)
    faulty = faulty or {}
    without = [r.symbol for r in [*covered.targets, *covered.genes] if r.found is None] if faulty else []
    found = {symbol: table.resolve(symbol, faulty.keys(), config.pins).found for symbol in without}
    needed = [f"{symbol}: {faulty[name]}" for symbol, name in found.items() if name is not None]
    if needed:
        raise UserError(
            f"embed.proteins.fasta={config.fasta}: {len(needed)} of the target genes and genes of the axis have no "
            f"sound protein ({'; '.join(needed[:3])}{'; …' if len(needed) > 3 else ''}); "
            "correct the entries, or remove them"
        )
    return covered


def sources_of_contexts(recipe: Recipe, pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Context -> the sources that have it, name -> path (empty where the screen is simulated), from such pairs."""
    paths = {source.name: source.path for source in recipe.data.sources}
    found: dict[str, dict[str, str]] = {}
    for context, name in pairs:
        found.setdefault(context, {})[name] = paths.get(name, "")
    return found


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
