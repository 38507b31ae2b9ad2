"""Commands about files: what is in one, whether it is whole, and as other programs read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vcc_fm.cli.options import (
    AsJson,
    Debug,
    Overrides,
    Quiet,
    RecipePath,
    app,
    console_of,
    export_app,
    print_json,
)

if TYPE_CHECKING:
    from vcc_fm.scoring.compare import Difference


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="an h5ad file, or a zarr store")],
    perturbation: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="obs column with the perturbation label, if not as guessed")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="LABEL", help="label of the control cells, if not as guessed")
    ] = None,
    every_value: Annotated[
        bool, typer.Option("--all", help="read every value of every matrix, rather than a sample of cells")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what is in a file: values, genes, labels, knock-down, problems, and the recipe lines to read it by."""
    import dataclasses

    from vcc_fm.ground.progress import ProgressLines
    from vcc_fm.inspection.inspect import inspect_file
    from vcc_fm.inspection.text import print_inspection

    progress = console_of(quiet, as_json)
    found = inspect_file(
        file, perturbation, control, every_value, lambda what: ProgressLines(f"inspect {what}", "cells", progress)
    )
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        print_inspection(found, console_of(False, as_json))


@app.command()
def verify(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="stores, or folders of runs or embeddings")
    ],
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read stores, and all else that stages have finished, every byte, and compare it with what was written."""
    from vcc_fm.ground.progress import ProgressLines
    from vcc_fm.ground.words import many
    from vcc_fm.run.outputs import check_outputs
    from vcc_fm.store.verify import is_store
    from vcc_fm.store.verify import verify as verify_store

    console = console_of(quiet, as_json)
    results: list[dict[str, Any]] = []
    for folder in folders:
        stores = [folder] if is_store(folder) else []
        if not stores:
            for output, files, size in check_outputs(folder):
                if is_store(output):
                    stores.append(output)
                else:
                    results.append({"output": str(output), "files": files, "bytes": size})
                    console.print(f"{output}: whole, {many(files, 'file')}, {size:,} bytes", markup=False)
        for store in stores:
            results.append(verify_store(store, ProgressLines(f"verify {store.name}", "rows", console)))
            console.print(f"{store}: whole, {results[-1]['rows']:,} rows", markup=False)
    if as_json:
        print_json(results)


@export_app.command("proteins")
def export_proteins(
    recipe: RecipePath,
    file: Annotated[Path, typer.Argument(metavar="FILE.pt", help="where the dictionary goes")],
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the protein vectors as a .pt dictionary symbol -> vector, as State reads it."""
    from vcc_fm.encoders.proteins.table import write_pt
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.layout import Layout
    from vcc_fm.store.embeddings import EmbeddingStore

    store = EmbeddingStore(Layout(load_recipe(recipe, overrides)).proteins.require())
    write_pt(file, list(map(str, store.keys)), store.vectors)
    result = {"file": str(file), "genes": len(store.keys), "width": store.width}
    if as_json:
        print_json(result)
    else:
        console_of(quiet, as_json).print(f"{file}: {len(store.keys):,} genes x {store.width}", markup=False)


@export_app.command("obsm")
def export_obsm(
    recipe: RecipePath,
    file: Annotated[Path, typer.Argument(metavar="FILE.h5ad", help="where the copy goes")],
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option(help="which of the recipe's sources; needed where it has several")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="key in obsm, if not the one that the encoder names (X_state, X_pca)")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy a source's h5ad with the vectors of its cells in obsm, as State and scanpy read them."""
    from vcc_fm.ground.progress import ProgressLines
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.export import export_obsm as write
    from vcc_fm.run.inputs import source_configs
    from vcc_fm.run.layout import Layout

    loaded, console = load_recipe(recipe, overrides), console_of(quiet, as_json)
    configs = source_configs(loaded, Layout(loaded).simulated)
    result = write(loaded, configs, source, file, key, ProgressLines("export", "cells", console))
    if as_json:
        print_json(result)
    else:
        console.print(
            f"{file}: obsm/{result['key']}, {result['cells']:,} cells x {result['width']}, "
            f"{result['without_vector']:,} of them without a vector (NaN)",
            markup=False,
        )


@app.command()
def submission(
    recipe: RecipePath,
    challenge: Annotated[str, typer.Option(metavar="NAME", help="vcc2026, vcc2025 or myllia")],
    genes: Annotated[
        Path,
        typer.Option(
            metavar="gene_names.csv", help="the challenge's gene axis, or its sample", exists=True, dir_okay=False
        ),
    ],
    perturbations: Annotated[
        Path,
        typer.Option(metavar="pert_counts.csv", help="its list of perturbations", exists=True, dir_okay=False),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where it goes, if not beside the predictions")
    ] = None,
    predictor: Annotated[str, typer.Option(help="model, or a baseline of the recipe")] = "model",
    contexts: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="contexts, if manifest.json beside the list does not name them")
    ] = None,
    memory_gb: Annotated[
        float, typer.Option(help="memory that the challenge's own check may take; it reads all cells at once")
    ] = 4,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's predictions as the file that a challenge takes, and check it before and after."""
    from vcc_fm.ground.progress import ProgressLines
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.submission import write

    loaded, console = load_recipe(recipe, overrides), console_of(quiet, as_json)
    asked = [context.strip() for context in contexts.split(",")] if contexts else None
    result = write(
        loaded,
        challenge,
        predictor,
        genes,
        perturbations,
        asked,
        output,
        memory_gb,
        lambda step: ProgressLines(f"submission: {step}", "cells", console),
    )
    if as_json:
        print_json(result)
        return
    for line in result["notes"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a run: its folder, its scores.json, or a pattern of several")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="another run with the same held-out cells")] = None,
    entry: Annotated[str, typer.Option(help="which row of the tables")] = "model",
    against: Annotated[
        str | None, typer.Option(help="row of B (the same); without B a row of A, else every baseline in turn")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say how far two predictors are apart on the same held-out cells, and how sure that is.

    Several runs with other held-out groups, such as simulated worlds, end in a table of all entries.
    """
    from vcc_fm.run.seeds import against_baselines, other_baselines, scored, worlds_of
    from vcc_fm.scoring.compare import Side, paired
    from vcc_fm.scoring.seeds import over_seeds, to_markdown

    ours, console = scored(a), console_of(quiet, as_json)
    if b is None and against is None and (worlds := worlds_of(ours)) is not None:
        if as_json:
            print_json(worlds.to_json())
        else:
            console.print(worlds.to_markdown(), markup=False, highlight=False, soft_wrap=True)
        return
    if b is None and against is None and not as_json:
        if len(ours) > 1:
            console.print(to_markdown(over_seeds(ours)), markup=False, highlight=False, soft_wrap=True)
        for line in against_baselines(ours, entry):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    theirs = ours if b is None else scored(b)
    others = [against] if against else other_baselines(ours, entry) if b is None else [entry]
    found = {}
    for other in others:
        left, right = (entry, other) if b is None or other != entry else (a, b)
        one = paired(Side(a, entry, list(ours.values())), Side(b or a, other, list(theirs.values())))
        found[other] = one
        if not as_json:
            console.print(one.table(left, right))
            for line in [*one.notes, one.verdict()]:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json([_as_json(a, b or a, entry, other, one) for other, one in found.items()])


def _as_json(a: str, b: str, entry: str, other: str, found: Difference) -> dict[str, Any]:
    rows = json.loads(found.rows.reset_index().to_json(orient="records", double_precision=15))
    sides = {"a": {"run": a, "entry": entry}, "b": {"run": b, "entry": other}}
    return {**sides, "perturbations": found.perturbations, "seeds": found.seeds, "notes": found.notes, "rows": rows}
