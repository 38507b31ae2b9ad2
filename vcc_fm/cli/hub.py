"""Commands that share a run and use what others share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from vcc_fm.cli.options import AsJson, Debug, Overrides, Processes, Quiet, RecipePath, app, console_of, print_json
from vcc_fm.cli.stages import run_stages
from vcc_fm.ground.errors import UserError

MODEL_HELP = "Hub id (ORG/NAME, ORG/NAME@REVISION), folder that was pulled, or run folder"


@app.command()
def push(
    recipe: RecipePath,
    overrides: Overrides = None,
    repo: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="repository, as hub.repo")] = None,
    what: Annotated[str | None, typer.Option(help="merged, adapter, stores, predictions or all, as hub.what")] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="branch, as hub.revision")] = None,
    accept_licence: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="an ancestor whose limiting terms you have read; may be repeated"),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Share model, stores or predictions on the Hugging Face Hub, in one commit a repository."""
    from vcc_fm.recipe.read import load_recipe

    given = {"repo": repo, "what": what, "private": private or None, "revision": revision}
    named = [f"hub.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    loaded = load_recipe(recipe, [*(overrides or []), *named])
    if loaded.hub is None:
        raise UserError(f"{recipe}: has no section hub; add one, or give --repo ORG/NAME")
    if accept_licence:
        accepted = sorted({*loaded.hub.accept_licence, *accept_licence})
        named.append(f"hub.accept_licence={json.dumps(accepted)}")
    run_stages(recipe, [*(overrides or []), *named], quiet, as_json, "push", 1)


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="repository, also with hf://")],
    folder: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="put copies there, not into the Hugging Face cache")
    ] = None,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="the dataset of that name: stores and predictions")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fetch a shared model, or shared stores and predictions; models and stores are checked, file by file."""
    from vcc_fm.ground.hub import address_of
    from vcc_fm.ground.hub import pull as fetch
    from vcc_fm.hub.bundle import MANIFEST, read_bundle
    from vcc_fm.store.verify import is_store
    from vcc_fm.store.verify import verify as verify_store

    console = _client_console(quiet, as_json)
    address = address_of(repo, "dataset" if dataset else "model")
    if address is None or address.path:
        raise UserError(f"{repo}: write ORG/NAME or ORG/NAME@REVISION")
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give a new folder, so that old and new files do not mix")
    place, commit = fetch(address, folder=folder)
    holds: list[str] = []
    if (place / MANIFEST).is_file():
        read_bundle(place)
        holds.append("model")
    for store in filter(is_store, sorted(place.iterdir())):
        verify_store(store)
        holds.append(store.name)
    if not holds and not (place / "predictions").is_dir():
        raise UserError(f"{place}: holds nothing that this program shared: no {MANIFEST}, and no store")
    checked = f"{', '.join(holds)}, whole" if holds else "predictions"
    console.print(f"{place}: {address.repo}@{commit}: {checked}", markup=False)
    if as_json:
        print_json({"folder": str(place), "repo": address.repo, "commit": commit, "holds": holds})


@app.command()
def merge(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id of a shared adapter, or folder it was pulled to")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="where the model with merged weights goes")],
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Put a shared adapter on its base, and write the model with merged weights."""
    from vcc_fm.hub.bundle import merge_bundle
    from vcc_fm.pipeline import PerturbationPipeline

    console = _client_console(quiet, as_json)
    pipeline = PerturbationPipeline.from_pretrained(model)
    merge_bundle(pipeline.bundle, folder)
    console.print(f"{folder}: the merged model", markup=False)
    if as_json:
        print_json({"folder": str(folder)})


@app.command()
def predict(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="recipe, a YAML file")] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help=f"in place of a recipe: {MODEL_HELP}")] = None,
    controls: Annotated[
        Path | None, typer.Option(metavar="FILE.h5ad", help="control cells to predict from, with --model")
    ] = None,
    perturbations: Annotated[
        str | None, typer.Option(metavar="LIST", help="target genes, with commas between, or a file with one a line")
    ] = None,
    cells: Annotated[
        int | None, typer.Option(min=1, help="with --model: cells for each perturbation in each context (400)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.h5ad", help="with --model: where the cells go (predicted.h5ad)")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="with --model: context of the controls, if obs has no column context (controls)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="with --model: of what is drawn, if not the run's")] = None,
    symbols: Annotated[str | None, typer.Option(help="with --model: column of var with gene symbols (index)")] = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Predict the held-out perturbations of a recipe, or, with --model, what you ask for in your own control cells."""
    if recipe is not None:
        asked_of_a_model = (model, controls, perturbations, cells, out, context, seed, symbols)
        if any(one is not None for one in asked_of_a_model):
            raise UserError("give a recipe, or --model with its options, not both; a recipe has its own keys for them")
        run_stages(recipe, overrides, quiet, as_json, "predict", processes)
        return
    if model is None or controls is None or perturbations is None:
        raise UserError("give a recipe, or --model with --controls and --perturbations")
    if processes > 1:
        raise UserError("--processes belongs to a recipe; a model predicts in one process")
    made = _predict_by_model(
        model,
        controls,
        perturbations,
        cells or 400,
        out or Path("predicted.h5ad"),
        _client_console(quiet, as_json),
        context=context or "controls",
        seed=seed,
        symbols=symbols or "index",
    )
    if as_json:
        print_json(made)


def _predict_by_model(
    model: str, controls: Path, perturbations: str, cells: int, out: Path, console: Console, **options: Any
) -> dict[str, Any]:
    """Predict in the user's own control cells; what was made, as JSON values."""
    import warnings

    import anndata

    from vcc_fm.ground.errors import reading
    from vcc_fm.pipeline import PerturbationPipeline

    pipeline = PerturbationPipeline.from_pretrained(model)
    with reading(controls, "h5ad", "give an h5ad file of control cells"):
        table = anndata.read_h5ad(controls)
    asked = _listed(perturbations)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        pipeline.write(out, table, asked, cells, console=console, **options)
    for one in told:
        if str(one.message).startswith("controls: "):
            console.print(f"[yellow]warning[/yellow] {escape(str(one.message))}", highlight=False, soft_wrap=True)
    console.print(f"{out}: {len(asked):,} perturbations by {pipeline.commit}", markup=False, soft_wrap=True)
    return {"file": str(out), "model": pipeline.commit, "perturbations": asked, "cells": cells}


def _listed(text: str) -> list[str]:
    """Labels of a list with commas, or of a file with one a line."""
    file = Path(text)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else text.split(",")
    return [line.strip() for line in lines if line.strip()]


def _client_console(quiet: bool, as_json: bool) -> Console:
    from vcc_fm.ground.hub import show_progress

    show_progress(not quiet)
    return console_of(quiet, as_json)
