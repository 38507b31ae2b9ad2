"""Folders that are whole or absent: written under a temporary name, renamed at the end, one writer at a time.

A finished folder holds ``store.json`` (or another named JSON file) with the fingerprint of what it was made from, so
that a later run knows whether it can be kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vcc_fm.errors import UserError, reading

_BLOCK = 1 << 20


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``final`` when the block ends well, and vanishes when it does not.

    A process that is killed leaves only a ``.partial`` folder, which the next writer removes. Where ``final`` is a
    link, what it leads to is written, on the disk where that lies, and the link stays.
    """
    final = followed(final)
    partial = final.with_name(final.name + ".partial")
    empty_folder(partial)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    name_folder(partial, final)


def name_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its name, after all of its content is on the disk; it takes the place of an older one.

    A power cut then leaves the old folder or the new one: never a name in front of empty files.
    """
    for path in (*partial.rglob("*"), partial):
        _to_disk(path)
    final = followed(final)
    # The old folder moves away first: at no instant does `final` name a mixture of old and new files.
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def followed(path: Path) -> Path:
    """What a link leads to, there or not; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def empty_folder(folder: Path) -> None:
    """Make a folder, or empty it; a link to a folder stays one."""
    folder = followed(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def one_writer(final: Path, wait_seconds: float = 24 * 3600) -> Iterator[None]:
    """Hold the lock of ``final``; a second writer waits.

    Raises:
        UserError: the lock was not free within ``wait_seconds``.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = final.with_name(f".{final.name}.lock")
    try:
        with FileLock(lock, timeout=wait_seconds):
            yield
    except Timeout:
        raise UserError(
            f"{final}: another run has been writing it for {wait_seconds:.0f} s; wait for it or stop it"
        ) from None


def whole_file(partial: Path, final: Path) -> None:
    """Give a finished file its name, after its content is on the disk: no name stands before data that was lost."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(final)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is always whole: a temporary name, flushed to disk, renamed."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as handle:
        json.dump(value, handle, indent=1, allow_nan=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file that this program wrote, a mapping unless it was of another ``kind``.

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    with reading(path, "JSON", "remove its folder and run the stage again"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path}: missing; the stage that writes it has not been run, or the folder is incomplete"
            ) from None
        if not isinstance(value, kind):
            raise TypeError(f"it holds a {type(value).__name__} where a {kind.__name__} is expected")
        return value


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
