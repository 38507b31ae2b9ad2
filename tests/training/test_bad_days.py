"""Training on bad days: nothing that is not finite is saved, no damaged checkpoint is loaded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from program import train_decoder
from rich.console import Console
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.training import loop
from vcc_fm.training.checkpoint import Checkpoints, read_log

Tiny = Callable[..., tuple[Recipe, Dataset]]
EVERY = ["pretrain.steps=8", "pretrain.checkpoint_every=2", "pretrain.eval_every=2", "pretrain.lr=0.05"]


def fresh(recipe: Recipe) -> Path:
    """The checkpoint folder of a phase that has not begun."""
    folder = Layout(recipe).phase(0, "pretrain")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(Layout(recipe).decoder(0, "pretrain").path, ignore_errors=True)
    return folder / "checkpoints"


def stop_after(steps: int, recipe: Recipe, data: Dataset, patch: pytest.MonkeyPatch) -> None:
    """Train until ``steps`` steps are done and a Ctrl-C comes."""
    step, done = loop.Trainer._optimise, 0

    def stopped(self: loop.Trainer, *arguments: object) -> None:
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        step(self, *arguments)  # type: ignore[arg-type]

    with patch.context() as here:
        here.setattr(loop.Trainer, "_optimise", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_decoder(recipe, data, "pretrain")


def all_finite(folder: Path) -> bool:
    files = [*folder.rglob("*.safetensors")]
    assert files
    return all(torch.isfinite(value).all() for file in files for value in load_file(file).values())


@pytest.mark.parametrize("validation", [False, True])
def test_a_rate_that_explodes_stops_and_keeps_what_was_finite(tiny: Tiny, validation: bool) -> None:
    recipe, data = tiny("pretrain.lr=1e30", *EVERY[:3], validation=validation)
    checkpoints = fresh(recipe)
    with pytest.raises(UserError, match=r"pretrain, (step \d|after step \d).* for sets of .* in [ab].*learning rate"):
        train_decoder(recipe, data, "pretrain")
    assert not Layout(recipe).decoder(0, "pretrain").path.exists()
    if validation:
        assert [file.name for file in checkpoints.glob("best-*")] == ["best-00000000.safetensors"]
        assert all_finite(checkpoints)
    # The same again, not another error.
    with pytest.raises(UserError, match=r"learning rate"):
        train_decoder(recipe, data, "pretrain")


def test_input_that_is_not_finite_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*EVERY)
    fresh(recipe)
    take = data.cell_vectors.take

    def broken(rows: np.ndarray, column: str = "embedding", out: np.ndarray | None = None) -> np.ndarray:
        found = take(rows, column, out)
        found[0, 0] = np.nan
        return found

    monkeypatch.setattr(data.cell_vectors, "take", broken)
    data.__dict__["some_control_vectors"] = np.ones((5, data.cell_vectors.width), np.float32)
    with pytest.raises(UserError, match=r"step 1: .* their input is not finite \(cells_BSE\)"):
        train_decoder(recipe, data, "pretrain")


def test_a_base_that_is_not_finite_is_refused(tiny: Tiny) -> None:
    recipe, data = tiny(*EVERY)
    fresh(recipe)
    train_decoder(recipe, data, "pretrain")
    file = Layout(recipe).decoder(0, "pretrain").path / "model.safetensors"
    weights = load_file(file)
    weights["head.set_term.weight"][1, 2] = math.inf
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.safetensors is damaged: its content is not what was written"):
        train_decoder(recipe, data, "train")
    Layout(recipe).decoder(0, "pretrain").mark(0.0)
    with pytest.raises(UserError, match=r"1 tensors are not finite, such as head.set_term.weight"):
        train_decoder(recipe, data, "train")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": lambda folder: flip(folder / "model.safetensors"),
    "cut": lambda folder: (folder / "optimizer.bin").write_bytes((folder / "optimizer.bin").read_bytes()[:-9]),
    "no random state": lambda folder: next(folder.glob("random_states_0*")).unlink(),
    "a list": lambda folder: (folder / "progress.json").write_text("[]"),
    "no JSON": lambda folder: (folder / "progress.json").write_text("{"),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe, data = tiny(*EVERY, validation=True)
    checkpoints = fresh(recipe)
    train_decoder(recipe, data, "pretrain")
    whole = load_file(Layout(recipe).decoder(0, "pretrain").path / "model.safetensors")
    checkpoints = fresh(recipe)
    stop_after(5, recipe, data, monkeypatch)
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-00000002", "step-00000004"]
    stopped = shutil.copytree(checkpoints.parent, tmp_path / "stopped")
    for what, damage in DAMAGE.items():
        fresh(recipe)
        shutil.copytree(stopped, checkpoints.parent)
        damage(checkpoints / "step-00000004")
        said = Console(record=True, width=200)
        train_decoder(recipe, data, "pretrain", said)
        assert "step-00000004 is damaged and passed over" in said.export_text(clear=False), what
        assert "goes on after step 2" in said.export_text(), what
        again = load_file(Layout(recipe).decoder(0, "pretrain").path / "model.safetensors")
        assert all(torch.equal(value, again[name]) for name, value in whole.items()), what


def test_what_was_passed_over_takes_no_place_of_a_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*EVERY, "pretrain.keep_checkpoints=1", validation=True)
    checkpoints = fresh(recipe)
    stop_after(3, recipe, data, monkeypatch)
    for step in (500, 700):
        shutil.copytree(checkpoints / "step-00000002", checkpoints / f"step-{step:08d}")
    stop_after(3, recipe, data, monkeypatch)
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-00000004"]


def test_no_whole_checkpoint_is_not_a_start_from_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*EVERY, validation=True)
    checkpoints = fresh(recipe)
    stop_after(5, recipe, data, monkeypatch)
    for path in checkpoints.glob("step-*"):
        flip(path / "optimizer.bin")
    before = sorted(checkpoints.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint is whole \(step-00000004 .*; step-00000002 .*\); put back"):
        train_decoder(recipe, data, "pretrain")
    assert sorted(checkpoints.rglob("*")) == before


def test_another_recipe_costs_no_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*EVERY, validation=True)
    checkpoints = fresh(recipe)
    stop_after(5, recipe, data, monkeypatch)
    before = sorted(path.relative_to(checkpoints) for path in checkpoints.rglob("*"))
    other, said = tiny(*EVERY, "pretrain.lr=0.04", validation=True)[0], Console(record=True, width=200)
    train_decoder(other, data, "pretrain", said)
    aside = checkpoints.parent.with_name("pretrain.aside")
    assert f"checkpoints of another recipe are set aside in {aside}" in said.export_text(clear=False)
    assert "pretrain 0/8" in said.export_text()
    assert sorted(path.relative_to(aside / "checkpoints") for path in (aside / "checkpoints").rglob("*")) == before
    train_decoder(recipe, data, "pretrain", said)
    text = said.export_text()
    assert "pretrain 6/8 validation" in text
    assert "pretrain 0/8" not in text  # it went on
    assert aside.exists()
    shutil.rmtree(aside)


@pytest.mark.parametrize("stopped", [1, 5])
def test_a_run_that_goes_on_has_one_curve(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, stopped: int) -> None:
    recipe, data = tiny(*EVERY, "pretrain.log_every=1", "pretrain.tracker=tensorboard", validation=True)
    folder = fresh(recipe).parent
    stop_after(stopped, recipe, data, monkeypatch)
    train_decoder(recipe, data, "pretrain")
    log = [(line["split"], line["step"]) for line in read_log(folder / "metrics.jsonl")]
    assert len(log) == len(set(log))
    told = EventAccumulator(str(next(folder.rglob("events.out.*")).parent))
    told.Reload()
    for split, first, every in (("train", 1, 1), ("validation", 0, 2)):
        assert [one.step for one in told.Scalars(f"{split}/likelihood")] == list(range(first, 9, every))


def test_a_run_goes_on_with_other_micro_batches(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*EVERY, "pretrain.checkpoint_every=1", validation=True)
    fresh(recipe)
    train_decoder(recipe, data, "pretrain")
    whole = load_file(Layout(recipe).decoder(0, "pretrain").path / "model.safetensors")
    fresh(recipe)
    # An odd number of micro-batches, and then two a step.
    stop_after(3, recipe, data, monkeypatch)
    sets = recipe.phases["pretrain"].batch_sets
    assert sets % 2 == 0
    said = Console(record=True, width=200)
    again, data = tiny(*EVERY, "pretrain.checkpoint_every=1", f"pretrain.micro_sets={sets // 2}", validation=True)
    train_decoder(again, data, "pretrain", said)
    text = said.export_text()
    assert "pretrain 8/8 train" in text
    assert "pretrain 0/8" not in text  # it went on
    resumed = load_file(Layout(again).decoder(0, "pretrain").path / "model.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5)


def test_a_flipped_bit_of_a_checkpoint_or_a_model_is_seen_wherever_it_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = tiny(*EVERY, validation=True)
    checkpoints = fresh(recipe)
    stop_after(5, recipe, data, monkeypatch)
    rng = np.random.default_rng(0)

    def resumed() -> tuple[int | None, list[str]]:
        accelerator = Accelerator(cpu=True)
        monkeypatch.setattr(accelerator, "load_state", lambda folder: None)
        progress, said = Checkpoints(checkpoints, 2, accelerator).resume()
        return progress and progress["step"], said

    assert resumed() == (4, [])
    train_decoder(recipe, data, "pretrain")
    model = Layout(recipe).decoder(0, "pretrain")
    newest = max(checkpoints.glob("step-*"))
    last, _ = resumed()
    flips = 0
    for path in sorted(path for folder in (newest, model.path) for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in rng.integers(len(content), size=20):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            flips += 1
            if path.parent == model.path:
                assert str(path) in str(model.fault(content=True))
            else:
                step, said = resumed()
                assert step != last or json.loads(flipped) == json.loads(content), path
                assert [line for line in said if newest.name in line] or step == last
        path.write_bytes(content)
    assert flips >= 100
    assert resumed() == (last, [])


def test_best_weights_are_verified_and_kept_as_long_as_a_checkpoint_names_them(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = tiny(*EVERY, validation=True)
    checkpoints = fresh(recipe)
    stop_after(7, recipe, data, monkeypatch)
    named = {
        json.loads((path / "progress.json").read_text())["selection"]["best_step"]
        for path in checkpoints.glob("step-*")
    }
    kept = {int(file.stem.removeprefix("best-")) for file in checkpoints.glob("best-*.safetensors")}
    assert named <= kept
    assert len(kept) <= len(named) + 1
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda *_: {"loss": 1e9})
    for file in checkpoints.glob("best-*.safetensors"):
        flip(file)
    with pytest.raises(UserError, match=r"no checkpoint is whole \(step-00000006 is .* best weights .* damaged"):
        train_decoder(recipe, data, "pretrain")


def test_a_validation_loss_that_is_not_finite_stops(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny(*EVERY, validation=True)
    checkpoints = fresh(recipe)
    looks = iter([1.0, math.nan])
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda *_: {"loss": next(looks)})
    with pytest.raises(UserError, match=r"after step 2: the validation loss is nan"):
        train_decoder(recipe, data, "pretrain")
    assert [file.name for file in checkpoints.glob("best-*")] == ["best-00000000.safetensors"]


def test_the_sets_of_the_step_are_named(tiny: Tiny) -> None:
    recipe, data = tiny("pretrain.lr=1e30", *EVERY[:3])
    label = data.cells.labels[0]
    roles = {group: "train" if group == ("a", label) else "unused" for group in data.split.roles}
    fresh(recipe)
    with pytest.raises(UserError, match=rf"for sets of {label} in a;"):
        train_decoder(recipe, replace(data, split=replace(data.split, roles=roles)), "pretrain")


def test_a_step_that_is_not_finite_is_left_out_and_counted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny("pretrain.not_finite=skip", "pretrain.steps=20", "pretrain.log_every=5")
    folder = fresh(recipe).parent
    plain, broken = loop.mean_loss, range(7, 9)
    calls = 0

    def loss(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return plain(*arguments) * (math.nan if calls in broken else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "mean_loss", loss)
    said = Console(record=True, width=400)
    train_decoder(recipe, data, "pretrain", said)
    assert all_finite(Layout(recipe).decoder(0, "pretrain").path)
    lines = [line for line in read_log(folder / "metrics.jsonl") if line["split"] == "train"]
    assert [line.get("steps_left_out", 0) for line in lines] == [0, 2, 0, 0]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert said.export_text().count("left out: pretrain, step") == 2
    # A device that leaves a step out by itself, and a trainer that waits to be told, train the same model.
    found, steps = load_file(Layout(recipe).decoder(0, "pretrain").path / "model.safetensors"), lines
    monkeypatch.setattr(loop, "engine_of", lambda _: "one that cannot")
    calls = 0
    fresh(recipe)
    train_decoder(recipe, data, "pretrain")
    wanted = load_file(Layout(recipe).decoder(0, "pretrain").path / "model.safetensors")
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    lines = [line for line in read_log(folder / "metrics.jsonl") if line["split"] == "train"]
    assert [line["loss"] for line in lines] == [line["loss"] for line in steps]
    # More than a few in a row are no accident.
    broken, calls = range(7, 100), 0
    fresh(recipe)
    with pytest.raises(UserError, match=r"step 17: the gradient's norm is nan"):
        train_decoder(recipe, data, "pretrain")
