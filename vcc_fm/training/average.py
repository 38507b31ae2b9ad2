"""A running mean of the weights, which is often better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Exponential mean of the trainable weights.

    After each step, mean = decay x mean + (1 - decay) x weights.

    It begins with the weights before the first step. The decay rises with the steps, min(decay, (1 + n) / (10 + n)),
    so that what was there before training is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._weights: list[torch.Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._mean = [weight.detach().clone() for weight in self._weights]
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._mean, self._weights, 1.0 - decay)
        self._steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the mean as its weights."""
        before = [weight.data for weight in self._weights]
        for weight, mean in zip(self._weights, self._mean, strict=True):
            weight.data = mean
        try:
            yield
        finally:
            for weight, value in zip(self._weights, before, strict=True):
                weight.data = value

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"mean": self._mean, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        for mean, value in zip(self._mean, state["mean"], strict=True):
            mean.copy_(value)
        self._steps = state["steps"]
