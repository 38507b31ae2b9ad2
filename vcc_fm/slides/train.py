"""Train the decoder of patches with the project's own loop, and predict with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from rich.console import Console

from vcc_fm.encoders.images.encoder import COLOURS
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import whole_folder
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.decoder import BackboneSettings
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.slides.data import NucleusStream, PatchData
from vcc_fm.slides.model import ExpressionError, PatchDecoder, PatchDecoderConfig, build, fit_ridge, ordered
from vcc_fm.slides.ridge import Ridge
from vcc_fm.slides.score import long_table
from vcc_fm.training.accelerator import forget_accelerator, make_accelerator
from vcc_fm.training.checkpoint import load_trained, save_decoder
from vcc_fm.training.loop import Trainer
from vcc_fm.training.phase import claim

AT_A_TIME = 256
"""Nuclei that are predicted together."""


def colour_columns(data: PatchData) -> np.ndarray:
    """Which numbers of both patches are colours, bool [2 F]."""
    return np.tile(np.arange(data.store.width) >= data.store.width - COLOURS, 2)


def start_of(data: PatchData) -> Ridge:
    """What a decoder starts from: regressions on both patches, or on their colours alone where that is better."""
    return fit_ridge(data, np.ones(2 * data.store.width, bool), colour_columns(data))


def train_slides(
    data: PatchData,
    settings: BackboneSettings,
    config: TrainConfig,
    seed: int,
    fingerprint: str,
    recipe: dict[str, Any],
    work: Path,
    final: Path,
    console: Console,
) -> None:
    """Train, resuming where an earlier run stopped, and save the decoder of the best step.

    Args:
        data: the nuclei.
        settings: the network.
        config: how it trains.
        seed: of weights and order.
        fingerprint: of everything that the decoder depends on; checkpoints of another are thrown away.
        recipe: saved beside the decoder.
        work: folder of checkpoints and log.
        final: folder of the decoder; it appears when it is whole.
        console: where progress goes.

    Raises:
        UserError: the settings do not fit the data or the processes.
    """
    if config.select != "loss":
        raise UserError(f"train.select={config.select}: a recipe on slides chooses by loss; its ranks are what scores")
    accelerator = make_accelerator(config, work)
    claim(work, fingerprint, accelerator)
    if config.tracker != "none":
        accelerator.init_trackers("train")
    start = start_of(data)
    encoder = {key: data.store.meta[key] for key in ("encoder", "parameters", "licence", "citation", "fingerprint")}

    def fresh() -> PatchDecoder | PeftModel:
        shape = PatchDecoderConfig(genes=data.genes, cell_width=data.store.width, cell_encoder=encoder)
        decoder, trains = build(settings, shape, start, seed)
        decoder.bf16_backbone = config.precision == "bf16"
        return trains

    rows, held = data.rows("train"), data.rows("validation")
    console.print(f"train: {len(rows):,} nuclei, {len(held):,} to validate, {len(data.genes)} genes", soft_wrap=True)
    streams, losses = (NucleusStream(rows, seed), NucleusStream(held, 0)), ExpressionError()
    trainer = Trainer("train", config, fresh(), losses, *streams, data, work, accelerator, console)
    weights = trainer.run()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        assert trainer.selection is not None
        console.print(f"train: validation {trainer.selection}", highlight=False, soft_wrap=True)
        trained = fresh()
        load_trained(trained, weights)
        record = {"fingerprint": fingerprint, "validation": asdict(trainer.selection)}
        with whole_folder(final) as partial:
            save_decoder(trained, partial, {"recipe.json": recipe, "training.json": record})
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    forget_accelerator()


@torch.inference_mode()
def predict(model: PatchDecoder, data: PatchData, rows: np.ndarray) -> np.ndarray:
    """Expression of nuclei, log1p(100 x / total), [n, G] float32, zero or above."""
    model.eval()
    parts = (rows[start : start + AT_A_TIME].tolist() for start in range(0, len(rows), AT_A_TIME))
    both = [model(data.assemble(part).to(model.device)).cpu().numpy() for part in parts]
    return ordered(np.concatenate([np.empty((0, 2 * len(data.genes)), np.float32), *both]))


def tables(folder: Path, data: PatchData) -> Iterator[tuple[str, pd.DataFrame, pd.Index]]:
    """Name, long table and cell_id of each sample's held-out nuclei, as the decoder in ``folder`` predicts them.

    A nucleus without a pixel, and so without a patch, gets the mean of those of its sample.
    """
    model = PatchDecoder.from_pretrained(folder).to(process_state().device)
    for sample, cells in data.held_out.items():
        here = data.nuclei[(data.nuclei["sample"] == sample) & (data.nuclei["role"] == "test")]
        seen = pd.DataFrame(predict(model, data, here.index.to_numpy()), index=here["cell_id"])
        values = seen.reindex(cells).fillna(seen.mean()).fillna(0.0).to_numpy()
        yield sample, long_table(sample, cells.to_numpy(), data.genes, values), cells
