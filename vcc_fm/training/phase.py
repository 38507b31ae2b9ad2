"""A training phase from its stores to a saved decoder."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import threadpoolctl
import torch
from accelerate import Accelerator
from peft import PeftModel
from rich.console import Console
from torch import nn

from vcc_fm.cellsets.assembler import Assembler
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import SetSampler
from vcc_fm.decoder.build import build_decoder, vocabulary_of
from vcc_fm.decoder.four_bit import is_4_bit
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder, SetDecoder
from vcc_fm.ground.files import empty_folder, followed, read_json, remove_whole, whole_folder, write_json
from vcc_fm.ground.processes import spare_cores
from vcc_fm.recipe.decoder import BackboneSettings
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.responses.answers import Answers, read_answers, write_answers
from vcc_fm.splits.groups import seen_before, trained_on, training_groups
from vcc_fm.splits.split import Group
from vcc_fm.training.accelerator import (
    compile_step,
    count_parameters,
    engine_of,
    forget_accelerator,
    make_accelerator,
)
from vcc_fm.training.checkpoint import load_trained, save_decoder
from vcc_fm.training.loop import Selection, Trainer
from vcc_fm.training.trust import Trust, choose_trust

EXPECTED = "expected"
"""Folder of the expected responses, while a phase trains."""

Settings = TypeVar("Settings", bound=BackboneSettings, covariant=True)


@dataclass(frozen=True)
class Phase(Generic[Settings]):
    """A training phase: what trains, and from what.

    Attributes:
        name: ``pretrain`` makes the base of a recipe, ``train`` its model.
        config: how it trains.
        decoder: the network.
        base: ``scratch``, or folder or Hub id of what training starts from.
        seed: of everything random.
        run: name of the recipe.
        recipe: the resolved recipe as JSON, saved beside the decoder.
        recipe_fingerprint: its fingerprint.
        fingerprint: of everything that the decoder depends on; checkpoints of another are set aside.
        untrained: folder of a base that this recipe pretrained, whose untrained decoder the model should beat.
    """

    name: str
    config: TrainConfig
    decoder: Settings
    base: str
    seed: int
    run: str
    recipe: dict[str, Any]
    recipe_fingerprint: str
    fingerprint: str
    untrained: Path | None = None


def train_phase(
    phase: Phase,
    data: Dataset,
    work: Path,
    final: Path,
    console: Console,
    judge: Callable[[Path], float] | None = None,
) -> None:
    """Train one phase of one fold, resuming where an earlier run of it stopped, and save the decoder.

    Args:
        phase: what to train.
        data: the stores and the split.
        work: folder of checkpoints and log.
        final: folder of the decoder; it appears when it is whole.
        console: where progress goes.
        judge: tells how good a decoder in a folder is, the higher the better, where not the loss decides.

    Raises:
        UserError: there is nothing to train on, or the settings do not fit the data or the processes.
    """
    with begun(phase, work, console) as accelerator:
        trainer, finished = _trainer(phase, data, work, accelerator, console, judge)
        weights = trainer.run()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            trained = finished(weights)
            trust = _trust(phase, trainer, _inner(trained))
            save(phase, trained, trainer.selection, final, console, trust, data.cells.meta["simulated"])
            remove_whole(work / EXPECTED)


@contextmanager
def begun(phase: Phase, work: Path, console: Console) -> Iterator[Accelerator]:
    """What a phase computes with; checkpoints of another in ``work`` are set aside.

    Raises:
        UserError: as :func:`make_accelerator`.
    """
    accelerator = make_accelerator(phase.config, work, phase.name)
    if accelerator.is_main_process:
        _claim(work, phase, console)
    accelerator.wait_for_everyone()
    if phase.config.tracker != "none":
        accelerator.init_trackers(f"{phase.run}-{phase.name}", init_kwargs=_one_curve(work))
    yield accelerator
    accelerator.wait_for_everyone()
    # Not `end_training`, which would also part the processes that the next phase needs together.
    for tracker in accelerator.trackers:
        tracker.finish()
    forget_accelerator()


def _trainer(
    phase: Phase,
    data: Dataset,
    work: Path,
    accelerator: Accelerator,
    console: Console,
    judge: Callable[[Path], float] | None,
) -> tuple[Trainer, Callable[[Path], PerturbationDecoder | PeftModel]]:
    """The trainer, and what makes a model of the file of weights that it leaves.

    That model is built anew, because what was trained may be spread over the processes.
    """
    config, name = phase.config, phase.name
    training = training_groups(data.split, config, data.cells.contexts, name)
    model, notes = _decoder(phase, data, training, trains=True)
    decoder = _inner(model)
    vocabulary, takes_responses = vocabulary_of(decoder.config), decoder.config.response
    # One shape of all batches, which is compiled once.
    targets = data.most_targets if config.compile else 1
    expected = _expected(phase, data, training, work, accelerator, console) if takes_responses else None
    assembler = Assembler(
        data, vocabulary, config.set_size, takes_responses, accelerator.device, targets=targets, expected=expected
    )
    samplers = _samplers(phase, data, training)
    if accelerator.is_main_process:
        console.print(_first_line(name, config, accelerator, model), highlight=False, soft_wrap=True)
        notes += seen_before(data.split.groups("test"), decoder.config.trained_on)
        for note in notes + _scarce_controls(samplers[0]):
            console.print(f"note: {note}", markup=False, soft_wrap=True)
    if config.gradient_checkpointing:
        decoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    losses = SetLosses(config.loss)
    if config.compile:
        compile_step(decoder, losses, accelerator, name)

    def finished(weights: Path) -> PerturbationDecoder | PeftModel:
        trained, _ = _decoder(phase, data, training)
        load_trained(trained, weights)
        return trained

    def judge_weights(weights: Path) -> float:
        assert judge is not None
        # What else is drawn at random in this process stays as it is.
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            save_decoder(finished(weights), Path(folder), {})
            return judge(Path(folder))

    score = judge and judge_weights
    trainer = Trainer(name, config, model, losses, *samplers, assembler, work, accelerator, console, score)
    return trainer, finished


def _expected(
    phase: Phase, data: Dataset, training: list[Group], work: Path, accelerator: Accelerator, console: Console
) -> Answers:
    """What the mixed model expects of all groups of a phase: one process computes it where ``work`` has it not."""
    if accelerator.is_main_process and not (work / EXPECTED).exists():
        asked = {
            "held_out": data.split.groups("validation"),
            "without_group": training,
            "without_perturbation": training if phase.decoder.response_dropout else [],
        }
        # The others wait, some of them busily. Launchers give each of several processes one thread.
        threads = spare_cores() if accelerator.num_processes > 1 else None
        with threadpoolctl.threadpool_limits(threads, "blas"):
            write_answers(work / EXPECTED, data.expected, asked, phase.name, console)
    accelerator.wait_for_everyone()
    return read_answers(work / EXPECTED)


def _decoder(
    phase: Phase, data: Dataset, training: list[Group], trains: bool = False
) -> tuple[PerturbationDecoder | PeftModel, list[str]]:
    """The model before training, and notes; one that only takes what was trained has a base in 4 bits as float32."""
    bf16 = phase.config.precision == "bf16"
    compute = (torch.bfloat16 if bf16 else torch.float32) if trains else None
    model, notes = build_decoder(phase.decoder, data, phase.base, phase.seed, compute)
    decoder = _inner(model)
    decoder.config.recipe_fingerprint = phase.recipe_fingerprint
    decoder.config.trained_on = trained_on(training, decoder.config.trained_on)
    decoder.bf16_backbone = bf16
    return model, notes


def _inner(model: PerturbationDecoder | PeftModel) -> PerturbationDecoder:
    """The decoder itself, without its adapters' wrapping."""
    decoder = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(decoder, PerturbationDecoder)
    return decoder


def _first_line(name: str, config: TrainConfig, accelerator: Accelerator, model: nn.Module) -> str:
    """What trains, on what, and how much at a time."""
    world, device = accelerator.num_processes, accelerator.device
    total, trainable = count_parameters(model)
    held = ", on a base in 4 bits" if any(map(is_4_bit, model.parameters())) else ""
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        f"{name}: {engine_of(accelerator)}, {world} process(es) on {here}; a step is {config.batch_sets} sets, up to "
        f"{config.batch_sets * config.set_size:,} cells; {trainable:,} of {total:,} parameters train{held}"
    )


def _scarce_controls(sampler: SetSampler) -> list[str]:
    """A note where a batch has fewer control cells than a set shows."""
    scarce = sampler.scarce_controls()
    if not scarce:
        return []
    fewest = min(scarce, key=scarce.__getitem__)
    return [
        f"{len(scarce)} batches have fewer control cells than a set needs ({fewest!r}: {scarce[fewest]}); "
        "a set of theirs shows some controls more than once"
    ]


def _trust(phase: Phase, trainer: Trainer, decoder: PerturbationDecoder) -> Trust | None:
    """Set how far the decoder of a run corrects what is expected; a base does in full, for what trains on it."""
    if phase.name == "pretrain" or trainer.validation is None or not decoder.config.response:
        return None
    decoder.to(trainer.accelerator.device)
    found = choose_trust(decoder, trainer.validation, trainer.assembler, trainer.losses, phase.config.eval_sets)
    decoder.cpu()
    return found


def save(
    phase: Phase,
    trained: SetDecoder | PeftModel,
    selection: Selection | None,
    final: Path,
    console: Console,
    trust: Trust | None = None,
    simulated: bool = False,
) -> None:
    """Save the decoder with its recipe and its record, and say how it compares with its start."""
    record: dict[str, Any] = {
        "phase": phase.name,
        "fingerprint": phase.fingerprint,
        "base": phase.base,
        "simulated": simulated,
    }
    if selection is not None:
        console.print(f"{phase.name}: validation {selection}", highlight=False, soft_wrap=True)
        record["validation"] = asdict(selection)
    if trust is not None:
        console.print(f"{phase.name}: {trust}", highlight=False, soft_wrap=True)
        record["trust"] = asdict(trust)
    if phase.untrained is not None:
        for note in _beside_untrained(phase.untrained, selection):
            console.print(f"[yellow]warning[/yellow] {note}", highlight=False, soft_wrap=True)
    with whole_folder(final) as partial:
        save_decoder(trained, partial, {"recipe.json": phase.recipe, "training.json": record})


def _claim(folder: Path, phase: Phase[BackboneSettings], console: Console) -> None:
    """Set aside checkpoints and log of another recipe, and take back those of this one that it set aside.

    The other recipe may be this one with a key that is tried, or with a base that is out of reach for a while. One is
    kept beside, the last.
    """
    folder = followed(folder)
    aside, moved = (folder.with_name(f"{folder.name}.{end}") for end in ("aside", "moved"))
    if _owner(folder) == phase.fingerprint:
        return
    ours = next((path for path in (moved, aside) if _owner(path) == phase.fingerprint), None)
    if ours is None:
        shutil.rmtree(moved, ignore_errors=True)
    elif ours == aside:
        aside.rename(moved)
    if any(folder.glob("checkpoints/step-*")):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        said = f"{phase.name}: checkpoints of another recipe are set aside in {aside}; that recipe takes them back"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if ours is None:
        empty_folder(folder)
        write_json(folder / "owner.json", {"fingerprint": phase.fingerprint, "run": uuid.uuid4().hex})
    else:
        shutil.rmtree(folder, ignore_errors=True)
        moved.rename(folder)


def _one_curve(work: Path) -> dict[str, dict[str, Any]]:
    """What trackers are told so that a run that goes on has one curve: from its checkpoint on it is drawn anew."""
    steps = [int(path.name[5:]) for path in work.glob("checkpoints/step-*") if path.name[5:].isdigit()]
    return {
        "tensorboard": {"purge_step": max(steps) + 1 if steps else 0},
        "wandb": {"id": read_json(work / "owner.json")["run"], "resume": "allow"},
    }


def _owner(folder: Path) -> str | None:
    """Fingerprint of the phase whose checkpoints a folder holds; None where nobody's."""
    owner = folder / "owner.json"
    return read_json(owner)["fingerprint"] if owner.exists() else None


def _beside_untrained(base: Path, selection: Selection | None) -> list[str]:
    """A warning where the decoder before its pretraining was better on the validation groups than the model is."""
    then = read_json(base / "training.json").get("validation")
    if then is None or selection is None or selection.best is None or {then["by"], selection.by} != {"loss"}:
        return []
    if selection.best <= then["start"]:
        return []
    return [
        f"an untrained decoder, which is the transfer baseline, had a validation loss of {then['start']:.5g}, better "
        f"than this model's {selection.best:.5g}; set decoder.base=scratch, or train otherwise"
    ]


def _samplers(phase: Phase, data: Dataset, training: list[Group]) -> tuple[SetSampler, SetSampler | None]:
    config, seed = phase.config, phase.seed
    # Validation is not narrowed to the phase's contexts: a base is chosen by how well it serves where it will be used.
    validation = data.split.groups("validation")
    dropout = phase.decoder.code_dropout, phase.decoder.response_dropout
    sampler = SetSampler(data, training, config.set_size, seed, *dropout, _weights(config, training))
    return sampler, SetSampler(data, validation, config.set_size, seed) if validation else None


def _weights(config: TrainConfig, groups: list[Group]) -> dict[Group, float]:
    """The weight of each training group."""
    return {
        (context, perturbation): config.context_weights.get(context, 1.0)
        * config.perturbation_weights.get(perturbation, 1.0)
        for context, perturbation in groups
    }
