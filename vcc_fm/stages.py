"""The stages in order: what each makes, whether it is done, and how to run it.

Each stage's output is whole or absent and carries the fingerprint of what it was made from, so that an interrupted
``run`` goes on where it stopped and a changed recipe redoes what depends on the change, and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from vcc_fm.calibrate import calibrate
from vcc_fm.cellsets.load import separator_of
from vcc_fm.cellsets.split import make_splits
from vcc_fm.encoders.embed import embed_cells, embed_proteins
from vcc_fm.errors import UserError
from vcc_fm.layout import Layout, is_done, mark_done
from vcc_fm.predict import predict
from vcc_fm.processes import process_state
from vcc_fm.recipe import Recipe, SourceConfig, expand
from vcc_fm.scoring.run import score_run
from vcc_fm.script import script_main
from vcc_fm.sources.simulate import simulate
from vcc_fm.store.cells import CellStore
from vcc_fm.store.folder import one_writer, whole_folder
from vcc_fm.store.prepare import write_cell_store
from vcc_fm.train import train


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: as on the command line.
        outputs: (path, fingerprint) pairs that it makes.
        run: makes them.
    """

    name: str
    outputs: list[tuple[Path, str]]
    run: Callable[[], None]

    @property
    def done(self) -> bool:
        """Whether every output is there, made from the recipe as it is now."""
        return all(is_done(path, fingerprint) for path, fingerprint in self.outputs)


def stages_of(recipe: Recipe, console: Console, processes: int = 1) -> list[Stage]:
    """All stages of a recipe, in order; ``processes`` take part in training and prediction."""
    layout = Layout(recipe)
    folds = range(recipe.split.folds)
    phases = (["pretrain"] if recipe.pretrain else []) + ["train"]
    trained = [(layout.decoder(fold, p), layout.training_fingerprint(fold, p)) for fold in folds for p in phases]
    return [
        Stage("prepare", [(layout.cells, layout.cells_fingerprint)], lambda: _prepare(recipe, console)),
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
        Stage("train", trained, _launched("train", recipe, console, processes, train)),
        *([_calibration(recipe, console)] if recipe.predict.effect_scale == "validation" else []),
        Stage(
            "predict",
            [(layout.prediction("model"), layout.predictions_fingerprint)],
            _launched("predict", recipe, console, processes, predict),
        ),
        Stage("score", [(layout.scores, layout.scores_fingerprint)], lambda: _score(recipe, console)),
    ]


def run_stage(stage: Stage, console: Console) -> bool:
    """Run a stage unless it is done; whether it ran."""
    if stage.done:
        console.print(f"[dim]{stage.name}: done before[/dim]")
        return False
    console.rule(f"[bold]{stage.name}[/bold]", align="left")
    started = time.perf_counter()
    stage.run()
    console.print(f"[dim]{stage.name}: {time.perf_counter() - started:.1f} s[/dim]")
    return True


def stage_script(name: str, description: str | None) -> int:
    """Run one stage as a script that `accelerate launch` starts; its exit code."""

    def action(recipe: Recipe, console: Console) -> None:
        stage = next(stage for stage in stages_of(recipe, console) if stage.name == name)
        with process_state().main_process_first():
            run_stage(stage, console)

    return script_main(description, action)


class ProgressLines:
    """Progress with rate and ETA, as plain lines a few seconds apart."""

    def __init__(self, what: str, unit: str, console: Console):
        self._what, self._unit, self._console = what, unit, console
        self._begin = self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Report ``done`` of ``total``; prints at the end and when five seconds have passed."""
        now = time.perf_counter()
        if done < total and now - self._last < 5.0:
            return
        self._last = now
        rate = done / max(now - self._begin, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        self._console.print(
            f"{self._what}: {done:,}/{total:,} {self._unit}  {rate:,.0f} {self._unit}/s  ETA {left:.0f} s",
            highlight=False,
        )


def _prepare(recipe: Recipe, console: Console) -> None:
    layout = Layout(recipe)
    started = time.perf_counter()
    with one_writer(layout.cells):
        if is_done(layout.cells, layout.cells_fingerprint):
            return
        sources = source_configs(recipe, layout.simulated)
        with whole_folder(layout.cells) as partial:
            progress = ProgressLines("prepare", "cells", console)
            write_cell_store(
                partial,
                recipe.data,
                sources,
                recipe.seed,
                layout.cells_fingerprint,
                recipe.data.simulate is not None,
                progress,
            )
        mark_done(layout.cells, layout.cells_fingerprint, time.perf_counter() - started)
    store = CellStore(layout.cells)
    for source in store.meta["sources"]:
        for kind in ("dropped", "repairs"):
            for reason, count in source[kind].items():
                console.print(f"{source['name']}: {kind} {count:,}: {reason}")
    kind = "simulated " if recipe.data.simulate else ""
    console.print(
        f"{len(store):,} {kind}cells, {len(store.genes):,} genes, {len(store.perturbations) - 1} perturbations, "
        f"contexts {', '.join(store.contexts)}"
    )


def source_configs(recipe: Recipe, simulated: Path) -> list[SourceConfig]:
    """The recipe's sources; a simulated screen is drawn into the folder ``simulated`` first."""
    if recipe.data.simulate is None:
        return recipe.data.sources
    simulated.mkdir(parents=True, exist_ok=True)
    return simulate(recipe.data.simulate, recipe.seed, simulated)


def protein_fasta(recipe: Recipe, simulated: Path) -> Path:
    """The FASTA file of the recipe.

    Raises:
        UserError: the recipe names none, and nothing is simulated.
    """
    config = recipe.embed.proteins
    if config.fasta is not None:
        return expand(config.fasta)
    if recipe.data.simulate is None:
        raise UserError("embed.proteins.fasta is missing: target genes become tokens through their protein sequences")
    return simulated / "proteins.fasta"


def _embed_proteins(recipe: Recipe, console: Console) -> None:
    layout, started = Layout(recipe), time.perf_counter()
    with one_writer(layout.proteins):
        fasta = protein_fasta(recipe, layout.simulated)
        if not fasta.exists() and recipe.embed.proteins.get:
            raise UserError(f"{fasta}: no such file; get it from {recipe.embed.proteins.get}")
        with whole_folder(layout.proteins) as partial:
            progress = ProgressLines("embed proteins", "genes", console)
            embed_proteins(partial, fasta, recipe.embed.proteins, layout.proteins_fingerprint, progress)
        mark_done(layout.proteins, layout.proteins_fingerprint, time.perf_counter() - started)


def _embed_cells(recipe: Recipe, console: Console) -> None:
    layout, started = Layout(recipe), time.perf_counter()
    cells = _cell_store(layout)
    with one_writer(layout.cell_embeddings):
        with whole_folder(layout.cell_embeddings) as partial:
            progress = ProgressLines("embed cells", "cells", console)
            embed_cells(partial, cells, recipe.embed.cells, layout.cell_embeddings_fingerprint, progress)
        mark_done(layout.cell_embeddings, layout.cell_embeddings_fingerprint, time.perf_counter() - started)


def _cell_store(layout: Layout) -> CellStore:
    if not is_done(layout.cells, layout.cells_fingerprint):
        raise UserError(
            f"{layout.cells} is missing or was made from another recipe; run `vcc-fm prepare RECIPE` first"
        )
    return CellStore(layout.cells)


def _split(recipe: Recipe, console: Console) -> None:
    layout = Layout(recipe)
    cells = _cell_store(layout)
    splits = make_splits(recipe.split, cells.group_cells, cells.control, separator_of(recipe), recipe.seed)
    for split in splits:
        path = layout.split(split.fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        split.write(path)
        mark_done(path, layout.split_fingerprint, 0.0)
        for role, counts in split.counts().items():
            if counts["groups"]:
                shown = ", ".join(f"{number:,} {what}" for what, number in counts.items())
                console.print(f"fold {split.fold}: {role}: {shown}")
    for warning in sorted({warning for split in splits for warning in split.warnings}):
        console.print(f"[yellow]note[/yellow] {warning}")


def _calibration(recipe: Recipe, console: Console) -> Stage:
    layout = Layout(recipe)
    outputs = [(layout.calibration(fold), layout.calibration_fingerprint(fold)) for fold in range(recipe.split.folds)]
    return Stage("calibrate", outputs, lambda: calibrate(recipe, console))


def _score(recipe: Recipe, console: Console) -> None:
    score_run(recipe, console)


def _launched(
    script: str, recipe: Recipe, console: Console, processes: int, here: Callable[[Recipe, Console], None]
) -> Callable[[], None]:
    """Run ``here`` in this process, or ``vcc_fm/SCRIPT.py`` in several."""
    if processes == 1:
        return lambda: here(recipe, console)

    def launch() -> None:
        # torchrun, not `accelerate launch`: the latter starts one process where it finds no GPU, whatever it is asked.
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as resolved:
            resolved.write(recipe.model_dump_json())
        try:
            file = Path(__file__).with_name(f"{script}.py")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            environment = os.environ | ({} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"})
            quiet = ["--quiet"] if console.quiet else []
            code = subprocess.run([*command, str(file), resolved.name, *quiet], env=environment).returncode  # noqa: S603
        finally:
            Path(resolved.name).unlink()
        if code:
            raise UserError(f"{script} failed in one of {processes} processes; its message stands above")

    return launch
