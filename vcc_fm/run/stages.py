"""Run the stages of a recipe, each unless it is done.

Each stage's output is whole or absent and carries the fingerprint of what it was made from, so that an interrupted
``run`` goes on where it stopped and a changed recipe redoes what depends on the change, and nothing else.

What a stage is made of is imported when it runs: a stage that is done need not wait for torch. The program
``vcc_fm.run`` runs one stage in each process that a launcher starts:

    accelerate launch --num_processes 8 -m vcc_fm.run predict recipes/h1.yaml
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.recipe import CzRecipe, Recipe, RunRecipe, SlideRecipe
from vcc_fm.run.cz import CZ_STAGES, CzLayout
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.run.script import script_main
from vcc_fm.run.slides import SLIDE_STAGES, SlideLayout
from vcc_fm.run.table import STAGES, Stage

_KINDS: dict[type[RunRecipe], tuple[type[Any], list[Stage]]] = {
    Recipe: (Layout, STAGES),
    SlideRecipe: (SlideLayout, SLIDE_STAGES),
    CzRecipe: (CzLayout, CZ_STAGES),
}
"""Kind of a recipe -> what lays out its outputs, and its stages."""


def layout_of(recipe: RunRecipe) -> Any:
    """The outputs of a recipe of any kind."""
    return _KINDS[type(recipe)][0](recipe)


def table_of(recipe: RunRecipe) -> list[Stage]:
    """All stages that a recipe of its kind may ask for."""
    return _KINDS[type(recipe)][1]


def stages_of(recipe: RunRecipe) -> list[Stage]:
    """The stages of a recipe, in order."""
    layout = layout_of(recipe)  # one for all: fingerprints read the ends of all input files
    return [stage for stage in table_of(recipe) if stage.outputs(layout)]


def folders_of(stage: Stage, recipe: RunRecipe) -> list[Path]:
    """The folders that a stage writes into: the run's, or that of the stores, which other runs may share."""
    paths = [output.path for output in stage.outputs(layout_of(recipe))]
    folders = (recipe.run_folder, recipe.embeddings_folder)
    return [folder for folder in folders if any(path.is_relative_to(folder) for path in paths)]


def run_stage(stage: Stage, recipe: RunRecipe, console: Console, processes: int = 1) -> bool:
    """Run a stage unless it is done; whether it ran. The caller is the only writer (``sole_writer``).

    Args:
        stage: of the recipe.
        recipe: what it works on.
        console: where progress goes.
        processes: how many take part, where they can share the stage.
    """
    faults = stage.faults(layout_of(recipe))
    if not faults:
        console.print(f"[dim]{stage.name}: done before[/dim]")
        return False
    console.rule(f"[bold]{stage.name}[/bold]", align="left")
    for output, fault in faults:
        if output.path.exists():
            console.print(f"{fault}; it is made again", style="dim", markup=False, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    if processes > 1 and stage.shared:
        from vcc_fm.run.launch import launch

        launch(stage.name, ["-m", "vcc_fm.run", stage.name], recipe, processes, console)
    else:
        _make(stage, [output for output, _ in faults], recipe, console)
    console.print(f"[dim]{stage.name}: {time.perf_counter() - started:.1f} s[/dim]")
    return True


def _make(stage: Stage, todo: list[Output], recipe: RunRecipe, console: Console) -> None:
    """Make those outputs of a stage that are ``todo``; every process that takes part calls it."""
    from vcc_fm.ground.processes import process_state

    state = process_state()
    for output in todo:
        # All see the same to do, before the first of them changes it.
        state.wait_for_everyone()
        if state.is_main_process:
            output.forget()
            output.path.parent.mkdir(parents=True, exist_ok=True)
        state.wait_for_everyone()
        started = time.perf_counter()
        stage.make(recipe, output, console)
        state.wait_for_everyone()
        if state.is_main_process:
            output.mark(time.perf_counter() - started)
    state.wait_for_everyone()


def stage_script(name: str, description: str | None) -> int:
    """Run one stage as a script that `accelerate launch` starts; its exit code."""

    def begin(recipe: RunRecipe) -> list[Path]:
        # By now the recipe's plugins have added their stages.
        stage = stage_named(name, recipe)
        if stage.on_cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
        return folders_of(stage, recipe)

    def action(recipe: RunRecipe, console: Console) -> None:
        stage = stage_named(name, recipe)
        todo = [output for output, _ in stage.faults(layout_of(recipe))]
        if not todo:
            console.print(f"[dim]{stage.name}: done before[/dim]")
        _make(stage, todo, recipe, console)

    return script_main(description, begin, action)


def stage_named(name: str, recipe: RunRecipe) -> Stage:
    """The stage of that name, of recipes of that kind.

    Raises:
        UserError: there is none.
    """
    table = table_of(recipe)
    found = next((stage for stage in table if stage.name == name), None)
    if found is None:
        raise UserError(f"{name} is no stage; there are {', '.join(stage.name for stage in table)}")
    return found
