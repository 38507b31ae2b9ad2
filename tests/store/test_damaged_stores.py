"""Stores that a disk damaged, or that somebody made up: refused, or read as they were written; never a crash."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tiny_screens import CONTROL, embedded, screen, store_of

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, sha256_file
from vcc_fm.store import checksums, merge
from vcc_fm.store.cells import CellStore
from vcc_fm.store.description import write_store_json
from vcc_fm.store.embeddings import EmbeddingStore
from vcc_fm.store.verify import verify


def cells(folder: Path) -> Path:
    """A cell store of several files."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (40, 6))
    labels = [np.array(names)[rng.integers(2, size=40)] for names in (["K", "H"], ["1", "2"], [CONTROL, "A"])]
    with mock.patch.multiple(merge, BATCH_ROWS=7, SHARD_BYTES=200):
        store = store_of(folder, screen(counts, *labels))
    assert len(store.meta["shards"]) > 2
    return store.folder


def vectors(folder: Path) -> Path:
    values = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    values[3] = np.nan
    return embedded(folder / "vectors", [f"c{i}" for i in range(30)], values).folder


def opened(folder: Path) -> CellStore | EmbeddingStore:
    return EmbeddingStore(folder) if folder.name == "vectors" else CellStore(folder)


def content(folder: Path) -> list[Any]:
    """All that readers of a store are given."""
    store = opened(folder)
    if isinstance(store, CellStore):
        rows = np.arange(len(store))
        matrix = store.sparse(rows)
        groups = [store.groups.context, store.groups.batch, store.groups.perturbation, store.groups.start]
        return [
            *(store.dense(rows), matrix.indptr, matrix.indices, matrix.data, store.depth, *groups, store.measured),
            *map(np.array, (store.barcodes.tolist(), store.genes, store.contexts, store.batches, store.perturbations)),
            np.array([store.control, store.fingerprint]),
        ]
    return [store.vectors, store.missing, np.array(store.keys.tolist()), np.array(store.fingerprint)]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in zip(one, other, strict=True))


@pytest.fixture(params=[cells, vectors])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder: Path = request.param(tmp_path)
    return folder


def flips(data: bytes, number: int) -> list[bytes]:
    rng = np.random.default_rng(number)
    made = []
    for place in rng.choice(len(data), number, replace=False):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        made.append(bytes(flipped))
    return made


def refusal(store: Path) -> str | None:
    """Why a store is refused; None where it is not."""
    try:
        content(store)
    except UserError as error:
        return str(error)
    return None


def test_a_flipped_bit_is_refused_or_changes_nothing(store: Path) -> None:
    whole, refused, tried = content(store), 0, 0
    for path in sorted(store.iterdir()):
        data = path.read_bytes()
        for flipped in flips(data, 20):
            path.write_bytes(flipped)
            tried += 1
            if path.suffix == ".arrow" or path.name == "store.json":
                said = refusal(store)
                assert said is not None
                assert path.name in said or "store schema" in said
                refused += 1
            else:  # for `datasets` alone
                assert same(content(store), whole)
        path.write_bytes(data)
    assert same(content(store), whole)
    assert tried >= 80
    assert refused >= 40


def resealed(folder: Path, meta: dict[str, Any]) -> None:
    """Give ``store.json`` the checksums of the files as they are, as somebody does who makes them up."""
    files = [folder / shard["file"] for shard in meta["shards"]]
    seals = [{"sha256": sha256_file(file), "bytes": file.stat().st_size} for file in files]
    write_store_json(
        folder, meta | {"shards": [shard | seal for shard, seal in zip(meta["shards"], seals, strict=True)]}
    )


def in_a_process(work: Callable[[], None]) -> int:
    """Exit code of a child that does ``work``; below zero, the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the last frame of the child
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_damage_with_checksums_that_agree_is_refused_or_read_within_bounds(store: Path) -> None:
    meta = opened(store).meta
    path = sorted(store.glob("*.arrow"))[0]
    data = path.read_bytes()

    def attack() -> None:
        for flipped in flips(data, 250):
            path.write_bytes(flipped)
            resealed(store, meta)
            assert len(refusal(store) or "") < 800

    assert in_a_process(attack) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"genes": ["a", "b"]}, "has a gene that is not on its axis of 2"),
        ({"genes": ["a"] * 6}, "a name stands twice"),
        ({"perturbations": [CONTROL]}, "the cells have perturbations that store.json does not name"),
        ({"contexts": []}, "the cells have contexts that store.json does not name"),
        ({"control": "other"}, "'other' is no perturbation of the store"),
        ({"batch_source": [0, 1, 0, 0]}, "does not name a source for each batch"),
        ({"batch_source": None}, "batch_source: Input should be a valid list"),
        ({"sources": [{"name": "s", "missing_genes": [6]}]}, "'s' misses a gene that is not on the gene axis"),
        ({"cells": 41}, "41 cells, but the files have 40"),
        ({"shards": []}, "shards: List should have at least 1 item"),
    ],
)
def test_a_description_that_does_not_fit_its_cells_is_refused(tmp_path, changes, said):
    folder = cells(tmp_path)
    write_store_json(folder, opened(folder).meta | changes)
    for read in ("dense", "sparse"):
        with pytest.raises(UserError, match=said):
            getattr(CellStore(folder), read)(np.arange(40))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"missing": [30]}, "names a row that is not there"),
        ({"missing": [-1]}, r"missing.0: Input should be greater"),
        ({"width": 5}, "has no column embedding as this program writes it"),
        ({"width": 1 << 40}, "width: Input should be less than"),
        ({"key": "embedding"}, "key: Input should be 'barcode' or 'symbol'"),
        ({"rows": 31}, "31 vectors, but the files have 30"),
    ],
)
def test_a_description_that_does_not_fit_its_vectors_is_refused(tmp_path, changes, said):
    folder = vectors(tmp_path)
    write_store_json(folder, opened(folder).meta | changes)
    with pytest.raises(UserError, match=said):
        content(folder)


@pytest.mark.parametrize("name", ["../outside.arrow", "/outside.arrow", "data-00001-of-00001.arrow", "."])
def test_a_file_outside_of_the_store_is_not_followed(tmp_path, name):
    folder = vectors(tmp_path)
    (folder / "data-00000-of-00001.arrow").rename(tmp_path / "outside.arrow")
    meta = read_json(folder / "store.json")
    write_store_json(folder, meta | {"shards": [meta["shards"][0] | {"file": name}]})
    with pytest.raises(UserError, match=r"store.json: .* where data-00000-of-00001.arrow is expected"):
        EmbeddingStore(folder)


def test_rows_that_are_not_there_are_an_error(store: Path) -> None:
    open_store = opened(store)
    readers = [open_store.dense, open_store.sparse] if isinstance(open_store, CellStore) else [open_store.take]
    for read in readers:
        for rows in ([0, 10**6], [-1], [-(10**9), 3]):
            with pytest.raises(IndexError):
                read(np.array(rows))
        assert read(np.empty(0, np.int64)).shape[0] == 0


# ------------------------------------------------------------------------------------------- looked at once a change
@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose checksums are computed."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(checksums, "sha256_file", counted)
    return names


def settled(store: Path) -> None:
    """Let the files of a store be a minute old."""
    for path in store.glob("*.arrow"):
        os.utime(path, ns=(0, time.time_ns() - 60 * 10**9))


def test_content_is_read_once_and_again_when_a_file_changes(store, read_files, monkeypatch):
    settled(store)
    shards = opened(store).meta["shards"]
    assert read_files == [shard["file"] for shard in shards]
    monkeypatch.setattr(checksums, "_checked", {})  # as in another process
    opened(store)
    assert len(read_files) == len(shards)
    path = store / shards[-1]["file"]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(UserError, match=f"{path.name}: SHA-256"):
        opened(store)
    path.write_bytes(data)
    del read_files[:]
    opened(store)
    assert read_files == [path.name]
    opened(store)  # written a moment ago: another change could have the same time
    assert read_files == [path.name] * 2
    verify(store)
    assert set(read_files[2:]) == {shard["file"] for shard in shards}


def test_the_writer_of_a_cell_store_vouches_for_what_it_wrote(tmp_path, read_files, monkeypatch, capsys):
    monkeypatch.setattr(checksums, "_SETTLED", -(1 << 62))
    folder = cells(tmp_path)
    monkeypatch.setattr(checksums, "_checked", {})
    store = opened(folder)
    assert not read_files
    assert not capsys.readouterr().err
    # A copy is another file, and a long look at it is told of.
    monkeypatch.setattr(checksums, "_LONG", 0)
    monkeypatch.setattr(checksums, "_checked", {})
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert same(content(copy), content(folder))
    assert read_files == [shard["file"] for shard in store.meta["shards"]]
    assert "check copy: 0/0 MB" in capsys.readouterr().err


@pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"data-00000-of-00001.arrow": 3}'])
def test_a_damaged_note_vouches_for_nothing(store, read_files, monkeypatch, note):
    settled(store)
    opened(store)
    monkeypatch.setattr(checksums, "_checked", {})
    path = store.with_name(f".{store.name}.checked.json")
    assert path.exists()
    path.write_bytes(note)
    del read_files[:]
    files = [shard["file"] for shard in opened(store).meta["shards"]]
    assert read_files == files


def test_a_store_beside_which_nothing_can_be_written_is_read_once_a_process(store, read_files, monkeypatch):
    def refused(path: Path, value: Any) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(checksums, "write_json", refused)
    settled(store)
    whole = content(store)
    number = len(read_files)
    assert same(content(store), whole)
    assert len(read_files) == number
    assert not store.with_name(f".{store.name}.checked.json").exists()


def test_a_damaged_cell_store_is_made_again(tmp_path):
    folder = cells(tmp_path)
    whole = content(folder)
    path = sorted(folder.glob("*.arrow"))[0]
    path.write_bytes(b"x" * path.stat().st_size)
    assert same(content(cells(tmp_path)), whole)
