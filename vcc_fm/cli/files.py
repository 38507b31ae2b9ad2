"""Commands about files: what is in one, whether it is whole, and as other programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    challenge: Annotated[str, typer.Option(metavar="NAME", help="vcc2026 or vcc2025")],
    genes: Annotated[
        Path, typer.Option(metavar="gene_names.csv", help="the challenge's gene axis", exists=True, dir_okay=False)
    ],
    perturbations: Annotated[
        Path,
        typer.Option(metavar="pert_counts.csv", help="its list of perturbations", exists=True, dir_okay=False),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.vcc", help="where it goes, if not beside the predictions")
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
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="scores.json files, or run folders")],
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Put several runs (seeds) side by side: mean and standard deviation of every score, as Markdown."""
    from vcc_fm.scoring.compare import compare as compare_runs
    from vcc_fm.scoring.compare import to_markdown, without_headline

    files = [path / "scores.json" if path.is_dir() else path for path in scores]
    frame = compare_runs(files)
    print(frame.to_json(orient="records", indent=1) if as_json else to_markdown(frame))
    for line in without_headline(files):
        console_of(quiet, as_json).print(line, markup=False, highlight=False, soft_wrap=True)
