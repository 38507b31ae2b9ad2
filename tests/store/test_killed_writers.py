"""A writer killed at any moment leaves a whole folder or none; of two writers, one waits."""

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.errors import UserError
from vcc_fm.recipe import DataConfig
from vcc_fm.store.arrow import DATA_FILE
from vcc_fm.store.cells import CellStore
from vcc_fm.store.folder import one_writer, sha256_file, whole_folder, write_json
from vcc_fm.store.prepare import write_cell_store


def child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its id."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_killed_writer_leaves_an_old_store_a_new_one_or_none(tmp_path):
    labels = np.array([CONTROL, "A", "B"])[np.arange(60) % 3]
    config = write_screen(tmp_path, "s0", screen(np.random.default_rng(0).poisson(2.0, (60, 8)), "K", "1", labels))
    whole = {write_store(tmp_path / f"seed{seed}", [config], seed).meta["sha256"]: seed for seed in (0, 1)}
    final, log = tmp_path / "cells", tmp_path / "log"

    def write(seed: int) -> None:
        with one_writer(final), whole_folder(final) as partial:
            data = DataConfig(sources=[config])
            write_cell_store(partial, data, [config], seed, str(seed), False, lambda *_: None)

    def write_for_ever() -> None:
        for number in range(10_000):
            write(number % 2)
            log.write_text(str(number))

    found = []
    rng = np.random.default_rng(0)
    for _ in range(8):
        log.unlink(missing_ok=True)
        process = child(write_for_ever)
        wait_until(log.exists)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if final.exists():
            store = CellStore(final)
            digest = sha256_file(final / DATA_FILE)
            assert store.meta["sha256"] == digest
            assert store.fingerprint == str(whole[digest])
            found.append(digest)
    assert found
    # The lock of a killed writer is free, and what it left behind is in nobody's way.
    write(1)
    assert CellStore(final).meta["sha256"] in whole
    assert {path.name for path in tmp_path.glob("cells*")} == {"cells"}


def test_a_writer_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path):
    final = tmp_path / "cells"
    with whole_folder(final) as partial:
        (partial / "content").write_text("old")

    def fail() -> None:
        with whole_folder(final) as partial:
            (partial / "content").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
    assert (final / "content").read_text() == "old"


def test_of_two_writers_one_waits(tmp_path):
    final, log = tmp_path / "cells", tmp_path / "log"

    def write(name: str) -> None:
        for _ in range(5):
            with one_writer(final), log.open("a") as file:
                file.write(f"{name} begins\n")
                file.flush()
                time.sleep(0.01)
                file.write(f"{name} ends\n")

    for process in [child(lambda name=name: write(name)) for name in ("one", "two")]:
        os.waitpid(process, 0)
    lines = log.read_text().splitlines()
    assert len(lines) == 20
    assert {line.split()[0] for line in lines} == {"one", "two"}
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert second == first.replace("begins", "ends")


def test_a_writer_that_waits_in_vain_says_so(tmp_path):
    final, held = tmp_path / "cells", tmp_path / "held"

    def hold() -> None:
        with one_writer(final):
            held.touch()
            time.sleep(20)

    process = child(hold)
    wait_until(held.exists)
    with pytest.raises(UserError, match=r"cells: another run has been writing it for 0 s; wait for it or stop it"):
        with one_writer(final, wait_seconds=0.05):
            pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with one_writer(final, wait_seconds=5):
        pass


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "store.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": [1] * 100 + [float("nan")]})
    assert path.read_text() == '{\n "a": 1\n}\n'
