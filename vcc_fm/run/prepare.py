"""The stage `prepare`: from the sources to the cell store."""

from __future__ import annotations

from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.processes import process_state
from vcc_fm.ground.words import many
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.inputs import source_configs
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.store.cells import SCHEMA
from vcc_fm.store.description import CellsDescription, read_store_json
from vcc_fm.store.prepare import read_source, unread_sources, write_cell_store


def prepare(recipe: Recipe, output: Output, console: Console) -> None:
    """Write the cell store, and say what was dropped and repaired on the way."""
    state, simulated = process_state(), recipe.data.simulate is not None
    with state.main_process_first():
        sources = source_configs(recipe, Layout(recipe).simulated, draw=state.is_main_process)
    write_cell_store(output.path, recipe.data, sources, recipe.seed, output.fingerprint, simulated, state, console)
    state.wait_for_everyone()
    store = read_store_json(output.path, SCHEMA, CellsDescription, "prepare it again")
    for source in store["sources"]:
        for kind in ("dropped", "repairs"):
            for reason, count in source[kind].items():
                console.print(f"{source['name']}: {kind} {count:,}: {reason}", markup=False)
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
    read_source(
        output.path, recipe.data, recipe.data.sources, recipe.seed, output.fingerprint, name, process_state(), console
    )
    return True


def check_sources(recipe: Recipe) -> None:
    """See that :func:`prepare_source` has read every source, or that the cell store is whole.

    Raises:
        UserError: it has not; the sources are named.
    """
    _check_read(recipe)
    output = Layout(recipe).cells
    if output.fault() is not None:
        missing = unread_sources(output.path, recipe.data.sources, output.fingerprint)
        if missing:
            raise UserError(
                f"--join: {many(len(missing), 'source')} of {len(recipe.data.sources)} not read as the recipe and the "
                f"files are now: {', '.join(missing)}; run vcc-fm prepare RECIPE --source NAME for each"
            )


def _check_read(recipe: Recipe) -> None:
    if recipe.data.simulate is not None:
        raise UserError("--source and --join are for files; simulated cells are drawn and prepared without them")
