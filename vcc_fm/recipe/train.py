"""Sections on training."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.section import Fraction, PositiveFloat, PositiveInt, Section


class LossWeights(Section):
    """Weights of the three loss terms, each averaged over genes and sets."""

    likelihood: float = Field(
        1.0, ge=0, description="negative-binomial negative log-likelihood, nats per gene and cell"
    )
    energy: float = Field(0.1, ge=0, description="energy distance between predicted and measured sets, log1p CP10k")
    delta: float = Field(1.0, ge=0, description="squared error of the set's pseudobulk log ratio to control")


class TrainConfig(Section):
    """One training phase. The trajectory depends on `batch_sets`, never on how devices share it."""

    contexts: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="contexts to train on; null means every one with training cells"
    )
    steps: PositiveInt = Field(description="optimiser steps")
    context_weights: dict[str, PositiveFloat] = Field(
        {}, description="context -> how many times an epoch goes through its cells, fractions allowed; 1 if not named"
    )
    perturbation_weights: dict[str, PositiveFloat] = Field(
        {}, description="the same for perturbations; the two weights of a group are multiplied"
    )
    set_size: PositiveInt = Field(32, description="cells in a set (S)")
    batch_sets: PositiveInt = Field(8, description="sets in an optimiser step, over all devices")
    micro_sets: PositiveInt | None = Field(
        None, description="sets on a device at a time; null: batch_sets / processes"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    warmup: Fraction = Field(0.1, description="share of the steps with rising learning rate, cosine decay follows")
    clip: PositiveFloat | None = Field(1.0, description="largest global norm of the gradient; null: no limit")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="arithmetic of the backbone; heads and losses stay fp32, their products on a GPU TF32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute the backbone's hidden states twice rather than keep them; less memory, more time"
    )
    compile: bool = Field(
        False,
        description="compile the backbone, and on a GPU the losses (torch.compile); the first steps take longer",
    )
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of a running mean of the weights (0.999), which is then judged and saved; null: none"
    )
    not_finite: Literal["stop", "skip"] = Field(
        "stop", description="a step whose gradient is not finite ends the run, or is left out and counted"
    )
    loss: LossWeights = Field(LossWeights(), description="weights of the loss terms")
    eval_every: PositiveInt = Field(100, description="steps between evaluations on the validation split")
    select: str = Field(
        "loss",
        description="what the best weights are chosen by on the validation groups: loss; mean, the scaled mean of the "
        "metrics of score.preset; or one of these metrics by name",
    )
    patience: PositiveInt | None = Field(
        None, description="evaluations without improvement after which training ends; null: it runs through"
    )
    eval_sets: PositiveInt = Field(256, description="most sets in an evaluation")
    log_every: PositiveInt = Field(20, description="steps between log lines")
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints to resume from")
    keep_checkpoints: PositiveInt = Field(2, description="checkpoints kept")
    prefetch: PositiveInt = Field(2, description="batches assembled ahead; on a GPU each by a thread of its own")
    processes: PositiveInt | None = Field(None, description="processes that must take part; another number is refused")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = Field("tensorboard", description="where curves go")

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        if self.micro_sets is not None and self.batch_sets % self.micro_sets:
            raise ValueError(
                f"train.batch_sets={self.batch_sets} is not a multiple of train.micro_sets={self.micro_sets}"
            )
        return self

    def micro_batches(self, processes: int) -> tuple[int, int]:
        """How the sets of a step are shared: (sets that a process takes at a time, how many times a step)."""
        micro = self.micro_sets or self.batch_sets // processes
        return micro, self.batch_sets // (processes * micro)

    def check_tracker(self, name: str) -> None:
        """Refuse a tracker that is not installed, which Accelerate would go on without; ``name`` is the phase.

        Raises:
            UserError: it is not.
        """
        if self.tracker != "none" and find_spec(self.tracker) is None:
            raise UserError(
                f"{name}.tracker={self.tracker} is not installed: pip install {self.tracker}, or set it to none"
            )

    def check_processes(self, processes: int, name: str) -> None:
        """Refuse a number of processes that cannot share the sets of an optimiser step.

        Args:
            processes: that take part.
            name: of the phase, which is its section in the recipe.

        Raises:
            UserError: it is not the recipe's, or the sets cannot be shared evenly.
        """
        if self.processes is not None and self.processes != processes:
            raise UserError(
                f"{name}.processes={self.processes}, but {processes} take part; pass --processes {self.processes} "
                "(`accelerate launch --cpu` starts one process whatever it is asked for)"
            )
        if self.batch_sets % (processes * (self.micro_sets or 1)):
            raise UserError(
                f"{name}.batch_sets={self.batch_sets} is not a multiple of {processes} processes x "
                f"{name}.micro_sets={self.micro_sets or 1}"
            )
