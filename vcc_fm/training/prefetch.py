"""Batches assembled ahead by threads, with the time that the consumer had to wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vcc_fm.cellsets.batch import Fed


class Prefetcher:
    """Iterates over ``make(0), make(1), …`` for ``keys``, at most ``depth`` batches ahead of the consumer.

    For a GPU each of these batches has a thread of its own. Where the consumer computes on the same CPU there is one
    thread for all.

    Attributes:
        waited: seconds that the consumer has waited for a batch so far.
    """

    def __init__(self, make: Callable[[int], Fed], keys: range, depth: int, device: torch.device):
        self.waited = 0.0
        self._make, self._device = make, device
        self._pool = ThreadPoolExecutor(1 if device.type == "cpu" else depth, "batches")
        self._keys, self._ahead = iter(keys), deque[Future[Fed]]()
        for _ in range(depth):
            self._ask()

    def _ask(self) -> None:
        """Begin the next batch, if there is one."""
        for key in self._keys:
            self._ahead.append(self._pool.submit(self._work, key))
            return

    def _work(self, key: int) -> Fed:
        batch = self._make(key)
        # Pinned memory lets the copy to the GPU overlap with its computation.
        return batch.pinned() if self._device.type == "cuda" else batch

    def __iter__(self) -> Iterator[Fed]:
        while self._ahead:
            start = time.perf_counter()
            batch = self._ahead.popleft().result()
            self.waited += time.perf_counter() - start
            self._ask()
            yield batch.to(self._device)

    def close(self) -> None:
        """Stop the threads; batches not yet asked for are thrown away."""
        self._pool.shutdown(cancel_futures=True)
