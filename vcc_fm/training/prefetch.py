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
        # Copies to a GPU beside what it computes: on the stream of the computation they would wait for it, and it for
        # them.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._keys, self._ahead = iter(keys), deque[Future[tuple[Fed, torch.cuda.Event | None]]]()
        for _ in range(depth):
            self._ask()

    def _ask(self) -> None:
        """Begin the next batch, if there is one."""
        for key in self._keys:
            self._ahead.append(self._pool.submit(self._work, key))
            return

    def _work(self, key: int) -> tuple[Fed, torch.cuda.Event | None]:
        """A batch on the device, and when it will be there."""
        batch = self._make(key)
        if self._copies is None:
            return batch.to(self._device), None
        with torch.cuda.stream(self._copies):
            # From page-locked memory, which alone is copied beside the computation.
            return batch.pinned().to(self._device), self._copies.record_event()

    def __iter__(self) -> Iterator[Fed]:
        while self._ahead:
            start = time.perf_counter()
            batch, there = self._ahead.popleft().result()
            self.waited += time.perf_counter() - start
            self._ask()
            if there is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(there)
                batch.used_by(stream)
            yield batch

    def close(self) -> None:
        """Stop the threads; batches not yet asked for are thrown away."""
        self._pool.shutdown(cancel_futures=True)
