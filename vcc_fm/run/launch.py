"""Run a stage in several processes on this node.

Neither by `accelerate launch`, which starts one process where it finds no GPU, nor by torchrun, which hides the exit
codes of its processes behind a traceback of its own and leaves them running when it is killed itself. The processes
see the environment that torchrun would give them, and find out by themselves whether there is a GPU for each.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from vcc_fm.ground.errors import TRY_AGAIN, TryAgain, UserError
from vcc_fm.recipe.recipe import RunRecipe

if TYPE_CHECKING:
    from torch.distributed import TCPStore

GRACE = 10.0
"""Seconds that the others have to end by themselves, and to say why, after one process failed."""
TIME_TO_SAVE = 30.0
"""Seconds that the processes have to end by themselves, and to save their work, after this one was told to end."""


def launch(name: str, program: Sequence[str], recipe: RunRecipe, processes: int, console: Console) -> None:
    """Run a program on ``recipe`` in several processes that form one group; returns when all have ended well.

    Args:
        name: what messages call it.
        program: what Python is told to run, with :func:`vcc_fm.run.script.script_main` as its body.
        recipe: what it runs on, overrides included.
        processes: how many take part.
        console: where the first of them prints; all print errors on stderr.

    Raises:
        UserError: a process ended by a user's error, or was killed.
        TryAgain: the processes stopped where they can go on.
        RuntimeError: a process ended by a fault.
    """
    with tempfile.TemporaryDirectory() as scratch:
        resolved = Path(scratch, "recipe.yaml")
        resolved.write_text(recipe.model_dump_json())
        quiet = ["--quiet"] if console.quiet else []
        command = [sys.executable, *program, str(resolved), "--launched", *quiet]
        # What the later processes say is kept apart: most of it the first one says too.
        said = [Path(scratch, f"stderr-{rank}").open("w+") for rank in range(1, processes)]
        store, environments = _group(processes)
        workers = [
            subprocess.Popen(  # noqa: S603
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=sys.stderr if console.stderr else None,
                stderr=said[rank - 1] if rank else None,
            )
            for rank, environment in enumerate(environments)
        ]
        try:
            codes = _wait(workers)
        except SystemExit:  # SIGTERM, or its like
            _judge(name, _stop(workers), said)
            raise
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            del store
        _judge(name, codes, said)


def _group(processes: int) -> tuple[TCPStore, list[dict[str, str]]]:
    """The store by which the processes find each other, to be held while they run, and the environment of each.

    It listens on this machine alone; the first process would open it to every network that the machine is in.
    """
    from torch.distributed import TCPStore

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    port = listening.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    group |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    group |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    threads = {"OMP_NUM_THREADS": "1"}
    return store, [threads | os.environ | group | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]


def _wait(workers: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all; where one fails the others are ended after a while, as they would wait for it."""
    deadline = None
    while None in (codes := [worker.poll() for worker in workers]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    # A process that had to be ended did not fail by itself.
    return [code or 0 for code in codes]


def _stop(workers: list[subprocess.Popen[bytes]]) -> list[int]:
    """Tell all to end, and wait until they have; their exit codes, 0 for one that had to be killed."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + TIME_TO_SAVE
    while None in (codes := [worker.poll() for worker in workers]) and time.monotonic() < deadline:
        time.sleep(0.05)
    # A process that knows of no saving is ended by the signal itself, as was asked.
    return [max(0, code or 0) for code in codes]


def _judge(name: str, codes: list[int], said: Sequence[TextIO]) -> None:
    if codes[0] == 2:
        raise UserError(f"{name} stopped; its message stands above")
    wrong = next((rank for wanted in (2, TRY_AGAIN, 1) for rank, code in enumerate(codes) if code == wanted), None)
    text = ""
    if wrong:
        said[wrong - 1].seek(0)
        text = said[wrong - 1].read().strip()
    if 2 in codes:
        raise UserError(text.rpartition("error: ")[2])
    if TRY_AGAIN in codes:
        raise TryAgain(f"{name} stopped" if codes[0] == TRY_AGAIN else text.rpartition("error: ")[2])
    told = next((code - 128 for code in codes if code > 128), None)
    if told is not None:
        raise TryAgain(f"{name}: a process was ended by {signal.Signals(told).name}")
    killed = next((code for code in codes if code < 0), None)
    if killed is not None:
        raise UserError(
            f"{name}: a process was ended by {signal.Signals(-killed).name}; if memory ran out, lower "
            "train.micro_sets, data.memory_mb or --processes, then run the same command again to go on"
        )
    if any(codes):
        raise RuntimeError(f"{name} failed in one of {len(codes)} processes" + (f": {text[-400:]}" if text else ""))
