"""A writer killed at any moment leaves a whole folder or none; of two writers, one waits."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_screens import CONTROL, QUIET, Screen, screen, write_screen, write_store

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import one_writer, sha256_file, whole_folder, write_json
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.store import merge, prepare
from vcc_fm.store.cells import CellStore
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


def sixty_cells() -> Screen:
    labels = np.array([CONTROL, "A", "B"])[np.arange(60) % 3]
    return screen(np.random.default_rng(0).poisson(2.0, (60, 8)), "K", "1", labels)


def digests(store: CellStore) -> tuple[str, ...]:
    """SHA-256 of the shards, as they are on disk."""
    return tuple(sha256_file(store.folder / shard["file"]) for shard in store.meta["shards"])


def test_a_killed_writer_leaves_an_old_store_a_new_one_or_none(tmp_path, monkeypatch):
    """Several chunks and several shards, killed at any moment, while two recipes write over each other.

    24 times at the least, and until enough kills came while chunks were on disk: how often one does is the disk's.
    """
    monkeypatch.setattr(merge, "BATCH_ROWS", 10)
    monkeypatch.setattr(merge, "SHARD_BYTES", 400)
    monkeypatch.setattr(prepare, "READING_BYTES", (1 << 30) // 60)
    config = write_screen(tmp_path, "s0", sixty_cells())
    whole = {digests(write_store(tmp_path / f"seed{seed}", [config], seed, 60)): seed for seed in (0, 1)}
    assert {len(files) for files in whole} == {6}
    begin = time.monotonic()
    write_store(tmp_path / "timed", [config], 0, 60)
    seconds = time.monotonic() - begin
    final, log = tmp_path / "cells", tmp_path / "log"

    def write(seed: int) -> None:
        data = DataConfig(sources=[config])
        with one_writer(final):
            write_cell_store(final, data, [config], seed, str(seed), False, process_state(), QUIET)

    def write_for_ever() -> None:
        for number in range(10_000):
            write(number % 2)
            log.write_text(str(number))

    found, resumed, kills = [], 0, 0
    rng = np.random.default_rng(0)
    while kills < 24 or resumed <= 5:
        kills += 1
        assert kills < 240
        log.unlink(missing_ok=True)
        process = child(write_for_ever)
        wait_until(log.exists)
        time.sleep(rng.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        # Killed with chunks on disk, which the next writer of that recipe goes on from.
        resumed += len(list(tmp_path.glob("cells.shards/chunk-*.safetensors"))) > 0
        if final.exists():
            store = CellStore(final)
            digest = digests(store)
            assert [shard["sha256"] for shard in store.meta["shards"]] == list(digest)
            assert store.fingerprint == str(whole[digest])
            found.append(digest)
    assert len(found) > 10
    # The lock of a killed writer is free, and what it left behind is in nobody's way.
    write(1)
    assert digests(CellStore(final)) in whole
    assert {path.name for path in tmp_path.glob("cells*")} == {"cells"}


def test_the_store_before_goes_though_its_writer_was_killed_while_removing_it(tmp_path):
    config = write_screen(tmp_path, "s0", sixty_cells())
    write_store(tmp_path / "cells", [config], 0, 60)
    shutil.copytree(tmp_path / "cells", tmp_path / "cells.old")
    write_store(tmp_path / "cells", [config], 0, 60)
    assert {path.name for path in tmp_path.glob("cells*")} == {"cells"}


class Renames:
    """Watches what gets its final name, and interrupts at the ``at``-th that begins with ``prefix``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.prefix, self.at = "nothing", 0
        replace = Path.replace

        def watched(path: Path, target: Path) -> Path:
            name = Path(target).name
            if name.startswith(self.prefix) and sum(one.startswith(self.prefix) for one in self.made) == self.at:
                raise KeyboardInterrupt
            self.made.append(name)
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", watched)

    def pieces(self) -> set[str]:
        return {name for name in self.made if name.startswith(("chunk", "data")) and not name.endswith(".json")}


@pytest.fixture
def renames(monkeypatch):
    monkeypatch.setattr(merge, "BATCH_ROWS", 10)
    monkeypatch.setattr(merge, "SHARD_BYTES", 400)
    return Renames(monkeypatch)


def stopped(folder: Path, renames: Renames, prefix: str, at: int) -> tuple[SourceConfig, tuple[str, ...], set[str]]:
    """A source, what its store holds, and the pieces of a writer that was stopped."""
    config = write_screen(folder, "s0", sixty_cells())
    expected = digests(write_store(folder / "whole", [config], 0, 60))
    renames.prefix, renames.at, renames.made = prefix, at, []
    with pytest.raises(KeyboardInterrupt):
        write_store(folder / "cells", [config], 0, 60)
    assert not (folder / "cells").exists()
    done = renames.pieces()
    # A shard and its note are two renames.
    assert len(done) == (at if prefix == "chunk" else 8 + at // 2)
    renames.prefix, renames.made = "nothing", []
    return config, expected, done


@pytest.mark.parametrize(("prefix", "at"), [("chunk", 0), ("chunk", 3), ("data-", 0), ("data-", 4)])
def test_a_writer_goes_on_where_it_was_stopped(tmp_path, renames, prefix, at):
    config, expected, done = stopped(tmp_path, renames, prefix, at)
    assert digests(write_store(tmp_path / "cells", [config], 0, 60)) == expected
    assert not renames.pieces() & done
    assert {path.name for path in tmp_path.glob("cells*")} == {"cells"}


@pytest.mark.parametrize("values", [25, 200])
def test_with_other_memory_a_writer_keeps_what_is_done(tmp_path, renames, values):
    config, expected, done = stopped(tmp_path, renames, "chunk", 3)
    assert digests(write_store(tmp_path / "cells", [config], 0, values)) == expected
    assert not renames.pieces() & done


def test_pieces_that_a_failing_machine_left_damaged_are_made_again(tmp_path, renames):
    config, expected, done = stopped(tmp_path, renames, "data-", 4)
    work = tmp_path / "cells.shards"
    chunks = sorted(work.glob("chunk-*"))
    chunks[0].write_bytes(b"")
    chunks[1].write_bytes(chunks[1].read_bytes()[:-1])
    shards = sorted(work.glob("data-*.arrow"))
    shards[0].write_bytes(b"")
    shards[1].unlink()
    assert digests(write_store(tmp_path / "cells", [config], 0, 60)) == expected
    assert renames.pieces() & done == {path.name for path in [*chunks[:2], *shards[:2]]}


def test_a_source_that_changed_in_between_is_read_anew(tmp_path, renames):
    config, expected, _ = stopped(tmp_path, renames, "chunk", 3)
    one = sixty_cells()
    write_screen(tmp_path, "s0", Screen(one.counts + 1, one.obs, one.genes))
    store = write_store(tmp_path / "cells", [config], 0, 60)
    assert store.depth.sum() == (one.counts + 1).sum()
    assert digests(store) != expected


def test_a_store_that_is_whole_is_not_written_again(tmp_path, renames):
    config = write_screen(tmp_path, "s0", sixty_cells())
    store = write_store(tmp_path / "cells", [config], 0, 60)
    (tmp_path / "cells.shards").mkdir()  # a writer that was stopped after the last rename
    before, renames.made = digests(store), []
    assert digests(write_store(tmp_path / "cells", [config], 0, 60)) == before
    assert not renames.made
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


def test_an_old_folder_that_a_killed_writer_left_behind_goes(tmp_path):
    final = tmp_path / "cells"
    (tmp_path / "cells.old").mkdir()  # killed between the two renames
    with whole_folder(final) as partial:
        (partial / "content").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


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
