"""The data files of a store are compared with their checksums once, and again whenever one has changed."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, sha256_file, write_json
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.store.description import damaged

_SETTLED = 2 * 10**9
"""Nanoseconds after which another change to a file has another time, on any file system."""

_LONG = 2 * 10**9
"""Bytes whose reading takes long enough to be told of."""

_checked: dict[Path, dict[str, list[Any]]] = {}
"""What this process has found whole: where no note can be written, a file is read once a process."""


def check_files(folder: Path, shards: list[dict[str, Any]], again: bool = False) -> None:
    """Compare size and SHA-256 of each file with ``store.json``.

    A note beside the store holds size, time of modification and place on the disk of each file that was whole, so that
    the next look at it costs nothing. A store beside which nothing can be written is read by every process anew.

    Args:
        folder: of the store.
        shards: as ``store.json`` lists them.
        again: also those files that were whole before.

    Raises:
        UserError: a file is missing, or is not what was written.
    """
    found = {shard["file"]: _state(folder / shard["file"], shard) for shard in shards}
    noted = _checked.get(folder) or _read(_note(folder))
    unread = [shard for shard in shards if again or noted.get(shard["file"]) != found[shard["file"]]]
    done, total = 0, sum(shard["bytes"] for shard in unread)
    progress = ProgressLines(f"check {folder.name}", "MB", Console(stderr=True)) if total > _LONG else None
    for shard in unread:
        path = folder / shard["file"]
        if (digest := sha256_file(path)) != shard["sha256"]:
            said = f"SHA-256 {digest[:12]}…, but store.json says {shard['sha256'][:12]}…"
            raise damaged(path, f"{said}; it was damaged or replaced")
        done += shard["bytes"]
        if progress:
            progress(done // 10**6, total // 10**6)
    _vouch(folder, found, noted)


def written(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Note the files of a store that was written just now: their writer has computed their checksums."""
    _vouch(folder, {shard["file"]: _state(folder / shard["file"], shard) for shard in shards}, {})


def seen_whole(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Take the files of a store for whole in this process; nothing is written beside it."""
    _checked[folder] = {shard["file"]: _state(folder / shard["file"], shard) for shard in shards}


def _vouch(folder: Path, whole: dict[str, list[Any]], noted: dict[str, Any]) -> None:
    """Remember the state of files that were whole; not of those written a moment ago."""
    now = time.time_ns()
    settled = {name: state for name, state in whole.items() if now - state[1] > _SETTLED}
    _checked[folder] = settled
    if settled and settled != noted:
        with suppress(OSError):
            write_json(_note(folder), settled)


def _note(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.checked.json")


def _state(path: Path, shard: dict[str, Any]) -> list[Any]:
    """What changes when a file does (size, time in ns, place), and the checksum that it should have."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise damaged(path, "missing") from None
    if found.st_size != shard["bytes"]:
        said = f"{found.st_size} bytes, but store.json says {shard['bytes']}"
        raise damaged(path, f"{said}; it was cut short or replaced")
    return [found.st_size, found.st_mtime_ns, found.st_ino, shard["sha256"]]


def _read(note: Path) -> dict[str, Any]:
    """What a note says; nothing where there is none, or it was damaged."""
    try:
        return read_json(note)
    except UserError:
        return {}
