"""A training step's computation as CUDA graphs: some hundred small kernels that start at once, not one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vcc_fm.cellsets.batch import Fed
from vcc_fm.ground.errors import UserError


class Recorded:
    """Calls ``compute``; where a model trains, replays its forward and backward pass, compiled and recorded once.

    What a replay returns, gradients included, lies in memory that the next one overwrites: it must be used up by then.
    All batches to train on have one shape, and the weights stay in the memory where they were recorded.

    Args:
        compute: of a model, a batch and constants a dict of tensors.
    """

    def __init__(self, compute: Callable[..., dict[str, torch.Tensor]]):
        self._compute = compute
        self._step: _Step | None = None

    def __call__(self, model: nn.Module, batch: Fed, *constants: Any) -> dict[str, torch.Tensor]:
        """As ``compute`` of the same arguments.

        Raises:
            UserError: torch could not compile or record it.
        """
        if not (model.training and torch.is_grad_enabled()):
            return self._compute(model, batch, *constants)
        fields = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        if self._step is None:
            self._step = _Step(torch.compile(self._compute), model, batch, list(fields), constants)
            _record(self._step, tuple(fields.values()))
        # Torch would copy one into the other's memory.
        assert self._step.shapes == [value.shape for value in fields.values()], "a batch of another shape"
        return dict(zip(self._step.returns, self._step(*fields.values()), strict=True))


class _Step(nn.Module):
    """The computation as torch records it: a module, which has the parameters, from tensors to tensors.

    Attributes:
        shapes: of the tensors.
        returns: names of what it returns.
    """

    def __init__(
        self,
        compute: Callable[..., dict[str, torch.Tensor]],
        model: nn.Module,
        batch: Fed,
        names: list[str],
        constants: tuple[Any, ...],
    ):
        super().__init__()
        self.model, self.returns = model, list[str]()
        self.shapes = [getattr(batch, name).shape for name in names]
        self._compute, self._batch, self._names, self._constants = compute, batch, names, constants

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is computed of the batch's tensors."""
        batch = replace(self._batch, **dict(zip(self._names, tensors, strict=True)))  # type: ignore[type-var]
        found = self._compute(self.model, batch, *self._constants)
        self.returns = list(found)
        return tuple(found.values())


def _record(step: _Step, sample: tuple[torch.Tensor, ...]) -> None:
    """Let ``step`` replay what it does; ``sample`` becomes the memory that its arguments are copied into.

    Raises:
        UserError: see above.
    """
    # A recording keeps what adds up gradients on the stream that it was made on.
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
    try:
        # The runs before the recording leave no trace in what is drawn at random.
        with torch.random.fork_rng([sample[0].device]):
            torch.cuda.make_graphed_callables(step, sample, allow_unused_input=True)
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"torch could not compile a training step ({reason}); set compile=false") from error
