"""How fast training goes: rates over some steps, and how much of what the device can do that is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vcc_fm.cellsets.batch import Fed
from vcc_fm.training.prefetch import Prefetcher
from vcc_fm.training.tracking import peak_memory_gb

WIDTH = {"cuda": 4096, "cpu": 512}
"""Of the square matrices whose product measures a device."""


@dataclass(frozen=True)
class Work:
    """What a micro-batch costs, and what the device can do.

    Attributes:
        operations: floating-point operations of the products of a forward and a backward pass.
        possible: operations a second of a large product of matrices, measured on this device, in this precision.
    """

    operations: float
    possible: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, batch: Fed, trainable: float, dtype: torch.dtype) -> Work:
        """Count by one forward pass of the unwrapped ``model``; every process makes it, as its parts come together.

        Backward costs a forward once for the gradients of what comes in, and once more for those of the weights that
        train, the share ``trainable`` of all.
        """
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            model(batch)
        return cls(counter.get_total_flops() * (2.0 + trainable), _measured(batch.device, dtype))


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square product of matrices, the best of some."""
    width = WIDTH.get(device.type, 512)
    # Not of ones, whose product comes an eighth faster: few of its bits change.
    random = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(width, width, device=device, dtype=dtype, generator=random)
    best = math.inf
    for _ in range(6):
        begin = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - begin)
    return 2.0 * width**3 / best


class Window:
    """What happened since the last log line.

    Args:
        loader: of the batches.
        terms: names of the loss terms.
        work: of a micro-batch.
    """

    def __init__(self, loader: Prefetcher, terms: list[str], work: Work):
        self._loader, self._names, self._work = loader, terms, work
        self._start, self._waited = time.perf_counter(), loader.waited
        # Micro-batches, cells and tokens; loss terms. Added up on the device: asking for a number would wait for it.
        self._amounts, self._sums = torch.zeros(3), torch.zeros(len(terms))
        self.left_out = 0

    def add(self, terms: dict[str, torch.Tensor], batch: Fed, taken: torch.Tensor) -> None:
        """A micro-batch, with its loss terms [B]; it counts if its step was taken (a bool on the device)."""
        means = torch.stack([terms[name].detach().mean() for name in self._names])
        self._amounts = self._amounts.to(means) + torch.stack([taken, batch.cells * taken, batch.tokens * taken])
        self._sums = self._sums.to(means) + torch.where(taken, means, 0.0)

    def summary(self, accelerator: Accelerator, rate: float) -> dict[str, float]:
        """Mean loss terms, unweighted, and rates over all processes; waiting, memory and use of this device."""
        here = self._amounts[0].item()
        # Where every step was left out there is no mean.
        means = accelerator.reduce(self._sums / self._amounts[0], "mean").tolist()
        _, cells, tokens = accelerator.reduce(self._amounts, "sum").tolist()
        seconds = time.perf_counter() - self._start
        return {
            **dict(zip(self._names, means, strict=True)),
            "lr": rate,
            "cells_per_s": cells / seconds,
            "tokens_per_s": tokens / seconds,
            "mfu_percent": 100.0 * here * self._work.operations / seconds / self._work.possible,
            "loader_wait_percent": 100.0 * (self._loader.waited - self._waited) / seconds,
            "peak_memory_gb": peak_memory_gb(),
            **({"steps_left_out": self.left_out} if self.left_out else {}),
        }
