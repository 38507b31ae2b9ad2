"""A training phase from its stores to a saved decoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from rich.console import Console
from torch import nn

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import Assembler, SetSampler
from vcc_fm.decoder.build import build_decoder, not_finite, vocabulary_of
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import empty_folder, read_json, whole_folder, write_json
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.outputs import Output
from vcc_fm.training.checkpoint import save_decoder
from vcc_fm.training.loop import Selection, Trainer, make_accelerator


def train(recipe: Recipe, output: Output, console: Console) -> None:
    """Train one phase of one fold, resuming where an earlier run of the same recipe stopped, and save the decoder.

    Args:
        recipe: what to train.
        output: the decoder: ``pretrain`` makes the recipe's base, ``train`` its model.
        console: where progress goes.

    Raises:
        UserError: an earlier stage is missing, there is nothing to train on, or the recipe does not fit the data or
            the processes.
    """
    several = f" (fold {output.fold}, the last is {recipe.split.folds - 1})" if recipe.split.folds > 1 else ""
    console.rule(f"{output.phase}{several}", style="dim")
    train_phase(recipe, load_dataset(recipe, output.fold), output, console)


def train_phase(recipe: Recipe, data: Dataset, output: Output, console: Console) -> None:
    """:func:`train` on the stores and the split ``data``."""
    layout, fold, phase = Layout(recipe), output.fold, output.phase
    config = recipe.pretrain if phase == "pretrain" else recipe.train
    assert config is not None
    folder, fingerprint = layout.phase(fold, phase), output.fingerprint
    accelerator = make_accelerator(config, folder)
    _claim(folder, fingerprint, accelerator)
    if config.tracker != "none":
        accelerator.init_trackers(f"{recipe.name}-{phase}")
    base = "scratch" if phase == "pretrain" else recipe.decoder.base
    if base == "pretrain":
        base = str(layout.decoder(fold, "pretrain").require(content=True))
    model, notes = build_decoder(recipe, data, str(expand(base)), recipe.seed)
    decoder = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(decoder, PerturbationDecoder)
    vocabulary, takes_responses = vocabulary_of(decoder.config), decoder.config.response
    assembler = Assembler(data, vocabulary, config.set_size, takes_responses, accelerator.device)
    situations = Situations.of(data, config, assembler)
    samplers = _samplers(recipe, data, config, situations)
    decoder.config.trained_on_responses |= situations.training > 0
    notes += situations.notes(decoder.config.trained_on_responses, recipe.decoder.response_dropout)
    trainer = Trainer(phase, config, model, *samplers, assembler, folder, accelerator, console)
    if accelerator.is_main_process:
        total, trainable = count_parameters(model)
        console.print(f"{phase}: {trainable:,} of {total:,} parameters train, {accelerator.num_processes} process(es)")
        if scarce := samplers[0].scarce_controls():
            fewest = min(scarce, key=scarce.__getitem__)
            notes.append(
                f"{len(scarce)} batches have fewer control cells than a set needs ({fewest!r}: {scarce[fewest]}); "
                "a set of theirs shows some controls more than once"
            )
        for note in notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
    trained = trainer.run()
    if wrong := not_finite(trained):
        raise UserError(f"{phase}: {len(wrong)} tensors are not finite, such as {wrong[0]}; the model is not saved")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        record = {"phase": phase, "fingerprint": fingerprint, "base": base, "simulated": data.cells.meta["simulated"]}
        if trainer.selection is not None:
            console.print(f"{phase}: validation loss: {trainer.selection}", highlight=False, soft_wrap=True)
            record["validation_loss"] = asdict(trainer.selection)
        if phase == "train" and recipe.decoder.base == "pretrain":
            for note in _beside_untrained(layout.decoder(fold, "pretrain").path, trainer.selection):
                console.print(f"[yellow]warning[/yellow] {note}", highlight=False, soft_wrap=True)
        with whole_folder(output.path) as partial:
            save_decoder(trained, partial, {"recipe.json": recipe.public(), "training.json": record})
    accelerator.wait_for_everyone()
    # Not `end_training`, which would also part the processes that the next phase needs together.
    for tracker in accelerator.trackers:
        tracker.finish()
    # The next phase may ask for another precision, which one shared state cannot hold.
    AcceleratorState._reset_state()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(total, trainable) number of parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


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
    then = read_json(base / "training.json").get("validation_loss")
    if then is None or selection is None or selection.best is None or selection.best <= then["start"]:
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
    def of(cls, data: Dataset, config: TrainConfig, assembler: Assembler) -> Situations:
        """The situations of a phase."""
        groups = [_training_groups(data, config), data.split.groups("validation"), data.split.groups("test")]
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


def _training_groups(data: Dataset, config: TrainConfig) -> list[tuple[str, str]]:
    contexts = set(config.contexts or data.cells.contexts)
    unknown = sorted(contexts - set(data.cells.contexts))
    if unknown:
        raise UserError(f"contexts {unknown} of the recipe are not among the cells' contexts {data.cells.contexts}")
    return [group for group in data.split.groups("train") if group[0] in contexts]


def _samplers(
    recipe: Recipe, data: Dataset, config: TrainConfig, situations: Situations
) -> tuple[SetSampler, SetSampler | None]:
    training = _training_groups(data, config)
    # Validation is not narrowed to the phase's contexts: a base is chosen by how well it serves where it will be used.
    validation = data.split.groups("validation")
    dropout = recipe.decoder.code_dropout, recipe.decoder.response_dropout
    sampler = SetSampler(data, training, config.set_size, recipe.seed, *dropout, _weights(config, training))
    hidden = situations.hidden
    return sampler, SetSampler(data, validation, config.set_size, recipe.seed, 0.0, hidden) if validation else None


def _weights(config: TrainConfig, groups: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The weights of training groups.

    Raises:
        UserError: a weight is given to what no training group has.
    """
    for given, known, what in (
        (config.context_weights, {context for context, _ in groups}, "context"),
        (config.perturbation_weights, {perturbation for _, perturbation in groups}, "perturbation"),
    ):
        if unknown := sorted(given.keys() - known):
            raise UserError(f"train.{what}_weights: no training group has the {what}s {unknown}; take them out")
    return {
        (context, perturbation): config.context_weights.get(context, 1.0)
        * config.perturbation_weights.get(perturbation, 1.0)
        for context, perturbation in groups
    }
