"""Which processes take part: one place that finds out, whoever launched them."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed import PrefixStore, Store, TCPStore, register_rendezvous_handler

from vcc_fm.ground.errors import UserError

PATIENCE = datetime.timedelta(days=2)
"""How long processes wait for each other."""
MEETING = datetime.timedelta(minutes=10)
"""How long processes that a launcher started again wait until all have come."""
_AGAIN = "vcc-fm-again"


def process_state() -> PartialState:
    """This process among its peers.

    Accelerate looks for peers only on devices that it finds, unless it is told to use the CPU: without this, several
    CPU processes that torchrun starts would each believe to be alone and write over one another.
    """
    here = torch.accelerator.is_available()
    if not here:
        # Accelerate imports DeepSpeed where it is installed, which warns of a missing GPU unless told to expect none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not here)
    # One process may work alone for hours (on a large file, on a slow disk), which is no fault of the others that
    # wait; one that is gone is noticed by its silence (ground/peers.py).
    options: dict[str, Any] = {"timeout": PATIENCE} if several else {}
    if attempt() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        options["init_method"] = f"{_AGAIN}://"
    return PartialState(cpu=cpu, **options)


def attempt() -> int:
    """How often the launcher has started its processes again (``--max_restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meet_again(url: str, timeout: datetime.timedelta, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """Meet in the launcher's store, apart from what earlier attempts left there.

    The store outlives the processes, and torch 2.13 writes under the same names again: one that starts late reads the
    address of a process that is gone.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = PrefixStore(f"attempt {attempt()}", TCPStore(host, port, world, is_master=False, timeout=timeout))
    store.set(f"here/{rank}", "")
    # One that another node started another number of times does not come.
    store.wait([f"here/{peer}" for peer in range(world)], MEETING)
    yield store, rank, world


register_rendezvous_handler(_AGAIN, _meet_again)


def leave_a_core_to_the_loader() -> None:
    """On a CPU, let torch use one core less than there are for this process, unless OMP_NUM_THREADS says otherwise.

    Batches are assembled by a thread beside the model. With as many workers as cores, the two take turns at stalling
    each other: a step of a small model was seen to take fifteen times as long.
    """
    state = process_state()
    if state.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() // _peers() - 1))


def spare_cores() -> int:
    """Cores that this process may use while each of its peers on the same machine uses one."""
    return max(1, _cores() - _peers() + 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _peers() -> int:
    """Processes of this launch on this machine, this one among them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_compiler(key: str) -> None:
    """Refuse the key of a recipe that asks torch to compile where there is nothing to compile with.

    Raises:
        UserError: no C compiler is on the path, and ``CC`` names none.
    """
    if "CC" not in os.environ and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise UserError(f"{key}: torch compiles with a C compiler, and none is found; install gcc, or set {key}=false")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM and SIGUSR1, by which schedulers announce the end, are noted and not obeyed.

    Yields:
        A function that says whether one of them has come.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
