"""Open what a recipe's earlier stages made."""

from __future__ import annotations

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.split import Split
from vcc_fm.cellsets.targets import protein_coverage, separator_of
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore


def faulty_proteins(proteins: EmbeddingStore) -> dict[str, str]:
    """Symbol -> what was wrong with its protein, as the protein store keeps it; a table of vectors has no proteins."""
    return proteins.meta["sequences"]["faulty"] if "sequences" in proteins.meta else {}


def load_dataset(recipe: Recipe, fold: int) -> Dataset:
    """The stores and the split of one fold.

    Raises:
        UserError: a stage has not been run, or was run for another recipe; or as :func:`protein_coverage`.
    """
    layout = Layout(recipe)
    cells, proteins = CellStore(layout.cells.require()), EmbeddingStore(layout.proteins.require())
    cell_vectors = EmbeddingStore(layout.cell_embeddings.require())
    layout.splits.require()
    return Dataset(
        cells,
        cell_vectors,
        proteins,
        Split.read(layout.split(fold)),
        separator_of(recipe),
        protein_coverage(recipe, cells.labels, cells.genes, proteins.keys, faulty_proteins(proteins)).found(),
    )
