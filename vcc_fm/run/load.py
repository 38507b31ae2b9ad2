"""What stages read: the recipe's inputs, and what earlier stages made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.targets import protein_coverage, targets_of
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.sources.symbols import Coverage
from vcc_fm.splits.split import Split
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore


def covered_genes(recipe: Recipe, cells: CellStore, proteins: EmbeddingStore, asked: Iterable[str] = ()) -> Coverage:
    """The name under which each target gene, and each gene of the axis, has a protein vector.

    Args:
        recipe: of the run.
        cells: give labels and axis.
        proteins: give the names of the vectors.
        asked: perturbations that are asked for, measured or not.

    Raises:
        UserError: as :func:`protein_coverage`.
    """
    # A table of vectors has no sequences.
    faulty = proteins.meta["sequences"]["faulty"] if "sequences" in proteins.meta else {}
    targets = targets_of([*cells.labels, *asked], separator_of(recipe, cells))
    return protein_coverage(recipe.data.names, targets, cells.genes, proteins.keys, faulty)


def separator_of(recipe: Recipe, cells: CellStore) -> str:
    """What joins the target genes of a combination."""
    return cells.separator if recipe.data.store is not None else recipe.data.separator


_LAST: dict[tuple[Any, ...], Dataset] = {}


def forget_dataset() -> None:
    """Give the memory of the last dataset back, and of all that was fitted to it."""
    _LAST.clear()


def load_dataset(
    recipe: Recipe, fold: int, finished: Callable[[Output], Path] = Output.require, asked: Iterable[str] = ()
) -> Dataset:
    """The stores and the split of one fold.

    The last one is kept: what is fitted to it (profiles, responses, their mixed model) serves all stages and seeds
    that a process runs.

    Args:
        recipe: of the run.
        fold: its number.
        finished: the path of what a stage has made, or a refusal.
        asked: perturbations that are asked for, measured or not.

    Raises:
        UserError: a stage has not been run, or was run for another recipe; or as :func:`covered_genes`.
    """
    layout = Layout(recipe)
    cells, proteins = CellStore(finished(layout.cells)), EmbeddingStore(finished(layout.proteins))
    cell_vectors = EmbeddingStore(finished(layout.cell_embeddings))
    finished(layout.splits)
    unknown = sorted(set(asked) - set(cells.labels))
    made = [(store.folder.resolve(), store.folder.stat().st_ino) for store in (cells, proteins, cell_vectors)]
    outputs = layout.cells, layout.proteins, layout.cell_embeddings, layout.splits
    read = recipe.model_dump_json(include={"data": True, "embed": True, "decoder": {"unmeasured"}})
    key = (*made, *(output.fingerprint for output in outputs), read, fold, *unknown)
    if key not in _LAST:
        forget_dataset()
        _LAST[key] = Dataset(
            cells,
            cell_vectors,
            proteins,
            Split.read(layout.split(fold)),
            separator_of(recipe, cells),
            covered_genes(recipe, cells, proteins, unknown).found(),
            recipe.embed.proteins.missing,
            recipe.embed.cells,
            unmeasured=recipe.decoder.unmeasured,
        )
    return _LAST[key]


def read_splits(recipe: Recipe) -> list[Split]:
    """The splits of all folds.

    Raises:
        UserError: the split stage has not been run, or was run for another recipe.
    """
    layout = Layout(recipe)
    layout.splits.require()
    return [Split.read(layout.split(fold)) for fold in range(recipe.split.folds)]


def describe_counts(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """What an h5ad of this run says of itself in ``uns``."""
    return {
        "recipe": recipe.name,
        "recipe_fingerprint": recipe.fingerprint(),
        "values": "counts",
        "simulated": bool(data.cells.meta["simulated"]),
    }
