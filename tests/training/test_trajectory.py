"""A trainer that is wrong in one of the ways trainers are wrong fails here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from program import QUIET, train_decoder
from rich.console import Console
from safetensors.torch import load_file

from vcc_fm.cellsets.assembler import Assembler
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import SetSampler
from vcc_fm.decoder.build import build_decoder, vocabulary_of
from vcc_fm.decoder.load import load_decoder
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.responses.mixed_model import MixedModel
from vcc_fm.run.layout import Layout
from vcc_fm.training import loop
from vcc_fm.training.accelerator import make_accelerator
from vcc_fm.training.checkpoint import read_log

Tiny = Callable[..., tuple[Recipe, Dataset]]
ROOT = Path(__file__).parents[2]


def trained(recipe: Recipe, data: Dataset, phase: str = "pretrain") -> dict[str, torch.Tensor]:
    """Weights after a phase, trained afresh."""
    layout = Layout(recipe)
    shutil.rmtree(layout.phase(0, phase), ignore_errors=True)
    train_decoder(recipe, data, phase)
    return load_file(layout.decoder(0, phase).path / "model.safetensors")


def losses(recipe: Recipe, phase: str, split: str = "train") -> list[float]:
    lines = read_log(Layout(recipe).phase(0, phase) / "metrics.jsonl")
    return [line["loss"] for line in lines if line["split"] == split]


def selection(recipe: Recipe, phase: str) -> dict[str, float]:
    return json.loads((Layout(recipe).decoder(0, phase).path / "training.json").read_text())["validation"]


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            value, second[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_accumulation_equals_the_large_batch(tiny: Tiny) -> None:
    whole = trained(*tiny("pretrain.micro_sets=8"))
    parts = trained(*tiny("pretrain.micro_sets=1"))
    other = trained(*tiny("pretrain.micro_sets=8", "pretrain.batch_sets=16"))
    assert_close(whole, parts, 2e-5)
    # The tolerance would not hide a trainer that takes another batch.
    assert max((whole[n] - other[n]).abs().max() for n in whole) > 1e-3


@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_resume_equals_uninterrupted_bit_for_bit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    # A rate at which validation moves, so that what is kept is not what was there before.
    fast = [f"{name}.lr=0.05" for name in ("pretrain", "train")]
    every = ["pretrain.checkpoint_every=2", "pretrain.log_every=1", "pretrain.eval_every=3"]
    recipe, data = tiny(*every, *fast, validation=True)
    trained(recipe, data)
    whole, log = trained(recipe, data, phase), losses(recipe, phase)
    looks, kept = losses(recipe, phase, "validation"), selection(recipe, phase)
    assert len(looks) == 3
    step = loop.Trainer._optimise
    done = 0

    def stopped(self: loop.Trainer, *arguments: object) -> None:
        nonlocal done
        if done == 5:
            raise KeyboardInterrupt
        done += 1
        step(self, *arguments)  # type: ignore[arg-type]

    layout = Layout(recipe)
    shutil.rmtree(layout.phase(0, phase))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimise", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_decoder(recipe, data, phase)
    assert done == 5
    # What is expected of all groups was computed once, and is not computed by another process or a later start.
    assert (layout.phase(0, phase) / "expected").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(MixedModel, "__init__", None)
        train_decoder(recipe, replace(data), phase)
    assert not (layout.phase(0, phase) / "expected").exists()
    resumed = load_file(layout.decoder(0, phase).path / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert losses(recipe, phase) == log
    assert losses(recipe, phase, "validation") == looks
    assert selection(recipe, phase) == kept


def test_the_start_is_a_candidate_and_the_best_weights_are_kept(tiny: Tiny) -> None:
    capture = Console(record=True, width=200)
    alone = ["decoder.base=scratch", "pretrain=null", "train.eval_every=2", "train.steps=20"]
    untouched = trained(*tiny(*alone, "train.lr=1e-12", validation=True), "train")
    # A rate that ruins the decoder: the run must end with what it began with.
    recipe, data = tiny(*alone, "train.lr=3.0", validation=True)
    shutil.rmtree(Layout(recipe).phase(0, "train"), ignore_errors=True)
    train_decoder(recipe, data, "train", capture)
    ruined = load_file(Layout(recipe).decoder(0, "train").path / "model.safetensors")
    found, looks = selection(recipe, "train"), losses(recipe, "train", "validation")
    assert found["best_step"] == 0
    assert found["start"] == found["best"] == looks[0] == min(looks)
    assert found["last"] == looks[-1] > looks[0]
    assert_close(untouched, ruined, 1e-6)
    assert "no step was better than the start" in capture.export_text()
    # And where training helps, the best look is kept and named.
    recipe, data = tiny(*alone, "train.lr=5e-3", "train.eval_every=20", "train.steps=60", validation=True)
    train_decoder(recipe, data, "train", capture)
    found, looks = selection(recipe, "train"), losses(recipe, "train", "validation")
    assert found["best_step"] > 0
    assert found["best"] == min(looks) < found["start"] == looks[0]
    assert looks[found["best_step"] // 20] == found["best"]
    assert f"best at step {found['best_step']}" in capture.export_text()


def test_a_base_is_trained_and_the_model_judged_against_its_start(tiny: Tiny) -> None:
    # No step of this pretraining is better than its start, and yet a base is what was asked for.
    capture = Console(record=True, width=300)
    rates = ["pretrain.lr=3.0", "pretrain.steps=20", "pretrain.eval_every=10", "train.lr=1e-9"]
    recipe, data = tiny(*rates, validation=True)
    shutil.rmtree(Layout(recipe).phase(0, "pretrain"), ignore_errors=True)
    train_decoder(recipe, data, "pretrain")
    base, looks = selection(recipe, "pretrain"), losses(recipe, "pretrain", "validation")
    assert base["start"] == looks[0] < base["best"] == min(looks[1:])
    assert base["best_step"] in (10, 20)
    shutil.rmtree(Layout(recipe).phase(0, "train"), ignore_errors=True)
    train_decoder(recipe, data, "train", capture)
    assert "an untrained decoder, which is the transfer baseline" in capture.export_text()


def test_one_step_is_harmless(tiny: Tiny) -> None:
    # Adam moves each weight by the whole rate at its first step; through random gene factors that was a random effect
    # of 0.1 on every gene, as large as what many perturbations do.
    recipe, data = tiny("pretrain.steps=1", "pretrain.lr=3e-3")
    trained(recipe, data)
    decoder = PerturbationDecoder.from_pretrained(Layout(recipe).decoder(0, "pretrain").path).eval()
    sampler = SetSampler(data, data.split.groups("train"), 6, 0)
    batch = Assembler(data, vocabulary_of(decoder.config), 6, True).assemble([sampler[i] for i in range(8)])
    with torch.no_grad():
        learned = decoder(batch).delta_BG - batch.response_BG
    assert 0 < learned.abs().max() < 0.02


def test_adaptation_moves_adapters_and_head_and_leaves_the_base_alone(tiny: Tiny) -> None:
    recipe, data = tiny()
    trained(recipe, data)
    base_folder = Layout(recipe).decoder(0, "pretrain").path
    model, notes = build_decoder(recipe.decoder, data, str(base_folder), 0)
    assert notes == []
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    decoder = model.get_base_model()
    sampler = SetSampler(data, data.split.groups("train"), 6, 0)
    assembler = Assembler(data, vocabulary_of(decoder.config), 6, True)
    losses = SetLosses(recipe.train.loss)
    trainer = loop.Trainer(
        "train", recipe.train, model, losses, sampler, None, assembler, recipe.run_folder / "probe",
        make_accelerator(recipe.train, recipe.run_folder / "probe"), QUIET,
    )  # fmt: skip
    batch = trainer._micro_batch(0).to(trainer.accelerator.device)
    for _ in range(2):  # the first step moves an adapter's B from zero, the second its A
        loop.mean_loss(losses(trainer.model, batch), losses).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    assert moved <= trains
    frozen = set(before) - trains
    assert any("backbone" in name and "base_layer" in name for name in frozen)
    still = {name for name in trains - moved if "learned_target" not in name}
    assert not still, "trainable, but never moved"
    assert any("lora_A" in name for name in moved)
    assert any("head" in name for name in moved)
    stored = load_file(base_folder / "model.safetensors")
    for name, value in model.named_parameters():
        short = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        if name in frozen:
            assert torch.equal(value, stored[short]), name


def test_a_saved_adapter_reloads_to_equal_outputs(tiny: Tiny) -> None:
    recipe, data = tiny()
    trained(recipe, data)
    trained(recipe, data, "train")
    layout = Layout(recipe)
    merged = PerturbationDecoder.from_pretrained(layout.decoder(0, "train").path).eval()
    base = PerturbationDecoder.from_pretrained(layout.decoder(0, "pretrain").path).eval()
    adapter = layout.decoder(0, "train").path / "adapter"
    adapted = PeftModel.from_pretrained(deepcopy(base), adapter, use_safetensors=True).eval()
    sampler = SetSampler(data, data.split.groups("train"), 6, 0)
    batch = Assembler(data, vocabulary_of(merged.config), 6, True).assemble([sampler[i] for i in range(4)])
    with torch.no_grad():
        outputs = [model(batch).delta_BG for model in (merged, adapted, base)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2, "adaptation changed nothing"
    adapter = layout.decoder(0, "train").path / "adapter"
    files = sorted(path.name for path in adapter.iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (adapter / "adapter_model.safetensors").stat().st_size > 1000


def test_loss_trajectory(tiny: Tiny) -> None:
    """The numbers of a fixed seed; they change only when someone means to change what training computes."""
    recipe, data = tiny("pretrain.log_every=1")
    trained(recipe, data)
    trained(recipe, data, "train")
    found = {phase: [round(loss, 4) for loss in losses(recipe, phase)] for phase in ("pretrain", "train")}
    path = Path(__file__).with_name("trajectory.json")
    stored = json.loads(path.read_text())

    for phase, values in found.items():
        assert values == pytest.approx(stored[phase], abs=2e-3), f"{phase}: {values}"


def test_training_lowers_the_validation_loss(tiny: Tiny) -> None:
    recipe, data = tiny("pretrain.steps=60", "pretrain.eval_every=30", "pretrain.lr=5e-3", validation=True)
    trained(recipe, data)
    looks = losses(recipe, "pretrain", "validation")
    assert min(looks) < looks[0]
    start = losses(recipe, "pretrain")
    assert start[-1] < start[0]


def test_bf16_stays_near_fp32(tiny: Tiny) -> None:
    full = trained(*tiny())
    half = trained(*tiny("pretrain.precision=bf16"))
    assert all(value.dtype == torch.float32 for value in half.values())
    assert_close(full, half, 2e-2)
    assert any(not torch.equal(full[name], half[name]) for name in full), "bf16 was not used"


def test_products_beside_a_bfloat16_backbone_may_be_rounded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    run = loop.Trainer.run
    monkeypatch.setattr(
        loop.Trainer, "run", lambda trainer: [seen.append(torch.backends.cuda.matmul.allow_tf32), run(trainer)][1]
    )
    trained(*tiny("pretrain.precision=bf16", "pretrain.steps=1"))
    assert not torch.backends.cuda.matmul.allow_tf32  # what follows is exact again
    trained(*tiny("pretrain.steps=1"))
    assert seen == [True, False]


def test_processes_agree_on_a_stop_one_step_after_one_of_them_is_asked() -> None:
    others = iter([0.0, 0.0, 1.0, 0.0])
    together = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=lambda told, _: told + next(others))
    trainer = SimpleNamespace(accelerator=together, _told=None)
    asked = [True, False, False, False]
    assert [loop.Trainer._agreed(trainer, one) for one in asked] == [False, True, False, True]  # type: ignore[arg-type]
    trainer.accelerator.num_processes = 1
    assert loop.Trainer._agreed(trainer, True)  # type: ignore[arg-type]


def test_processes_of_the_recipe_are_required(tiny: Tiny) -> None:
    recipe, data = tiny("pretrain.processes=2")
    with pytest.raises(UserError, match=r"train.processes=2, but 1 take part.*--processes 2"):
        trained(recipe, data)


def test_sets_must_share_evenly(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"batch_sets=8 is not a multiple of train.micro_sets=3"):
        tiny("pretrain.micro_sets=3")


def test_learning_rate_warms_up_and_decays() -> None:
    config = Recipe.model_fields["train"].annotation(steps=100, lr=1.0, warmup=0.1)
    rates = [loop.learning_rate(config.model_copy(update={"steps": 500}), step) for step in range(500)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[49] == 1.0
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[275] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 1e-3
    # A short run warms up as gently as a long one.
    short = config.model_copy(update={"steps": 5})
    assert [loop.learning_rate(short, step) for step in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])


def test_checkpoints_of_another_recipe_are_not_resumed(tiny: Tiny) -> None:
    recipe, data = tiny()
    plain = trained(recipe, data)
    other_recipe, _ = tiny("pretrain.lr=5e-3")
    train_decoder(other_recipe, data, "pretrain")
    other = load_file(Layout(other_recipe).decoder(0, "pretrain").path / "model.safetensors")
    assert any(not torch.equal(plain[name], other[name]) for name in plain)
    assert read_log(Layout(recipe).phase(0, "pretrain") / "metrics.jsonl")[0]["step"] == 6


def test_unknown_training_context_is_refused(tiny: Tiny) -> None:
    recipe, data = tiny("pretrain.contexts=[a, z]")
    with pytest.raises(UserError, match=r"contexts: there is no context z"):
        trained(recipe, data)


def test_the_mean_of_the_weights_is_what_is_saved(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = tiny("pretrain.average=0.5", "pretrain.lr=0.05")
    step, seen = loop.Trainer._optimise, []

    def noted(self: loop.Trainer, *arguments: object) -> None:
        if not seen:
            seen.append({name: value.detach().clone() for name, value in self.model.named_parameters()})
        step(self, *arguments)  # type: ignore[arg-type]
        seen.append({name: value.detach().clone() for name, value in self.model.named_parameters()})

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimise", noted)
        saved = trained(recipe, data)
    mean = seen[0]
    for at, weights in enumerate(seen[1:]):
        decay = min(0.5, (1 + at) / (10 + at))
        mean = {name: decay * value + (1 - decay) * weights[name] for name, value in mean.items()}
    for name, value in mean.items():
        torch.testing.assert_close(saved[name], value.cpu(), rtol=0, atol=1e-6, msg=name)
    assert max((saved[name] - value.cpu()).abs().max() for name, value in seen[-1].items()) > 1e-3


def test_training_ends_when_it_no_longer_helps(tiny: Tiny) -> None:
    ruin = ["decoder.base=scratch", "pretrain=null", "train.lr=3.0", "train.steps=40", "train.eval_every=2"]
    recipe, data = tiny(*ruin, "train.patience=2", validation=True)
    first = trained(recipe, data, "train")
    looks = losses(recipe, "train", "validation")
    assert len(looks) == 3
    assert min(looks) == looks[0]
    # Run again from its last checkpoint, it has nothing to do.
    train_decoder(recipe, data, "train")
    again = load_file(Layout(recipe).decoder(0, "train").path / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert losses(recipe, "train", "validation") == looks


def test_hidden_states_that_are_computed_twice_change_nothing(tiny: Tiny) -> None:
    assert_close(trained(*tiny("pretrain.gradient_checkpointing=true")), trained(*tiny()), 1e-6)


@pytest.mark.slow
def test_a_compiled_backbone_trains_the_same_model(tiny: Tiny) -> None:
    assert_close(trained(*tiny("pretrain.compile=true")), trained(*tiny()), 1e-5)


def test_a_score_chooses_the_weights(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [0.5, 0.1, 0.7, 0.7, 0.2]
    looks = iter(said)
    judged: list[PerturbationDecoder] = []

    def table(data: Dataset, decoder: Callable[[], Path], *_: object) -> object:
        judged.append(load_decoder(decoder()))
        value = next(looks)
        return SimpleNamespace(judged=lambda entry, by: value, missing=list)

    monkeypatch.setattr("vcc_fm.prediction.calibrate.validation_table", table)
    alone = ["decoder.base=scratch", "pretrain=null", "train.eval_every=2", "train.steps=8", "train.lr=0.01"]
    recipe, data = tiny(*alone, "train.select=pds_cosine", "train.checkpoint_every=8", validation=True)
    best = trained(recipe, data, "train")
    found = selection(recipe, "train")
    assert (found["by"], found["best_step"], found["best"], found["start"], found["last"]) == (
        "pds_cosine",
        4,
        0.7,
        0.5,
        0.2,
    )
    assert [
        line["pds_cosine"]
        for line in read_log(Layout(recipe).phase(0, "train") / "metrics.jsonl")
        if "pds_cosine" in line
    ] == said
    assert len(judged) == 5
    assert_close(best, {name: value for name, value in judged[2].state_dict().items() if name in best}, 0.0)
    assert any(not torch.equal(value, judged[4].state_dict()[name]) for name, value in best.items())


@pytest.mark.slow
def test_the_scorer_itself_chooses_the_weights(tiny: Tiny) -> None:
    alone = ["decoder.base=scratch", "pretrain=null", "train.eval_every=3", "train.lr=0.01"]
    recipe, data = tiny(*alone, "train.select=pds_cosine", validation=True)
    trained(recipe, data, "train")
    found = selection(recipe, "train")
    assert found["by"] == "pds_cosine"
    assert found["best"] >= found["start"]


def test_a_score_that_the_preset_does_not_have_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"train.select=spearman: vcc2026 has no such score; set .* pds_"):
        tiny("train.select=spearman")
