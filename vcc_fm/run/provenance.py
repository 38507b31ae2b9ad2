"""What a run was made from, in words: split, coverage, sources, fingerprints, versions, recipe."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import yaml

from vcc_fm.ground.files import read_json
from vcc_fm.ground.paths import without_folders
from vcc_fm.ground.words import listed
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output, seconds_of
from vcc_fm.scoring.report.record import Listing, Section
from vcc_fm.scoring.table import ScoreTable
from vcc_fm.splits.split import Split

PACKAGES = ("vcc-fm", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "cell-eval2")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def plain(value: Any) -> Any:
    """JSON without the folders of this machine."""
    if isinstance(value, dict):
        return {without_folders(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe, without folders of this machine, secrets, and where it is shared."""
    content: dict[str, Any] = plain(recipe.public() | {"output": ".", "hub": None})
    return content


def sections(recipe: Recipe, table: ScoreTable) -> list[Section]:
    """The report's last sections.

    Args:
        recipe: of a run whose stages before ``score`` are done.
        table: its scores.
    """
    layout = Layout(recipe)
    return [_split(recipe, layout), _coverage(layout), _provenance(recipe, layout, table)]


def _split(recipe: Recipe, layout: Layout) -> Section:
    splits = [Split.read(layout.split(fold)) for fold in range(recipe.split.folds)]
    heads = ["fold", "role", "contexts", "perturbations", "groups", "cells"]
    rows = [
        [str(one.fold), role, *(f"{counts[name]:,}" for name in heads[2:])]
        for one in splits
        for role, counts in one.counts().items()
    ]
    lines = [f"Held out: {splits[0].hold_out}; the labels were chosen with seed {splits[0].seed}."]
    lines += sorted({warning for one in splits for warning in one.warnings})
    return Section("Split", lines, [Listing("Groups of a context and a perturbation", heads, rows)])


def _coverage(layout: Layout) -> Section:
    found = read_json(layout.splits.path)
    names = {"targets": "target genes", "genes": "genes of the axis"}
    rows = [
        [shown, how, f"{len(symbols):,}", listed(list(symbols))]
        for what, shown in names.items()
        for how, symbols in found[what].items()
        if symbols
    ]
    heads = ["of", "name in the protein vectors", "number", "such as"]
    return Section("Coverage", (), [Listing("Genes that have a protein vector, and under which name", heads, rows)])


def _provenance(recipe: Recipe, layout: Layout, table: ScoreTable) -> Section:
    store = read_json(layout.cells.path / "store.json")
    heads = ["source", "from", "cells", "genes", "licence", "citation", "SHA-256"]
    sources = [
        [
            one["name"],
            one["file"],
            f"{one['cells']:,}",
            f"{one['genes']:,}",
            *(one[key] or "–" for key in ("licence", "citation", "sha256")),
        ]
        for one in store["sources"]
    ]
    outputs = [layout.cells, layout.proteins, layout.cell_embeddings, layout.splits, *layout.decoders]
    outputs += [*layout.calibrations, layout.predictions, layout.scores]
    scorer = {"scorer": f"{table.scorer} {table.version}", "preset": table.preset, **table.parameters}
    return Section(
        "Provenance",
        [f"Recipe {recipe.name}, fingerprint {recipe.fingerprint()}."],
        [
            Listing("Cells", heads, sources),
            Listing("Stages", ["stage", "fold", "seconds", "fingerprint"], [_stage(one) for one in outputs]),
            Listing("Versions", ["package", "version"], list(versions().items())),
        ],
        {
            "What the scorer was given": yaml.safe_dump(scorer, sort_keys=False, allow_unicode=True),
            "Recipe": yaml.safe_dump(public_recipe(recipe), sort_keys=False, allow_unicode=True),
        },
    )


def _stage(output: Output) -> list[str]:
    seconds = seconds_of(output)
    name = f"{output.stage} ({output.phase})" if output.phase else output.stage
    return [name, str(output.fold), "–" if seconds is None else f"{seconds:,.0f}", output.fingerprint]
