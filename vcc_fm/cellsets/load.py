"""Open what a recipe's earlier stages made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.split import Split
from vcc_fm.errors import UserError
from vcc_fm.layout import Layout, is_done
from vcc_fm.recipe import Recipe
from vcc_fm.sources.symbol_files import read_symbols
from vcc_fm.sources.symbols import Coverage, SymbolTable, coverage
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore


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


def faulty_proteins(proteins: EmbeddingStore) -> dict[str, str]:
    """Symbol -> what was wrong with its protein, as the protein store keeps it; a table of vectors has no proteins."""
    return proteins.meta["sequences"]["faulty"] if "sequences" in proteins.meta else {}


def sources_of_contexts(recipe: Recipe, pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Context -> the sources that have it, name -> path (empty where the screen is simulated), from such pairs."""
    paths = {source.name: source.path for source in recipe.data.sources}
    found: dict[str, dict[str, str]] = {}
    for context, name in pairs:
        found.setdefault(context, {})[name] = paths.get(name, "")
    return found


def with_vectors(
    group_cells: dict[tuple[str, str], int], known: set[str], control: str, separator: str
) -> dict[tuple[str, str], int]:
    """The groups whose target genes all have a protein vector, and the controls: ``embed.proteins.missing=drop``."""
    return {
        (context, label): cells
        for (context, label), cells in group_cells.items()
        if label == control or known.issuperset(label.split(separator))
    }


def load_dataset(recipe: Recipe, fold: int) -> Dataset:
    """The stores and the split of one fold.

    Raises:
        UserError: a stage has not been run, or was run for another recipe; or as :func:`protein_coverage`.
    """
    layout = Layout(recipe)
    needed: list[tuple[str, Path, str]] = [
        ("prepare", layout.cells, layout.cells_fingerprint),
        ("embed proteins", layout.proteins, layout.proteins_fingerprint),
        ("embed cells", layout.cell_embeddings, layout.cell_embeddings_fingerprint),
        ("split", layout.split(fold), layout.split_fingerprint),
    ]
    for stage, output, fingerprint in needed:
        if not is_done(output, fingerprint):
            raise UserError(f"{output} is missing or was made from another recipe; run `vcc-fm {stage} RECIPE` first")
    cells, proteins = CellStore(layout.cells), EmbeddingStore(layout.proteins)
    return Dataset(
        cells,
        EmbeddingStore(layout.cell_embeddings),
        proteins,
        Split.read(layout.split(fold)),
        separator_of(recipe),
        protein_coverage(recipe, cells.labels, cells.genes, proteins.keys, faulty_proteins(proteins)).found(),
    )
