"""The stage `split`: which groups train, validate and test, and which genes have a protein vector."""

from __future__ import annotations

from rich.console import Console

from vcc_fm.cellsets.targets import sources_of_contexts, with_vectors, without_any
from vcc_fm.ground.files import write_json
from vcc_fm.ground.words import many
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import covered_genes, separator_of
from vcc_fm.run.outputs import Output
from vcc_fm.splits.hold_out import make_splits
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore


def split(recipe: Recipe, output: Output, console: Console) -> None:
    """Write coverage and splits, and say what each fold holds."""
    layout, missing = Layout(recipe), recipe.embed.proteins.missing
    cells, proteins = CellStore(layout.cells.require()), EmbeddingStore(layout.proteins.require())
    separator = separator_of(recipe, cells)
    covered = covered_genes(recipe, cells, proteins)
    write_json(output.path, covered.to_json())
    for line in covered.lines():
        console.print(f"proteins: {line}", markup=False, soft_wrap=True)
    if note := without_any(covered, missing):
        console.print(f"proteins: {note}", markup=False, soft_wrap=True)
    group_cells = cells.group_cells
    if missing == "drop":
        group_cells = with_vectors(group_cells, set(covered.found()), cells.control, separator)
        dropped = {label for _, label in cells.group_cells.keys() - group_cells.keys()}
        number = sum(cells.group_cells.values()) - sum(group_cells.values())
        console.print(
            f"dropped for want of a protein vector: {many(len(dropped), 'perturbation')}, {many(number, 'cell')}"
        )
    sources = sources_of_contexts(recipe.data.sources, cells.context_sources)
    splits = make_splits(recipe.split, group_cells, cells.control, separator, recipe.seed, sources, covered.same())
    for one in splits:
        path = layout.split(one.fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        one.write(path)
        for role, counts in one.counts().items():
            if counts["groups"]:
                shown = ", ".join(many(number, what.removesuffix("s")) for what, number in counts.items())
                console.print(f"fold {one.fold}: {role}: {shown}")
    for warning in sorted({warning for one in splits for warning in one.warnings}):
        console.print("[yellow]note[/yellow]", end=" ")
        console.print(warning, markup=False)
