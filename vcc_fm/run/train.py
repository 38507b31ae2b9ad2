"""The stage `train`: the phases of all folds, one decoder each."""

from __future__ import annotations

from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
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
    phase = Phase(
        name,
        recipe.phases[name],
        recipe.decoder,
        str(expand(base)),
        recipe.seed,
        recipe.name,
        recipe.public(),
        recipe.fingerprint(),
        output.fingerprint,
        untrained,
    )
    train_phase(phase, data, layout.phase(output.fold, name), output.path, console)
