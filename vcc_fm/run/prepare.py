"""The stage `prepare`: from the sources to the cell store."""

from __future__ import annotations

from rich.console import Console

from vcc_fm.ground.processes import process_state
from vcc_fm.ground.words import many
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.inputs import source_configs
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.store.cells import CellStore
from vcc_fm.store.prepare import write_cell_store


def prepare(recipe: Recipe, output: Output, console: Console) -> None:
    """Write the cell store, and say what was dropped and repaired on the way."""
    state, simulated = process_state(), recipe.data.simulate is not None
    with state.main_process_first():
        sources = source_configs(recipe, Layout(recipe).simulated, draw=state.is_main_process)
    write_cell_store(output.path, recipe.data, sources, recipe.seed, output.fingerprint, simulated, state, console)
    state.wait_for_everyone()
    store = CellStore(output.path)
    for source in store.meta["sources"]:
        for kind in ("dropped", "repairs"):
            for reason, count in source[kind].items():
                console.print(f"{source['name']}: {kind} {count:,}: {reason}", markup=False)
    console.print(
        f"{many(len(store), 'simulated cell' if simulated else 'cell')}, {many(len(store.genes), 'gene')}, "
        f"{many(len(store.perturbations) - 1, 'perturbation')}, "
        f"contexts {', '.join(store.contexts)}",
        markup=False,
    )
