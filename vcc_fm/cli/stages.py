"""Commands that run a recipe, or say what would run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vcc_fm.cli.options import (
    AsJson,
    Debug,
    FirstWorld,
    Overrides,
    Processes,
    Quiet,
    RecipePath,
    Seeds,
    Worlds,
    app,
    benchmark_app,
    console_of,
    embed_app,
    print_json,
)
from vcc_fm.ground.errors import UserError
from vcc_fm.run.table import STAGES

if TYPE_CHECKING:
    from vcc_fm.recipe.recipe import RunRecipe


def run_stages(
    recipe_path: Path, overrides: list[str] | None, quiet: bool, as_json: bool, only: str | None, processes: int
) -> None:
    """Run all stages, or the one named ``only``, and print what there is to print."""
    ran = make_stages(recipe_path, overrides, console_of(quiet, as_json), only, processes)
    if as_json:
        print_json(ran)


def make_stages(
    recipe_path: Path, overrides: list[str] | None, console: Console, only: str | None, processes: int
) -> dict[str, Any]:
    """Run all stages, or the one named ``only``; what ran and what it made, as JSON values."""
    from vcc_fm.recipe.read import load_any
    from vcc_fm.run.layout import Layout
    from vcc_fm.run.script import sole_writer
    from vcc_fm.run.stages import folders_of, layout_of, run_stage, stage_named, stages_of

    recipe = load_any(recipe_path, overrides)
    layout, ran = layout_of(recipe), []
    stages = [stage for stage in stages_of(recipe) if only in (None, stage.name)]
    if not stages:
        raise UserError(f"{recipe_path}: asks for no {only}; {stage_named(str(only), recipe).asked_by} does")
    # Libraries print on stdout too, which with --json is the result's own.
    with redirect_stdout(sys.stderr if console.stderr else sys.stdout), sole_writer(recipe.run_folder, console):
        for stage in stages:
            outputs = [str(output.path) for output in stage.outputs(layout)]
            with ExitStack() as stack:
                for folder in folders_of(stage, recipe):
                    if folder != recipe.run_folder:
                        stack.enter_context(sole_writer(folder, console))
                done = run_stage(stage, recipe, console, processes)
            ran.append({"stage": stage.name, "ran": done, "outputs": outputs})
    result: dict[str, Any] = {"recipe": recipe.name, "stages": ran}
    if only in (None, "score") and isinstance(layout, Layout) and layout.score_tables:
        from vcc_fm.scoring.table import read_table

        table = read_table(layout.scores.path)
        result["means"] = json.loads(table.means.to_json(orient="records"))
        if only is None and not any(entry["ran"] for entry in ran):
            table.print(console)
    return result


def _stage_command(stage: str, help_text: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        quiet: Quiet = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        run_stages(recipe, overrides, quiet, as_json, stage, 1)

    command.__doc__ = help_text
    return command


def _launched_command(stage: str | None, help_text: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        processes: Processes = 1,
        quiet: Quiet = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        run_stages(recipe, overrides, quiet, as_json, stage, processes)

    command.__doc__ = help_text
    return command


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="run this stage alone, such as one of your own")
    ] = None,
    seeds: Seeds = 1,
    worlds: Worlds = None,
    first_world: FirstWorld = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run all stages in order; what is already there is kept. Several seeds, or worlds, end in one table."""
    if only is not None and (seeds > 1 or worlds is not None):
        raise UserError("--only runs one stage of one seed; leave --seeds and --worlds away, or name one by repeat=K")
    if worlds is not None:
        if seeds > 1:
            raise UserError("--worlds trains once in each world, whose seeds differ; leave --seeds away")
        first = 200 if first_world is None else first_world
        _run_worlds(recipe, overrides, worlds, first, processes, quiet, as_json)
        return
    if first_world is not None:
        raise UserError("--first-world is the seed of the first of several worlds; say how many with --worlds")
    _run_seeds(recipe, overrides, seeds, only, processes, quiet, as_json)


def _run_seeds(
    recipe: Path, overrides: list[str] | None, seeds: int, only: str | None, processes: int, quiet: bool, as_json: bool
) -> None:
    """Run a recipe once for each seed, on the same stores; then put the seeds into one table."""
    if seeds == 1:
        run_stages(recipe, overrides, quiet, as_json, only, processes)
        return
    from vcc_fm.recipe.hub import NOT_SHARED
    from vcc_fm.recipe.read import load_any

    console, ran, loaded = console_of(quiet, as_json), [], load_any(recipe, overrides)
    given = [*(overrides or []), *([NOT_SHARED] if "hub" in type(loaded).model_fields else [])]
    for repeat in range(seeds):
        console.rule(f"[bold]seed {repeat + 1} of {seeds}[/bold]")
        ran.append(make_stages(recipe, [*given, f"repeat={repeat}"], console, only, processes))
    folder = loaded.run_folder
    if "means" in ran[0]:
        from vcc_fm.run.seeds import write_seeds

        write_seeds(folder, seeds, console)
    if as_json:
        print_json({"folder": str(folder), "seeds": ran})


def _run_worlds(
    recipe: Path, overrides: list[str] | None, worlds: int, first: int, processes: int, quiet: bool, as_json: bool
) -> None:
    """Run a recipe in several simulated worlds, each on stores of its own; then put their scores into one table."""
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.layout import Layout
    from vcc_fm.run.seeds import world_overrides, write_worlds
    from vcc_fm.scoring.table import read_table

    console, ran, given = console_of(quiet, as_json), [], overrides or []
    loaded, tables = load_recipe(recipe, given), {}
    for number, (name, changes) in enumerate(world_overrides(loaded, worlds, first).items(), 1):
        console.rule(f"[bold]world {number} of {worlds}: {changes[0]}[/bold]")
        ran.append(make_stages(recipe, [*given, *changes], console, None, processes))
        tables[name] = read_table(Layout(load_recipe(recipe, [*given, *changes])).scores.path)
    folder = loaded.run_folder.with_name(f"{loaded.name}-worlds")
    write_worlds(folder, tables, console)
    if as_json:
        print_json({"folder": str(folder), "worlds": ran})


@app.command()
def crossval(
    recipe: RecipePath,
    overrides: Overrides = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="parts, each held out once (5; with --contexts: one for each context)")
    ] = None,
    contexts: Annotated[bool, typer.Option("--contexts", help="hold out contexts in turn, not perturbations")] = False,
    seeds: Seeds = 1,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hold out every perturbation (or context) once, on the recipe's own stores, and score all folds together.

    Metrics that rank a perturbation among the others have no value where the folds hold out perturbations.
    """
    from vcc_fm.recipe.read import load_recipe
    from vcc_fm.run.seeds import crossval_overrides

    run_stages(recipe, overrides, quiet or as_json, False, "prepare", processes)
    split = crossval_overrides(load_recipe(recipe, overrides), folds, contexts)
    _run_seeds(recipe, [*(overrides or []), *split], seeds, None, processes, quiet, as_json)


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
        run_stages(recipe, overrides, quiet, as_json, "prepare", processes)
        return
    from vcc_fm.run.prepare import prepare_source

    ran = prepare_source(load_recipe(recipe, overrides), source, console_of(quiet, as_json))
    if as_json:
        print_json({"source": source, "ran": ran})


for _stage in STAGES:
    if _stage.name in ("prepare", "predict", "push"):  # they have options of their own
        continue
    _group = embed_app if _stage.name.startswith("embed ") else app
    _command = _launched_command if _stage.shared else _stage_command
    _group.command(_stage.name.removeprefix("embed "))(_command(_stage.name, _stage.help))
benchmark_app.command("cz")(_launched_command(None, "Run a recipe of recipes/cz: the same as `run`."))


@app.command()
def plan(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="recipe, a YAML file")] = None,
    overrides: Overrides = None,
    explain_keys: Annotated[
        bool, typer.Option("--explain", help="list every key, and what it means; with a recipe, those of its kind")
    ] = False,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what would run, on what, and what would fail; write nothing. Exit code 2 if something would fail."""
    console = console_of(quiet, as_json)
    from vcc_fm.recipe.read import load_any, load_recipe
    from vcc_fm.recipe.recipe import Recipe

    if explain_keys:
        # A recipe's plugins bring keys of their own.
        _explain(Recipe if recipe is None else type(load_any(recipe, overrides)), console, as_json)
        return
    if recipe is None:
        raise UserError("give a recipe, or --explain for its keys")
    loaded = load_recipe(recipe, overrides)
    from vcc_fm.run.plan import make_plan
    from vcc_fm.run.plan_text import print_plan

    made = make_plan(loaded, processes)
    if as_json:
        print_json(made)
    else:
        print_plan(made, console)
    if quiet:
        for problem in made["problems"]:
            print(f"error: {problem}", file=sys.stderr)
    if made["problems"]:
        raise typer.Exit(2)


def _explain(kind: type[RunRecipe], console: Console, as_json: bool) -> None:
    from vcc_fm.recipe.read import explain

    rows = list(explain(kind))
    if as_json:
        print_json([{"key": key, "default": default, "meaning": text} for key, default, text in rows])
        return
    table = Table(Column("key", no_wrap=True), Column("default", max_width=16, overflow="fold"), "meaning")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
