"""Train a decoder.

    accelerate launch vcc_fm/train.py recipes/demo.yaml                    # one process, CPU or GPU
    accelerate launch --num_processes 8 vcc_fm/train.py recipes/h1.yaml    # eight GPUs
    torchrun --nproc_per_node 2 vcc_fm/train.py recipes/demo.yaml          # two CPU processes (gloo)

Overrides follow the recipe: ``train.lr=1e-4 train.steps=2000``. The stages before (prepare, embed, split) must have
been run: ``vcc-fm run RECIPE`` runs them all. A run that was stopped goes on from its newest checkpoint.
"""

from __future__ import annotations

import sys

from rich.console import Console

from vcc_fm.cellsets.load import load_dataset
from vcc_fm.layout import Layout, is_done
from vcc_fm.recipe import Recipe
from vcc_fm.script import script_main
from vcc_fm.training.phase import train_phase


def train(recipe: Recipe, console: Console) -> None:
    """Train all phases of all folds that are not done.

    Raises:
        UserError: an earlier stage is missing, or the recipe does not fit the data or the processes.
    """
    layout = Layout(recipe)
    phases = (["pretrain"] if recipe.pretrain else []) + ["train"]
    for fold in range(recipe.split.folds):
        todo = [p for p in phases if not is_done(layout.decoder(fold, p), layout.training_fingerprint(fold, p))]
        if not todo:
            continue
        data = load_dataset(recipe, fold)
        for phase in todo:
            name = phase if recipe.split.folds == 1 else f"{phase} (fold {fold}, the last is {recipe.split.folds - 1})"
            console.rule(name, style="dim")
            train_phase(recipe, data, fold, phase, console)


if __name__ == "__main__":
    sys.exit(script_main(__doc__, train))
