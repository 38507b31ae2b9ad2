"""Notice a process that is gone, by whatever way it went.

A process that is killed on this machine closes its connections, and the others see an error at once. One whose machine
lost its network, or its power, sends nothing: the others would wait for it in the middle of a sum for as long as the
process group is patient, which is days, because one process may well work alone for hours. So each process leaves a
sign of life every few seconds in the store by which they found each other, and reads those of the others.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import sys
import threading
import time
from types import TracebackType

from torch.distributed import TCPStore

from vcc_fm.ground.errors import TRY_AGAIN
from vcc_fm.ground.processes import attempt

BEAT = 2.0
"""Seconds between two signs of life."""
_ENDED, _FAILED = "ended", "failed"


class Peers:
    """Signs of life of this process, from ``with`` on, and a watch over those of the others.

    A process that is silent for too long is taken for lost: this one then says which, and ends with ``TRY_AGAIN``.

    Args:
        rank: of this process.
        world: how many there are.
        lost_after: seconds of silence.
    """

    def __init__(self, rank: int, world: int, lost_after: float):
        self._rank, self._lost_after = rank, lost_after
        self._host, self._port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        now = time.monotonic()
        self._said = {peer: ("", now) for peer in range(world) if peer != rank}
        self._store_heard = now
        self._closed, self._last = threading.Event(), _ENDED
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]

    def __enter__(self) -> Peers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._last = _ENDED if error is None else _FAILED
        self._closed.set()
        # One more beat says that this process has ended; it is not waited for long where the store is gone.
        self._threads[0].join(BEAT)

    def lost(self) -> str | None:
        """Who is gone, in one line; waits as long as it takes to tell. None: all are there."""
        deadline = time.monotonic() + 4 * BEAT
        while time.monotonic() < deadline:
            if found := self._silent(3 * BEAT):
                return found
            time.sleep(BEAT / 4)
        return None

    def _beat(self) -> None:
        """Leave signs of life, and note when those of the others changed."""
        key = f"vcc_fm/alive/{attempt()}/{{}}".format
        name = f"process {self._rank} ({socket.gethostname()}, pid {os.getpid()})"
        store, count, ended = None, 0, False
        while not ended:
            ended = self._closed.wait(BEAT if count else 0)
            try:
                if store is None:
                    # A connection of its own: what waits on the group's would hold up the beat.
                    patience = datetime.timedelta(seconds=self._lost_after)
                    store = TCPStore(self._host, self._port, timeout=patience, wait_for_workers=False)
                store.set(key(self._rank), f"{name}\n{self._last if ended else count}")
                count += 1
                for peer, (said, _) in self._said.items():
                    if store.check([key(peer)]) and (now := store.get(key(peer)).decode()) != said:
                        self._said[peer] = now, time.monotonic()
                self._store_heard = time.monotonic()
            except (RuntimeError, OSError):
                store = None

    def _watch(self) -> None:
        """End this process when another is lost: whatever it waits for does not come."""
        looked = time.monotonic()
        while not self._closed.wait(BEAT / 2):
            # Where this process was suspended itself, as schedulers do, it cannot say that the others were silent.
            self._forgive(time.monotonic() - looked - BEAT)
            looked = time.monotonic()
            if found := self._silent(self._lost_after):
                print(f"error: {found}; run the same command again to go on", file=sys.stderr, flush=True)
                os._exit(TRY_AGAIN)

    def _forgive(self, seconds: float) -> None:
        """Leave a time out of all silences, if it was one."""
        if seconds > 0:
            # What was heard since then stays as it is.
            now = time.monotonic()
            self._store_heard = min(now, self._store_heard + seconds)
            self._said = {peer: (said, min(now, heard + seconds)) for peer, (said, heard) in self._said.items()}

    def _silent(self, seconds: float) -> str | None:
        now = time.monotonic()
        if (silence := now - self._store_heard) > seconds:
            return f"the machine by which the processes meet ({self._host}) has been silent for {silence:.0f} s"
        for peer, (said, heard) in self._said.items():
            name, _, last = said.partition("\n")
            if last == _FAILED and now - heard > 3 * BEAT:
                return f"{name} ended with an error; its own message says which"
            # Up to the last word of the store: while that is silent, nothing is known of the others.
            if last != _ENDED and (silence := self._store_heard - heard) > seconds:
                return f"{name or f'process {peer}'} has been silent for {silence:.0f} s"
        return None


def lost_connection(error: BaseException) -> bool:
    """Whether an error says that a process could not be reached, rather than that something is wrong here."""
    return isinstance(error, RuntimeError) and bool(
        re.search(
            r"gloo|NCCL|[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe|recvValue|sendBytes|wait timeout",
            str(error),
        )
    )
