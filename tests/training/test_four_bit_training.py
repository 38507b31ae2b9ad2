"""Training on a base in 4 bits: resumed, judged, saved and put on its base again as the model that was trained."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from program import train_decoder
from rich.console import Console
from safetensors.torch import load_file

from vcc_fm.cellsets.batch import Batch
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder import four_bit
from vcc_fm.decoder.adapter import ADAPTER, AROUND, load_adapter, save_around
from vcc_fm.decoder.four_bit import is_4_bit
from vcc_fm.decoder.load import load_decoder
from vcc_fm.ground.errors import TryAgain, UserError
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run import train
from vcc_fm.run.layout import Layout
from vcc_fm.training import loop

pytest.importorskip("bitsandbytes", reason="needs the extra qlora: pip install 'vcc-fm[qlora]'")

Tiny = Callable[..., tuple[Recipe, Dataset]]
FOUR_BIT = ["decoder.lora.load_in_4bit=true", "train.lr=0.05", "pretrain.lr=0.05", "pretrain.steps=20"]


def shares(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """What it predicts for cells, where something was measured."""
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(batch).log_share_BSG(batch)
    return found[torch.isfinite(found)]


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[loop.Trainer]:
    """Every trainer that ran."""
    found: list[loop.Trainer] = []
    run = loop.Trainer.run

    def noted(self: loop.Trainer) -> Path:
        found.append(self)
        return run(self)

    monkeypatch.setattr(loop.Trainer, "run", noted)
    return found


def some_batch(trainer: loop.Trainer) -> Batch:
    return trainer.assembler.assemble(trainer.training.step(0, 8, slice(0, 8)))


def test_the_saved_model_is_the_trained_one_and_needs_no_library(
    tiny: Tiny, trainers: list[loop.Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, data = tiny(*FOUR_BIT)
    layout, said = Layout(recipe), Console(record=True, width=400)
    train_decoder(recipe, data, "pretrain")
    shutil.rmtree(layout.phase(0, "train"), ignore_errors=True)
    train_decoder(recipe, data, "train", said)
    trainer, base, saved = trainers[-1], layout.decoder(0, "pretrain").path, layout.decoder(0, "train").path
    assert any(map(is_4_bit, trainer.model.parameters()))
    plain = sum(value.numel() for value in PeftModel.from_pretrained(load_decoder(base), saved / ADAPTER).parameters())
    assert f" of {plain:,} parameters train, on a base in 4 bits" in said.export_text()
    batch = some_batch(trainer)
    trained = shares(trainer.model, batch)
    torch.testing.assert_close(shares(load_decoder(saved), batch), trained, rtol=0, atol=1e-5)
    # On the base as it was pretrained the same adapter is another model.
    on_float32 = PeftModel.from_pretrained(load_decoder(base), saved / ADAPTER)
    assert (shares(on_float32, batch) - trained).abs().max() > 1e-3
    # As it is shared, and merged by those who take it.
    shutil.copytree(saved / ADAPTER, tmp_path / ADAPTER)
    shutil.copy(saved / "config.json", tmp_path)
    save_around(load_decoder(saved), tmp_path / AROUND)
    merged = load_adapter(tmp_path, str(base), None)
    for name, value in load_file(saved / "model.safetensors").items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=0, atol=0)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    load_decoder(saved)
    with pytest.raises(UserError, match=r"its adapter belongs on a base in 4 bits, for which bitsandbytes is not"):
        load_adapter(tmp_path, str(base), None)


def test_a_run_that_is_stopped_goes_on_bit_for_bit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*FOUR_BIT, "train.checkpoint_every=100", "train.average=0.9", validation=True)
    layout, step = Layout(recipe), loop.Trainer._optimise
    work, model = layout.phase(0, "train"), layout.decoder(0, "train").path
    train_decoder(recipe, data, "pretrain")
    shutil.rmtree(work, ignore_errors=True)
    train_decoder(recipe, data, "train")
    whole = load_file(model / "model.safetensors")
    shutil.rmtree(work)

    def told(self: loop.Trainer, at: int, *arguments: object) -> None:
        step(self, at, *arguments)  # type: ignore[arg-type]
        if at == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimise", told)
        with pytest.raises(TryAgain, match=r"train stopped after step 3"):
            train_decoder(recipe, data, "train")
    (weights,) = (work / "checkpoints" / "step-00000003").glob("model*.safetensors")
    assert not [name for name in load_file(weights) if "_proj" in name and "backbone" in name and "lora" not in name]
    train_decoder(recipe, data, "train")
    resumed = load_file(model / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_is_judged_is_the_model_in_4_bits(
    tiny: Tiny, trainers: list[loop.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = tiny(*FOUR_BIT, "train.select=mean", validation=True)
    distances = []

    def judge(folder: Path) -> float:
        batch = some_batch(trainers[-1])
        found = shares(load_decoder(folder), batch) - shares(trainers[-1].model, batch)
        distances.append(float(found.abs().max()))
        return float(len(distances))

    train_decoder(recipe, data, "pretrain")
    shutil.rmtree(Layout(recipe).phase(0, "train"), ignore_errors=True)
    monkeypatch.setattr(train, "_judge", lambda *_: judge)
    train_decoder(recipe, data, "train")
    assert len(distances) == 3
    assert max(distances) < 1e-5
