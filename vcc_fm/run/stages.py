"""The stages in order: what each makes, whether it is done, and how to run it.

Each stage's output is whole or absent and carries the fingerprint of what it was made from, so that an interrupted
``run`` goes on where it stopped and a changed recipe redoes what depends on the change, and nothing else.

What a stage is made of is imported when it runs: a stage that is done need not wait for torch. As a program this runs
one stage in each process that a launcher starts:

    accelerate launch --num_processes 8 -m vcc_fm.run.stages predict recipes/h1.yaml
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import write_json
from vcc_fm.ground.paths import expand
from vcc_fm.ground.words import many
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.run.script import script_main


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: as on the command line.
        outputs: what it makes of a recipe.
        make: makes one of them, in every process that takes part; returns when it is whole.
        shared: whether `--processes` share the work.
        on_cpu: whether it leaves a GPU alone; there may be more processes than GPUs then.
        wanted: whether a recipe has this stage.
    """

    name: str
    outputs: Callable[[Layout], list[Output]]
    make: Callable[[Recipe, Output, Console], None]
    shared: bool = False
    on_cpu: bool = False
    wanted: Callable[[Recipe], bool] = lambda recipe: True

    def faults(self, recipe: Recipe) -> list[tuple[Output, str]]:
        """The outputs that are not there, whole and made from the recipe as it is now, and why."""
        return [(output, fault) for output in self.outputs(Layout(recipe)) if (fault := output.fault())]


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order."""
    return [stage for stage in STAGES if stage.wanted(recipe)]


def run_stage(stage: Stage, recipe: Recipe, console: Console, processes: int = 1) -> bool:
    """Run a stage unless it is done; whether it ran. The caller is the only writer (``sole_writer``).

    Args:
        stage: of the recipe.
        recipe: what it works on.
        console: where progress goes.
        processes: how many take part, where they can share the stage.
    """
    faults = stage.faults(recipe)
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

        launch(stage.name, ["-m", "vcc_fm.run.stages", stage.name], recipe, processes, console)
    else:
        _make(stage, [output for output, _ in faults], recipe, console)
    console.print(f"[dim]{stage.name}: {time.perf_counter() - started:.1f} s[/dim]")
    return True


def _make(stage: Stage, todo: list[Output], recipe: Recipe, console: Console) -> None:
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
    stage = next(stage for stage in STAGES if stage.name == name)
    if stage.on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"

    def action(recipe: Recipe, console: Console) -> None:
        todo = [output for output, _ in stage.faults(recipe)]
        if not todo:
            console.print(f"[dim]{stage.name}: done before[/dim]")
        _make(stage, todo, recipe, console)

    return script_main(description, action)


def _prepare(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.ground.processes import process_state
    from vcc_fm.store.cells import CellStore
    from vcc_fm.store.prepare import write_cell_store

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


def source_configs(recipe: Recipe, simulated: Path, draw: bool = True) -> list[SourceConfig]:
    """The recipe's sources; a simulated screen is drawn into the folder ``simulated`` first, if ``draw``."""
    if recipe.data.simulate is None:
        return recipe.data.sources
    from vcc_fm.sources.simulate import simulate, simulated_sources

    if not draw:
        return simulated_sources(recipe.data.simulate, simulated)
    simulated.mkdir(parents=True, exist_ok=True)
    return simulate(recipe.data.simulate, recipe.seed, simulated)


def protein_fasta(recipe: Recipe, simulated: Path) -> Path:
    """The FASTA file of the recipe, here: fetched first where the recipe gives an address.

    Raises:
        UserError: the recipe names none and nothing is simulated, or it cannot be had.
    """
    config = recipe.embed.proteins
    if config.fasta is not None:
        from vcc_fm.sources.remote import open_local

        return open_local(config.fasta, config.get, sha256=config.sha256)
    if recipe.data.simulate is None:
        raise UserError("embed.proteins.fasta is missing: target genes become tokens through their protein sequences")
    return simulated / "proteins.fasta"


def _embed_proteins(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.encoders.proteins.embed import embed_proteins, import_table
    from vcc_fm.encoders.proteins.esm2_untrained import write_untrained
    from vcc_fm.ground.processes import process_state

    layout, state, config = Layout(recipe), process_state(), recipe.embed.proteins
    if config.table is not None:
        if state.is_main_process:
            import_table(output.path, expand(config.table), output.fingerprint)
        return
    if config.fasta is None and recipe.data.simulate is not None:
        layout.cells.require()  # its stage draws the sequences
    with state.main_process_first():
        fasta = protein_fasta(recipe, layout.simulated)
        if config.untrained is not None and state.is_main_process:
            write_untrained(layout.untrained_esm2, config.untrained)
    if config.untrained is not None:
        config = config.model_copy(update={"model": str(layout.untrained_esm2)})
    embed_proteins(output.path, fasta, config, output.fingerprint, state, console)


def _embed_cells(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.encoders.cells.embed import embed_cells
    from vcc_fm.ground.processes import process_state
    from vcc_fm.store.cells import CellStore

    cells = CellStore(Layout(recipe).cells.require())
    embed_cells(output.path, cells, recipe.embed.cells, output.fingerprint, process_state(), console)


def _split(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.cellsets.split import make_splits
    from vcc_fm.cellsets.targets import (
        protein_coverage,
        separator_of,
        sources_of_contexts,
        with_vectors,
        without_any,
    )
    from vcc_fm.run.load import faulty_proteins
    from vcc_fm.store.cells import CellStore
    from vcc_fm.store.embeddings import EmbeddingStore

    layout = Layout(recipe)
    cells, proteins = CellStore(layout.cells.require()), EmbeddingStore(layout.proteins.require())
    covered = protein_coverage(recipe, cells.labels, cells.genes, proteins.keys, faulty_proteins(proteins))
    write_json(output.path, covered.to_json())
    for line in covered.lines():
        console.print(f"proteins: {line}", markup=False, soft_wrap=True)
    if note := without_any(covered, recipe.embed.proteins.missing):
        console.print(f"proteins: {note}", markup=False, soft_wrap=True)
    group_cells = cells.group_cells
    if recipe.embed.proteins.missing == "drop":
        group_cells = with_vectors(group_cells, set(covered.found()), cells.control, separator_of(recipe))
        dropped = {label for _, label in cells.group_cells.keys() - group_cells.keys()}
        number = sum(cells.group_cells.values()) - sum(group_cells.values())
        console.print(
            f"dropped for want of a protein vector: {many(len(dropped), 'perturbation')}, {many(number, 'cell')}"
        )
    sources = sources_of_contexts(recipe, cells.context_sources)
    splits = make_splits(recipe.split, group_cells, cells.control, separator_of(recipe), recipe.seed, sources)
    for split in splits:
        path = layout.split(split.fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        split.write(path)
        for role, counts in split.counts().items():
            if counts["groups"]:
                shown = ", ".join(many(number, what.removesuffix("s")) for what, number in counts.items())
                console.print(f"fold {split.fold}: {role}: {shown}")
    for warning in sorted({warning for split in splits for warning in split.warnings}):
        console.print("[yellow]note[/yellow]", end=" ")
        console.print(warning, markup=False)


def _train(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.training.phase import train

    train(recipe, output, console)


def _calibrate(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.prediction.calibrate import calibrate

    calibrate(recipe, output, console)


def _predict(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.prediction.predict import predict

    predict(recipe, output, console)


def _score(recipe: Recipe, output: Output, console: Console) -> None:
    from vcc_fm.run.score import score_run

    score_run(recipe, output, console)


STAGES = [
    Stage("prepare", lambda layout: [layout.cells], _prepare, shared=True, on_cpu=True),
    Stage("embed proteins", lambda layout: [layout.proteins], _embed_proteins),
    Stage("embed cells", lambda layout: [layout.cell_embeddings], _embed_cells),
    Stage("split", lambda layout: [layout.splits], _split),
    Stage("train", lambda layout: layout.decoders, _train, shared=True),
    Stage(
        "calibrate",
        lambda layout: [layout.calibration(fold) for fold in range(layout.recipe.split.folds)],
        _calibrate,
        wanted=lambda recipe: recipe.predict.effect_scale == "validation",
    ),
    Stage("predict", lambda layout: [layout.predictions], _predict, shared=True),
    Stage("score", lambda layout: [layout.scores], _score),
]
"""In order."""


if __name__ == "__main__":
    sys.exit(stage_script(sys.argv.pop(1), __doc__))
