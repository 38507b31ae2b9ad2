"""A process that is silent, failed or gone is noticed by those that wait for it; one that ended is not missed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from torch.distributed import TCPStore

from vcc_fm.ground import peers
from vcc_fm.ground.peers import Peers, lost_connection


@pytest.fixture(autouse=True)
def meeting_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    """A store on this machine, and beats twenty times as fast."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(peers, "BEAT", 0.1)
    return store


def gone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes of those that would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(peers.os, "_exit", codes.append)
    return codes


def silenced(one: Peers) -> None:
    """From here on it leaves no sign, as if its machine had lost its power."""
    one._closed.wait = lambda _: time.sleep(60) or False  # type: ignore[method-assign, func-returns-value]


def until(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.02)
    assert condition()  # type: ignore[operator]


def test_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = gone(monkeypatch)
    with Peers(0, 2, 1.0) as one, Peers(1, 2, 1.0):
        time.sleep(1.5)
        assert one.lost() is None
    assert codes == []


def test_one_that_ended_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = gone(monkeypatch)
    with Peers(0, 2, 0.5):
        with Peers(1, 2, 0.5):
            time.sleep(0.5)
        time.sleep(1.5)
    assert codes == []


def test_a_silent_one_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    codes = gone(monkeypatch)
    with Peers(0, 2, 1.0) as one, Peers(1, 2, 1000.0) as other:
        until(lambda: one._said[1][0])
        silenced(other)
        until(lambda: codes)
        assert "process 1 (" in str(one.lost())
    assert codes[0] == 75
    said = capsys.readouterr().err
    assert "error: process 1 (" in said
    assert "has been silent for 1 s; run the same command again to go on" in said


def test_one_that_failed_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = gone(monkeypatch)
    with Peers(0, 2, 1000.0) as one:
        with suppress(OSError), Peers(1, 2, 1000.0):
            until(lambda: one._said[1][0])
            raise OSError("out of memory")
        until(lambda: codes)
        assert "ended with an error" in str(one.lost())


def test_a_meeting_place_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone(monkeypatch)
    with Peers(0, 1, 1000.0) as one:
        time.sleep(0.3)
        monkeypatch.setenv("MASTER_PORT", "1")
        one._port = 1
        one._store_heard -= 60.0
        assert "the machine by which the processes meet (127.0.0.1) has been silent for 60 s" in str(one._silent(30.0))


def test_the_others_are_not_blamed_for_the_silence_of_the_meeting_place() -> None:
    one = Peers(0, 2, 10.0)  # never begun: it hears nothing
    now = time.monotonic()
    one._said[1] = "process 1 (host, pid 1)\n5", now - 12.0
    one._store_heard = now - 9.0
    assert one._silent(10.0) is None
    one._store_heard = now - 11.0
    assert "by which the processes meet" in str(one._silent(10.0))
    one._store_heard = now
    assert "process 1 (host, pid 1) has been silent for 12 s" in str(one._silent(10.0))


def test_the_others_are_not_blamed_for_the_time_that_this_one_was_suspended() -> None:
    one = Peers(0, 2, 10.0)  # never begun: it hears nothing
    now = time.monotonic()
    one._said[1], one._store_heard = ("process 1 (host, pid 1)\n5", now - 62.0), now - 61.0
    one._forgive(60.0)
    assert one._silent(10.0) is None
    one._said[1], one._store_heard = ("process 1 (host, pid 1)\n5", now), now  # heard before this was noticed
    one._forgive(3600.0)
    assert one._store_heard - now < 1.0
    assert one._said[1][1] - now < 1.0
    one._forgive(-3600.0)
    assert one._store_heard - now < 1.0


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("NCCL error in: ncclRemoteError"), True),
        (RuntimeError("wait timeout after 600000ms, keys: /attempt 1/here/0"), True),
        (RuntimeError("size (320) must match (0)"), False),
        (ValueError("gloo"), False),
    ],
)
def test_a_broken_connection_is_told_from_a_fault(error: Exception, lost: bool) -> None:
    assert lost_connection(error) == lost
