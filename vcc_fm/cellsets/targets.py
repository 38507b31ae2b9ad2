"""The target genes of perturbations, and which of them have a protein vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import NamesConfig, SourceConfig
from vcc_fm.sources.symbol_files import read_symbols
from vcc_fm.sources.symbols import Coverage, SymbolTable, coverage


def targets_of(labels: Iterable[str], separator: str) -> set[str]:
    """The target genes of perturbations."""
    return {gene for label in labels for gene in label.split(separator)}


def protein_coverage(
    names: NamesConfig,
    targets: Iterable[str],
    genes: Iterable[str],
    known: Iterable[str],
    faulty: Mapping[str, str] | None = None,
) -> Coverage:
    """The name of each target gene and each gene of the axis among the protein vectors.

    Args:
        names: other names of genes.
        targets: target genes.
        genes: gene axis.
        known: symbols that have a protein vector.
        faulty: symbol -> what is wrong with its protein, of those that the FASTA has in vain.

    Raises:
        UserError: the table of symbols cannot be read, a pin is wrong, or a target gene or a gene of the axis has a
            faulty protein and no other.
    """
    table = SymbolTable()
    if names.symbols is not None:
        table = read_symbols(names.symbols, sha256=names.sha256)
    targets, genes = sorted(set(targets)), list(genes)
    pins = names.pins
    if names.approved:  # what was pinned bears its approved symbol by now, unless it is a name of its own
        pins = {symbol: gene for symbol, gene in pins.items() if symbol in {*targets, *genes}}
    covered = coverage(targets, genes, table, set(map(str, known)), pins)
    faulty = faulty or {}
    without = [r.symbol for r in [*covered.targets, *covered.genes] if r.found is None] if faulty else []
    found = {symbol: table.resolve(symbol, faulty.keys(), pins).found for symbol in without}
    needed = [f"{symbol}: {faulty[name]}" for symbol, name in found.items() if name is not None]
    if needed:
        raise UserError(
            f"embed.proteins.fasta: {len(needed)} of the target genes and genes of the axis have no "
            f"sound protein ({'; '.join(needed[:3])}{'; …' if len(needed) > 3 else ''}); "
            "correct the entries, or remove them"
        )
    return covered


def sources_of_contexts(
    sources: Iterable[SourceConfig], pairs: Iterable[tuple[str, str]]
) -> dict[str, dict[str, str]]:
    """Context -> the sources that have it, name -> path (empty where the screen is simulated), from such pairs."""
    paths = {source.name: source.path for source in sources}
    found: dict[str, dict[str, str]] = {}
    for context, name in pairs:
        found.setdefault(context, {})[name] = paths.get(name, "")
    return found


def require_vectors(without: list[str], missing: str) -> None:
    """Refuse target genes ``without`` a protein vector where the recipe asks for one of each.

    Raises:
        UserError: there are some, and ``embed.proteins.missing`` refuses them.
    """
    if without and missing == "refuse":
        raise UserError(
            f"{len(without)} target genes have no protein vector: {', '.join(without[:8])}; add their sequences to "
            "embed.proteins.fasta, give data.names.symbols, or set embed.proteins.missing to learned (a vector of its "
            "own) or drop"
        )


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
