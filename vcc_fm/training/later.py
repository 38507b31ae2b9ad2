"""Numbers that are told to a GPU now and read later."""

from __future__ import annotations

import torch


class Later:
    """A number that the GPU may still be computing. Reading it waits for that number only."""

    def __init__(self, value: torch.Tensor):
        self._value = value.to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def __float__(self) -> float:
        if self._there is not None:
            self._there.synchronize()
        return float(self._value)
