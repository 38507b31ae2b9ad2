"""Train the decoder of patches with the project's own loop, and predict with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.decoder import BackboneSettings
from vcc_fm.slides.data import NucleusStream, PatchData
from vcc_fm.slides.model import ExpressionError, PatchDecoder, build, ordered
from vcc_fm.slides.ridge import start_of
from vcc_fm.slides.score import check_table, long_table
from vcc_fm.training.checkpoint import load_trained
from vcc_fm.training.loop import Trainer
from vcc_fm.training.phase import Phase, begun, save

AT_A_TIME = 256
"""Nuclei that are predicted together."""


def train_slides(phase: Phase[BackboneSettings], data: PatchData, work: Path, final: Path, console: Console) -> None:
    """Train, resuming where an earlier run stopped, and save the decoder of the best step, as :func:`train_phase`.

    Raises:
        UserError: the settings do not fit the data or the processes.
    """
    name, config = phase.name, phase.config
    if config.select != "loss":
        raise UserError(f"train.select={config.select}: a recipe on slides chooses by loss; its ranks are what scores")
    with begun(phase, work, console) as accelerator:
        start, rows, held = start_of(data), data.rows("train"), data.rows("validation")
        said = f"{len(rows):,} nuclei, {len(held):,} to validate, {len(data.genes)} genes"
        console.print(f"{name}: {said}", soft_wrap=True)
        streams, model = (NucleusStream(rows, phase.seed), NucleusStream(held, 0)), build(phase, data, start)
        trainer = Trainer(name, config, model, ExpressionError(), *streams, data, work, accelerator, console)
        weights = trainer.run()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            trained = build(phase, data, start)
            load_trained(trained, weights)
            save(phase, trained, trainer.selection, final, console)


@torch.inference_mode()
def predict(model: PatchDecoder, data: PatchData, rows: np.ndarray) -> np.ndarray:
    """Expression of nuclei, log1p(100 x / total), [n, G] float32, zero or above."""
    model.eval()
    parts = (rows[start : start + AT_A_TIME].tolist() for start in range(0, len(rows), AT_A_TIME))
    both = [model(data.assemble(part).to(model.device)).cpu().numpy() for part in parts]
    return ordered(np.concatenate([np.empty((0, 2 * len(data.genes)), np.float32), *both]))


def tables(folder: Path, data: PatchData) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and checked table of each sample's held-out nuclei, as the decoder in ``folder`` predicts them.

    A nucleus without a pixel, and so without a patch, gets the mean of those of its sample.
    """
    model = PatchDecoder.from_pretrained(folder).to(process_state().device)
    for sample, cells in data.held_out.items():
        here = data.nuclei[(data.nuclei["sample"] == sample) & (data.nuclei["role"] == "test")]
        seen = pd.DataFrame(predict(model, data, here.index.to_numpy()), index=here["cell_id"])
        values = seen.reindex(cells).fillna(seen.mean()).fillna(0.0).to_numpy()
        table = long_table(sample, cells.to_numpy(), data.genes, values)
        check_table(table, sample, cells, data.genes)
        yield sample, table
