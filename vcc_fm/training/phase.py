"""A training phase from its stores to a saved decoder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from rich.console import Console
from torch import nn

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.groups import training_groups
from vcc_fm.cellsets.sampler import Assembler, SetSampler
from vcc_fm.cellsets.split import Group
from vcc_fm.decoder.build import build_decoder, vocabulary_of
from vcc_fm.decoder.four_bit import is_4_bit
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.files import empty_folder, read_json, whole_folder, write_json
from vcc_fm.recipe.decoder import DecoderSettings
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.training.accelerator import count_parameters, engine_of, forget_accelerator, make_accelerator
from vcc_fm.training.checkpoint import load_trained, save_decoder
from vcc_fm.training.loop import Selection, Trainer


@dataclass(frozen=True)
class Phase:
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
        fingerprint: of everything that the decoder depends on; checkpoints of another are thrown away.
        untrained: folder of a base that this recipe pretrained, whose untrained decoder the model should beat.
    """

    name: str
    config: TrainConfig
    decoder: DecoderSettings
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
    config, name = phase.config, phase.name
    accelerator = make_accelerator(config, work, name)
    _claim(work, phase.fingerprint, accelerator)
    if config.tracker != "none":
        accelerator.init_trackers(f"{phase.run}-{name}")
    trainer, finished = _trainer(phase, data, work, accelerator, console, judge)
    weights = trainer.run()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _save(phase, data, trainer.selection, finished(weights), final, console)
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
    model, notes = _decoder(phase, data, trains=True)
    decoder = _inner(model)
    vocabulary, takes_responses = vocabulary_of(decoder.config), decoder.config.response
    assembler = Assembler(data, vocabulary, config.set_size, takes_responses, accelerator.device)
    training = training_groups(data.split, config, data.cells.contexts, name)
    situations = Situations.of(data, training, assembler)
    samplers = _samplers(phase, data, training, situations)
    decoder.config.trained_on_responses |= situations.training > 0
    trained_on_responses = decoder.config.trained_on_responses
    notes += situations.notes(trained_on_responses, phase.decoder.response_dropout)
    if accelerator.is_main_process:
        console.print(_first_line(name, config, accelerator, model), highlight=False, soft_wrap=True)
        for note in notes + _scarce_controls(samplers[0]):
            console.print(f"note: {note}", markup=False, soft_wrap=True)
    if config.gradient_checkpointing:
        decoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        decoder.backbone.compile()

    def finished(weights: Path) -> PerturbationDecoder | PeftModel:
        trained, _ = _decoder(phase, data)
        _inner(trained).config.trained_on_responses = trained_on_responses
        load_trained(trained, weights)
        return trained

    def judge_weights(weights: Path) -> float:
        assert judge is not None
        # What else is drawn at random in this process stays as it is.
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            save_decoder(finished(weights), Path(folder), {})
            return judge(Path(folder))

    losses = SetLosses(config.loss, config.compile and accelerator.device.type == "cuda")
    score = judge and judge_weights
    trainer = Trainer(name, config, model, losses, *samplers, assembler, work, accelerator, console, score)
    return trainer, finished


def _decoder(phase: Phase, data: Dataset, trains: bool = False) -> tuple[PerturbationDecoder | PeftModel, list[str]]:
    """The model before training, and notes; one that only takes what was trained has a base in 4 bits as float32."""
    bf16 = phase.config.precision == "bf16"
    compute = (torch.bfloat16 if bf16 else torch.float32) if trains else None
    model, notes = build_decoder(phase.decoder, data, phase.base, phase.seed, compute)
    decoder = _inner(model)
    decoder.config.recipe_fingerprint = phase.recipe_fingerprint
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


def _save(
    phase: Phase,
    data: Dataset,
    selection: Selection | None,
    trained: PerturbationDecoder | PeftModel,
    final: Path,
    console: Console,
) -> None:
    """Save the decoder with its recipe and its record, and say how it compares with its start."""
    record: dict[str, Any] = {
        "phase": phase.name,
        "fingerprint": phase.fingerprint,
        "base": phase.base,
        "simulated": data.cells.meta["simulated"],
    }
    if selection is not None:
        console.print(f"{phase.name}: validation {selection}", highlight=False, soft_wrap=True)
        record["validation"] = asdict(selection)
    if phase.untrained is not None:
        for note in _beside_untrained(phase.untrained, selection):
            console.print(f"[yellow]warning[/yellow] {note}", highlight=False, soft_wrap=True)
    with whole_folder(final) as partial:
        save_decoder(trained, partial, {"recipe.json": phase.recipe, "training.json": record})


def _claim(folder: Path, fingerprint: str, accelerator: Accelerator) -> None:
    """Throw away checkpoints and log lines of another recipe."""
    owner = folder / "owner.json"
    if accelerator.is_main_process and not (owner.exists() and read_json(owner)["fingerprint"] == fingerprint):
        # First of all the claim: a stop in the middle must not leave half a checkpoint under its old owner.
        owner.unlink(missing_ok=True)
        empty_folder(folder)
        write_json(owner, {"fingerprint": fingerprint})
    accelerator.wait_for_everyone()


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


@dataclass(frozen=True)
class Situations:
    """How many of the groups that a phase trains on, validates on and tests have a known response, of how many.

    Attributes:
        training, validation, test: share of the groups whose response is known, 0 to 1; 0 without groups.
    """

    training: float
    validation: float
    test: float

    @classmethod
    def of(cls, data: Dataset, training: list[Group], assembler: Assembler) -> Situations:
        """The situations of a phase."""
        groups = [training, data.split.groups("validation"), data.split.groups("test")]
        return cls(*(sum(assembler.knows(*group) for group in part) / max(1, len(part)) for part in groups))

    @property
    def hidden(self) -> float:
        """Share of the validation sets to hide a known response in, so that as many lack one as in the test."""
        return max(0.0, 1.0 - self.test / self.validation) if self.validation > 0 else 0.0

    def notes(self, trained_on_responses: bool, dropout: float) -> list[str]:
        """What the phase cannot learn or see of what the test asks for, one sentence each."""
        notes = []
        if self.test > 0 and self.validation == 0:
            notes.append(
                f"{self.test:.0%} of the test groups have a known response, no validation group has one: validation "
                "cannot tell whether training helps there; hold out groups whose perturbation was measured elsewhere"
            )
        if self.test > 0 and not trained_on_responses:
            notes.append("no training group has a known response either: where one is known, the decoder repeats it")
        if self.test < 1 and self.training == 1 and dropout == 0:
            notes.append(
                f"{1 - self.test:.0%} of the test groups have no known response, all training sets have one; set "
                "decoder.response_dropout above 0"
            )
        return notes


def _samplers(
    phase: Phase, data: Dataset, training: list[Group], situations: Situations
) -> tuple[SetSampler, SetSampler | None]:
    config, seed = phase.config, phase.seed
    # Validation is not narrowed to the phase's contexts: a base is chosen by how well it serves where it will be used.
    validation = data.split.groups("validation")
    dropout = phase.decoder.code_dropout, phase.decoder.response_dropout
    sampler = SetSampler(data, training, config.set_size, seed, *dropout, _weights(config, training))
    hidden = situations.hidden
    return sampler, SetSampler(data, validation, config.set_size, seed, 0.0, hidden) if validation else None


def _weights(config: TrainConfig, groups: list[Group]) -> dict[Group, float]:
    """The weight of each training group."""
    return {
        (context, perturbation): config.context_weights.get(context, 1.0)
        * config.perturbation_weights.get(perturbation, 1.0)
        for context, perturbation in groups
    }
