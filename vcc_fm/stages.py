"""The stages in order: what each makes, whether it is done, and how to run it.

Each stage's output is whole or absent and carries the fingerprint of what it was made from, so that an interrupted
``run`` goes on where it stopped and a changed recipe redoes what depends on the change, and nothing else.

What a stage is made of is imported when it runs: preparing cells need not wait for torch, nor a stage that is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vcc_fm.errors import UserError
from vcc_fm.layout import Layout, forget, is_done, mark_done
from vcc_fm.recipe import Recipe, SourceConfig, expand
from vcc_fm.script import script_main
from vcc_fm.store.folder import write_json
from vcc_fm.words import many

if TYPE_CHECKING:
    from vcc_fm.store.cells import CellStore


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: as on the command line.
        outputs: (path, fingerprint) pairs that it makes.
        run: makes them.
        beside: paths that it makes along with them.
    """

    name: str
    outputs: list[tuple[Path, str]]
    run: Callable[[], None]
    beside: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        """Whether every output is there, made from the recipe as it is now."""
        made = all(is_done(path, fingerprint) for path, fingerprint in self.outputs)
        return made and all(path.exists() for path in self.beside)


def stages_of(recipe: Recipe, console: Console, processes: int = 1) -> list[Stage]:
    """All stages of a recipe, in order; ``processes`` take part in reading cells, training and prediction."""
    layout = Layout(recipe)
    folds = range(recipe.split.folds)
    phases = (["pretrain"] if recipe.pretrain else []) + ["train"]
    trained = [(layout.decoder(fold, p), layout.training_fingerprint(fold, p)) for fold in folds for p in phases]
    calibrated = [(layout.calibration(fold), layout.calibration_fingerprint(fold)) for fold in folds]
    predicted = (layout.truth, *(layout.prediction(name) for name in recipe.score.baselines))
    stages = [
        Stage("prepare", [(layout.cells, layout.cells_fingerprint)], lambda: _prepare(recipe, console, processes)),
        Stage(
            "embed proteins",
            [(layout.proteins, layout.proteins_fingerprint)],
            lambda: _embed_proteins(recipe, console),
        ),
        Stage(
            "embed cells",
            [(layout.cell_embeddings, layout.cell_embeddings_fingerprint)],
            lambda: _embed_cells(recipe, console),
        ),
        Stage("split", [(layout.split(f), layout.split_fingerprint) for f in folds], lambda: _split(recipe, console)),
        Stage("train", trained, lambda: _train(recipe, console, processes)),
        Stage("calibrate", calibrated, lambda: _calibrate(recipe, console)),
        Stage(
            "predict",
            [(layout.prediction("model"), layout.predictions_fingerprint)],
            lambda: _predict(recipe, console, processes),
            predicted,
        ),
        Stage(
            "score",
            [(layout.scores, layout.scores_fingerprint)],
            lambda: _score(recipe, console),
            (layout.scores.with_suffix(".csv"), layout.scores.with_name("report.html")),
        ),
    ]
    return [s for s in stages if s.name != "calibrate" or recipe.predict.effect_scale == "validation"]


def run_stage(stage: Stage, console: Console) -> bool:
    """Run a stage unless it is done; whether it ran. The caller is the only writer (``sole_writer``)."""
    if stage.done:
        console.print(f"[dim]{stage.name}: done before[/dim]")
        return False
    console.rule(f"[bold]{stage.name}[/bold]", align="left")
    started = time.perf_counter()
    for path, fingerprint in stage.outputs:
        if not is_done(path, fingerprint):
            forget(path)
    stage.run()
    console.print(f"[dim]{stage.name}: {time.perf_counter() - started:.1f} s[/dim]")
    return True


def stage_script(name: str, description: str | None) -> int:
    """Run one stage as a script that `accelerate launch` starts; its exit code."""

    def action(recipe: Recipe, console: Console) -> None:
        from vcc_fm.processes import process_state

        stage = next(stage for stage in stages_of(recipe, console) if stage.name == name)
        # All processes compute; whether there is something to do is decided before any of them begins.
        todo = not stage.done
        process_state().wait_for_everyone()
        if not todo:
            console.print(f"[dim]{name}: done before[/dim]")
            return
        if process_state().is_main_process:
            for path, _ in stage.outputs:
                forget(path)
        process_state().wait_for_everyone()
        stage.run()

    return script_main(description, action)


def _prepare(recipe: Recipe, console: Console, processes: int) -> None:
    if processes > 1:
        _launch("prepare.py", recipe, console, processes)
        return
    from vcc_fm.processes import process_state
    from vcc_fm.store.cells import CellStore
    from vcc_fm.store.prepare import write_cell_store

    layout, started, state = Layout(recipe), time.perf_counter(), process_state()
    with state.main_process_first():
        sources = source_configs(recipe, layout.simulated, draw=state.is_main_process)
    fingerprint, simulated = layout.cells_fingerprint, recipe.data.simulate is not None
    write_cell_store(layout.cells, recipe.data, sources, recipe.seed, fingerprint, simulated, state, console)
    if state.is_main_process:
        mark_done(layout.cells, fingerprint, time.perf_counter() - started)
    state.wait_for_everyone()
    store = CellStore(layout.cells)
    for source in store.meta["sources"]:
        for kind in ("dropped", "repairs"):
            for reason, count in source[kind].items():
                console.print(f"{source['name']}: {kind} {count:,}: {reason}", markup=False)
    kind = "simulated " if recipe.data.simulate else ""
    console.print(
        f"{many(len(store), f'{kind}cell')}, {many(len(store.genes), 'gene')}, "
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


def _embed_proteins(recipe: Recipe, console: Console) -> None:
    from vcc_fm.encoders.esm2_untrained import write_untrained
    from vcc_fm.encoders.protein_store import embed_proteins, import_table
    from vcc_fm.processes import process_state

    layout, started, state = Layout(recipe), time.perf_counter(), process_state()
    config = recipe.embed.proteins
    if config.table is not None:
        if state.is_main_process:
            import_table(layout.proteins, expand(config.table), layout.proteins_fingerprint)
            mark_done(layout.proteins, layout.proteins_fingerprint, time.perf_counter() - started)
        state.wait_for_everyone()
        return
    if config.fasta is None and recipe.data.simulate is not None:
        _cell_store(layout)  # its stage draws the sequences
    with state.main_process_first():
        fasta = protein_fasta(recipe, layout.simulated)
        if config.untrained is not None and state.is_main_process:
            write_untrained(layout.untrained_esm2, config.untrained)
    if config.untrained is not None:
        config = config.model_copy(update={"model": str(layout.untrained_esm2)})
    embed_proteins(layout.proteins, fasta, config, layout.proteins_fingerprint, state, console)
    if state.is_main_process:
        mark_done(layout.proteins, layout.proteins_fingerprint, time.perf_counter() - started)
    state.wait_for_everyone()


def _embed_cells(recipe: Recipe, console: Console) -> None:
    from vcc_fm.encoders.cell_store import embed_cells
    from vcc_fm.processes import process_state

    layout, started, state = Layout(recipe), time.perf_counter(), process_state()
    cells, fingerprint = _cell_store(layout), layout.cell_embeddings_fingerprint
    embed_cells(layout.cell_embeddings, cells, recipe.embed.cells, fingerprint, state, console)
    if state.is_main_process:
        mark_done(layout.cell_embeddings, fingerprint, time.perf_counter() - started)
    state.wait_for_everyone()


def _cell_store(layout: Layout) -> CellStore:
    from vcc_fm.store.cells import CellStore

    if not is_done(layout.cells, layout.cells_fingerprint):
        raise UserError(
            f"{layout.cells} is missing or was made from another recipe; run `vcc-fm prepare RECIPE` first"
        )
    return CellStore(layout.cells)


def _split(recipe: Recipe, console: Console) -> None:
    from vcc_fm.cellsets.load import faulty_proteins
    from vcc_fm.cellsets.split import make_splits
    from vcc_fm.cellsets.targets import (
        protein_coverage,
        separator_of,
        sources_of_contexts,
        with_vectors,
        without_any,
    )
    from vcc_fm.store.embeddings import EmbeddingStore

    layout = Layout(recipe)
    cells = _cell_store(layout)
    if not is_done(layout.proteins, layout.proteins_fingerprint):
        raise UserError(f"{layout.proteins} is missing or of another recipe; run `vcc-fm embed proteins RECIPE` first")
    proteins = EmbeddingStore(layout.proteins)
    covered = protein_coverage(recipe, cells.labels, cells.genes, proteins.keys, faulty_proteins(proteins))
    layout.coverage.parent.mkdir(parents=True, exist_ok=True)
    write_json(layout.coverage, covered.to_json())
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
        mark_done(path, layout.split_fingerprint, 0.0)
        for role, counts in split.counts().items():
            if counts["groups"]:
                shown = ", ".join(many(number, what.removesuffix("s")) for what, number in counts.items())
                console.print(f"fold {split.fold}: {role}: {shown}")
    for warning in sorted({warning for split in splits for warning in split.warnings}):
        console.print("[yellow]note[/yellow]", end=" ")
        console.print(warning, markup=False)


def _train(recipe: Recipe, console: Console, processes: int) -> None:
    if processes > 1:
        _launch("train.py", recipe, console, processes)
        return
    from vcc_fm.train import train

    train(recipe, console)


def _calibrate(recipe: Recipe, console: Console) -> None:
    from vcc_fm.calibrate import calibrate

    calibrate(recipe, console)


def _predict(recipe: Recipe, console: Console, processes: int) -> None:
    if processes > 1:
        _launch("predict.py", recipe, console, processes)
        return
    from vcc_fm.predict import predict

    predict(recipe, console)


def _launch(script: str, recipe: Recipe, console: Console, processes: int) -> None:
    from vcc_fm.launch import launch

    launch(Path(__file__).with_name(script), recipe, processes, console)


def _score(recipe: Recipe, console: Console) -> None:
    from vcc_fm.scoring.run import score_run

    score_run(recipe, console)
