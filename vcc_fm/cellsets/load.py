"""Open what a recipe's earlier stages made."""

from __future__ import annotations

from pathlib import Path

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.split import Split
from vcc_fm.cellsets.targets import protein_coverage, separator_of
from vcc_fm.errors import UserError
from vcc_fm.layout import Layout, is_done
from vcc_fm.recipe import Recipe
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
