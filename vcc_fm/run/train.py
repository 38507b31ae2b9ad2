"""The stage `train`: the phases of all folds, one decoder each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.hub import expanded
from vcc_fm.recipe.recipe import Recipe, SlideRecipe
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import describe_counts, load_dataset
from vcc_fm.run.outputs import Output
from vcc_fm.training.phase import Phase, train_phase


def train(recipe: Recipe, output: Output, console: Console) -> None:
    """Train one phase of one fold; goes on from its newest checkpoint."""
    several = f" (fold {output.fold}, the last is {recipe.split.folds - 1})" if recipe.split.folds > 1 else ""
    console.rule(f"{output.phase}{several}", style="dim")
    train_on(load_dataset(recipe, output.fold), recipe, output, console)


def train_on(data: Dataset, recipe: Recipe, output: Output, console: Console) -> None:
    """:func:`train` on the stores and the split ``data``."""
    layout, name = Layout(recipe), output.phase
    base, untrained = "scratch" if name == "pretrain" else recipe.decoder.base, None
    if base == "pretrain":
        untrained = layout.decoder(output.fold, "pretrain").require(content=True)
        base = str(untrained)
    phase = phase_of(recipe, name, recipe.phases[name], base, output, untrained)
    train_phase(phase, data, layout.phase(output.fold, name), output.path, console, _judge(recipe, data, phase))


def phase_of(
    recipe: Recipe | SlideRecipe,
    name: str,
    config: TrainConfig,
    base: str,
    output: Output,
    untrained: Path | None = None,
) -> Phase[Any]:
    """A phase of a recipe, that writes ``output``; the other arguments as :class:`Phase` has them."""
    return Phase(
        name,
        config,
        recipe.decoder,
        expanded(base),
        recipe.drawing_seed,
        recipe.name,
        recipe.public(),
        recipe.fingerprint(),
        output.fingerprint,
        untrained,
    )


def _judge(recipe: Recipe, data: Dataset, phase: Phase) -> Callable[[Path], float] | None:
    """Tells how well a decoder in a folder scores on the validation groups; None where the loss decides."""
    by, preset = phase.config.select, recipe.score.preset
    if by == "loss":
        return None
    # Imported here: no other training waits for a scorer.
    from vcc_fm.prediction.calibrate import entry_of, validation_table
    from vcc_fm.prediction.predict import MODEL

    def judge(folder: Path) -> float:
        uns, quiet = describe_counts(recipe, data), Console(quiet=True)
        seed = recipe.drawing_seed
        table = validation_table(data, lambda: folder, [MODEL], [1.0], preset, recipe.predict, seed, uns, quiet)
        score = table.judged(entry_of(MODEL, 1.0), by)
        if not math.isfinite(score):
            reasons = "; ".join(table.missing()) or "no value"
            raise UserError(f"{phase.name}.select={by}: the validation groups do not tell: {reasons}; set loss")
        return score

    return judge
