"""Batches assembled ahead by a thread, with the time that the consumer had to wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import torch

from vcc_fm.cellsets.batch import Batch


class Prefetcher:
    """Iterates over ``make(0), make(1), …`` for ``keys``, at most ``depth`` batches ahead of the consumer.

    Attributes:
        waited: seconds that the consumer has waited for a batch so far.
    """

    def __init__(self, make: Callable[[int], Batch], keys: range, depth: int, device: torch.device):
        self.waited = 0.0
        self._make, self._keys, self._device = make, keys, device
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for key in self._keys:
                batch = self._make(key)
                # Pinned memory lets the copy to the GPU overlap with its computation.
                self._put(batch.pinned() if self._device.type == "cuda" else batch)
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - whatever happens here is raised where the batch was wanted
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Batch]:
        for _ in self._keys:
            start = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - start
            if isinstance(item, BaseException):
                raise item
            yield item.to(self._device)

    def close(self) -> None:
        """Stop the thread; batches not yet asked for are thrown away."""
        self._stop.set()
        self._thread.join()
