"""The command ``vcc-fm``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typer.exceptions import TyperException

from vcc_fm.ground.errors import UserError, obey_signals
from vcc_fm.run.table import STAGES

app = typer.Typer(
    name="vcc-fm",
    help="Predict the single-cell counts that follow a genetic perturbation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
embed_app = typer.Typer(help="Run a frozen encoder and write its embedding store.", no_args_is_help=True)
app.add_typer(embed_app, name="embed")
export_app = typer.Typer(help="Write what a recipe made in the form that other programs read.", no_args_is_help=True)
app.add_typer(export_app, name="export")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe, a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, e.g. train.lr=1e-4")]
WIDE = 140
"""Columns where nobody's terminal says how many there are: a table in a log file must not be cut."""

Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors and results")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout, everything else on stderr")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
Processes = Annotated[
    int, typer.Option("--processes", "-p", min=1, help="processes that read cells, train and predict, on this node")
]

INTERRUPTED = 130
"""Exit code that Typer makes of Ctrl-C, as shells do."""


def main() -> None:
    """Entry point: exit code 0, 2 for a user's error, 75 for one that goes on when it is run again, 1 for a fault."""
    obey_signals()
    try:
        # Typer returns the code of an `Exit` rather than raising it where it is not the last frame itself.
        code = app(standalone_mode=False)
    except TyperException as error:
        # Without a message it is a command without arguments, whose help has been shown.
        if message := error.format_message():
            _fail(UserError(f"{message.rstrip('.')}; see vcc-fm --help"))
        return
    except Exception as error:  # noqa: BLE001 - the last frame: a fault is shown in one line and has its own exit code
        _fail(error)
    if code == INTERRUPTED:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(code)


def _fail(error: Exception) -> NoReturn:
    # Imported here, as everything beyond the command line itself: help must come at once.
    from vcc_fm.run.script import fail

    fail(error, "--debug" in sys.argv)


def _console(quiet: bool, as_json: bool) -> Console:
    console = Console(stderr=as_json, quiet=quiet)
    if not console.is_terminal:
        console.width = WIDE
    return console


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))  # stdout is the result's own


def _run_stages(
    recipe_path: Path, overrides: list[str] | None, quiet: bool, as_json: bool, only: str | None, processes: int
) -> None:
    """Run all stages, or the one named ``only``."""
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.layout import Layout
    from vcc_fm.run.script import sole_writer
    from vcc_fm.run.stages import run_stage, stage_named, stages_of

    recipe = load_recipe(recipe_path, overrides)
    console = _console(quiet, as_json)
    ran = []
    # Libraries print on stdout too, which with --json is the result's own.
    with redirect_stdout(sys.stderr if as_json else sys.stdout), sole_writer(recipe, console):
        stages = [stage for stage in stages_of(recipe) if only in (None, stage.name)]
        if not stages:
            raise UserError(f"{recipe_path}: asks for no {only}; {stage_named(str(only)).asked_by} does")
        for stage in stages:
            outputs = [str(output.path) for output in stage.outputs(Layout(recipe))]
            ran.append({"stage": stage.name, "ran": run_stage(stage, recipe, console, processes), "outputs": outputs})
    if as_json:
        _print_json({"recipe": recipe.name, "stages": ran, **_scores(recipe.run_folder, only)})
    elif only is None and not any(entry["ran"] for entry in ran):
        from vcc_fm.scoring.table import read_table

        read_table(recipe.run_folder / "scores.json").print(console)


def _scores(run: Path, only: str | None) -> dict[str, Any]:
    if only not in (None, "score"):
        return {}
    return {"means": json.loads((run / "scores.json").read_text())["means"]}


def _stage_command(stage: str, help_text: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        quiet: Quiet = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        _run_stages(recipe, overrides, quiet, as_json, stage, 1)

    command.__doc__ = help_text
    return command


def _launched_command(stage: str, help_text: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        processes: Processes = 1,
        quiet: Quiet = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        _run_stages(recipe, overrides, quiet, as_json, stage, processes)

    command.__doc__ = help_text
    return command


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="run this stage alone, such as one of your own")
    ] = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run all stages in order; what is already there is kept."""
    _run_stages(recipe, overrides, quiet, as_json, only, processes)


@app.command("prepare")
def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="read this source alone; jobs of others may run beside it")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="put together what jobs with --source have read")] = False,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check the sources and write the cell store."""
    if source is not None and (join or processes > 1):
        raise UserError("--source reads one source in one process; leave --join and --processes away")
    from vcc_fm.recipe.read import load_recipe

    if source is None:
        if join:
            from vcc_fm.run.prepare import check_sources

            check_sources(load_recipe(recipe, overrides))
        _run_stages(recipe, overrides, quiet, as_json, "prepare", processes)
        return
    from vcc_fm.run.prepare import prepare_source

    ran = prepare_source(load_recipe(recipe, overrides), source, _console(quiet, as_json))
    if as_json:
        _print_json({"source": source, "ran": ran})


for _stage in STAGES:
    if _stage.name == "prepare":  # it has options of its own
        continue
    _group = embed_app if _stage.name.startswith("embed ") else app
    _command = _launched_command if _stage.shared else _stage_command
    _group.command(_stage.name.removeprefix("embed "))(_command(_stage.name, _stage.help))


@app.command()
def plan(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="recipe, a YAML file")] = None,
    overrides: Overrides = None,
    explain_keys: Annotated[
        bool, typer.Option("--explain", help="list every key of a recipe and what it means")
    ] = False,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what would run, on what, and what would fail; write nothing. Exit code 2 if something would fail."""
    console = _console(quiet, as_json)
    from vcc_fm.recipe.read import load_recipe

    # A recipe's plugins bring keys of their own.
    loaded = None if recipe is None else load_recipe(recipe, overrides)
    if explain_keys:
        _explain(console, as_json)
        return
    if loaded is None:
        raise UserError("give a recipe, or --explain for its keys")
    from vcc_fm.run.plan import make_plan
    from vcc_fm.run.plan_text import print_plan

    made = make_plan(loaded, processes)
    if as_json:
        _print_json(made)
    else:
        print_plan(made, console)
    if quiet:
        for problem in made["problems"]:
            print(f"error: {problem}", file=sys.stderr)
    if made["problems"]:
        raise typer.Exit(2)


def _explain(console: Console, as_json: bool) -> None:
    from vcc_fm.recipe.read import explain

    rows = list(explain())
    if as_json:
        _print_json([{"key": key, "default": default, "meaning": text} for key, default, text in rows])
        return
    table = Table(Column("key", no_wrap=True), Column("default", max_width=16, overflow="fold"), "meaning")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


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

    progress = _console(quiet, as_json)
    found = inspect_file(
        file, perturbation, control, every_value, lambda what: ProgressLines(f"inspect {what}", "cells", progress)
    )
    if as_json:
        _print_json(dataclasses.asdict(found))
    else:
        print_inspection(found, _console(False, as_json))


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

    console = _console(quiet, as_json)
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
        _print_json(results)


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
        _print_json(result)
    else:
        _console(quiet, as_json).print(f"{file}: {len(store.keys):,} genes x {store.width}", markup=False)


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

    loaded, console = load_recipe(recipe, overrides), _console(quiet, as_json)
    configs = source_configs(loaded, Layout(loaded).simulated)
    result = write(loaded, configs, source, file, key, ProgressLines("export", "cells", console))
    if as_json:
        _print_json(result)
    else:
        console.print(
            f"{file}: obsm/{result['key']}, {result['cells']:,} cells x {result['width']}, "
            f"{result['without_vector']:,} of them without a vector (NaN)",
            markup=False,
        )


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
        _console(quiet, as_json).print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
