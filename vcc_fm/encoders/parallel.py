"""Independent pieces of work on all cores, each piece on one core: the number of cores changes no bit of a result.

Inside one matrix product, sums are split by the number of threads, and so are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_on_one_core(
    compute: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """``compute`` of every item, in order: on a CPU by as many threads as torch uses, elsewhere one by one.

    torch computes on one core until the last result has been taken.
    """
    if device.type != "cpu":
        yield from map(compute, items)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # torch tells a new thread of it too late: its first matrix products would be on all cores.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(compute, items)
    finally:
        torch.set_num_threads(threads)
