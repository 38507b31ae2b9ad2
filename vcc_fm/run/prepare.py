"""The stage `prepare`: from the sources to the cell store."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import whole_folder
from vcc_fm.ground.processes import process_state
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.ground.words import many
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.inputs import source_configs
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.store.cells import SCHEMA
from vcc_fm.store.description import CellsDescription, read_store_json
from vcc_fm.store.prepare import read_source, unread_sources, write_cell_store
from vcc_fm.store.shared import local_store
from vcc_fm.store.verify import verify


def prepare(recipe: Recipe, output: Output, console: Console) -> None:
    """Write the cell store, and say what was dropped and repaired on the way."""
    state, simulated = process_state(), recipe.data.simulate is not None
    if recipe.data.store is not None:
        if state.is_main_process:
            _take_store(recipe.data.store, output.path, console)
        state.wait_for_everyone()
        _say(output.path, console)
        return
    with state.main_process_first():
        sources = source_configs(recipe, Layout(recipe).simulated, draw=state.is_main_process)
    write_cell_store(output.path, recipe.data, sources, recipe.seed, output.fingerprint, simulated, state, console)
    state.wait_for_everyone()
    _say(output.path, console)


def _take_store(where: str, final: Path, console: Console) -> None:
    """Make ``final`` a folder of links to the files of a store elsewhere, every byte of which is read first.

    A folder of its own: what is written there later replaces the links, never what they lead to.
    """
    store = local_store(where)
    if verify(store, ProgressLines("prepare: verify", "rows", console))["kind"] != "cells":
        raise UserError(f"data.store={where}: holds vectors, not cells")
    if store.resolve() == final.resolve():
        return  # the recipe's own
    with whole_folder(final) as partial:
        for file in store.iterdir():
            if file.is_file():
                (partial / file.name).symlink_to(file.resolve())


def _say(folder: Path, console: Console) -> None:
    """What a store holds, and what was dropped and repaired on the way."""
    store = read_store_json(folder, SCHEMA, CellsDescription, "prepare it again")
    simulated = store["simulated"]
    for source in store["sources"]:
        for kind in ("dropped", "repairs"):
            for reason, count in source[kind].items():
                console.print(f"{source['name']}: {kind} {count:,}: {reason}", markup=False)
        for doubt in source["values"].get("doubts", []):
            console.print("[yellow]warning[/yellow]", end=" ")
            console.print(f"{source['name']}: {doubt}", markup=False, soft_wrap=True)
    cells, genes, perturbations, contexts = (store[key] for key in ("cells", "genes", "perturbations", "contexts"))
    console.print(
        f"{many(cells, 'simulated cell' if simulated else 'cell')}, {many(len(genes), 'gene')}, "
        f"{many(len(perturbations) - 1, 'perturbation')}, "
        f"contexts {', '.join(contexts)}",
        markup=False,
    )


def prepare_source(recipe: Recipe, name: str, console: Console) -> bool:
    """Read one source, and leave what was read for :func:`prepare`; jobs of other sources may run beside this one.

    Returns:
        Whether there was anything to do: not where the cell store is whole.

    Raises:
        UserError: the cells are simulated, there is no such source, or it is refused.
    """
    _check_read(recipe)
    output = Layout(recipe).cells
    if output.fault() is None:
        console.print(f"{name}: the cell store is whole", markup=False)
        return False
    output.path.parent.mkdir(parents=True, exist_ok=True)
    sources = source_configs(recipe, Layout(recipe).simulated)
    read_source(output.path, recipe.data, sources, recipe.seed, output.fingerprint, name, process_state(), console)
    return True


def check_sources(recipe: Recipe) -> None:
    """See that :func:`prepare_source` has read every source, or that the cell store is whole.

    Raises:
        UserError: it has not; the sources are named.
    """
    _check_read(recipe)
    output = Layout(recipe).cells
    if output.fault() is not None:
        sources = source_configs(recipe, Layout(recipe).simulated)
        missing = unread_sources(output.path, sources, output.fingerprint)
        if missing:
            raise UserError(
                f"--join: {many(len(missing), 'source')} of {len(recipe.data.sources)} not read as the recipe and the "
                f"files are now: {', '.join(missing)}; run vcc-fm prepare RECIPE --source NAME for each"
            )


def _check_read(recipe: Recipe) -> None:
    if not recipe.data.sources:
        raise UserError("--source and --join are for files of a recipe's sources; it has none")
