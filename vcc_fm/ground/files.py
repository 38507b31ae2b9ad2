"""Files and folders that are whole or absent: written under a temporary name, flushed to the disk, then renamed.

A process that is killed leaves only a ``.partial`` of the name, which the next writer replaces. Where the disk is
full, the error names what could not be written, whatever the library that wrote it said.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vcc_fm.ground.errors import UserError, reading

_BLOCK = 1 << 20
_SEAL = "content_sha256"


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there becomes ``final`` when the block ends well, and vanishes if not.

    Where ``final`` is a link, what it leads to is written, on the disk where that lies, and the link stays.

    Raises:
        OSError: with ``final`` as its file name, where the disk refuses.
    """
    final = followed(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with _named(final, partial):
            yield partial
            _to_disk(partial)
            partial.replace(final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """The same for a folder, which takes the place of an older one. A power cut leaves the old folder or the new one.

    Raises:
        OSError: with ``final`` as its file name, where the disk refuses.
    """
    final = followed(final)
    partial, old = (final.with_name(f"{final.name}.{end}") for end in ("partial", "old"))
    try:
        with _named(final, partial):
            empty_folder(partial)
            yield partial
            for path in (*partial.rglob("*"), partial):
                _to_disk(path)
            # The old folder moves away first: at no instant does `final` name a mixture of old and new files.
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
            partial.rename(final)
            _to_disk(final.parent)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_whole(final: Path) -> None:
    """Remove a folder that is whole or absent, so that it is the one or the other when this process is killed."""
    final = followed(final)
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(final: Path) -> None:
    """Remove what a killed writer of a folder that is whole now left beside it, such as the folder before."""
    for end in ("partial", "old"):
        shutil.rmtree(followed(final).with_name(f"{followed(final).name}.{end}"), ignore_errors=True)


@contextmanager
def _named(final: Path, partial: Path) -> Iterator[None]:
    """An error of the disk names ``final``: libraries tell it without a file, or in an error of their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = isinstance(error, OSError) and error.errno
        if isinstance(error, OSError) and known and error.filename not in (None, str(partial)):
            raise
        if number := known or _refusal(partial):
            raise OSError(number, os.strerror(number), str(final)) from error
        raise


def _refusal(partial: Path) -> int | None:
    """Why the disk of ``partial`` takes no more, as an error number; None where it does."""
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        sizes = [path.stat().st_size for path in (partial, *partial.rglob("*")) if path.is_file()]
        if limit != resource.RLIM_INFINITY and max(sizes, default=0) >= limit:
            return errno.EFBIG
    try:
        with tempfile.TemporaryFile(dir=partial.parent) as file:
            file.write(bytes(_BLOCK))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def ask_anew(path: Path) -> None:
    """Forget what this machine remembers of a path on a network disk that another machine may have written since.

    NFS keeps for up to a minute that a name is not in a folder, and asks its server again where the folder is opened
    (nfs(5), close-to-open).
    """
    for folder in reversed(path.parents):
        # One that is not there, or whose names are not to be read, has nothing to tell.
        with suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY))


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
            f"{final}: another run has been writing it for {wait_seconds:.0f} s; wait for it or stop it "
            f"(where none is left, on a disk that keeps locks as files, remove {lock})"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, so that it is whole or absent."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


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


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write JSON with a checksum of its content, for :func:`read_sealed`."""
    write_json(path, {**value, _SEAL: _digest(value)})


def read_sealed(path: Path, advice: str) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote; ``advice`` says what to do where it is damaged.

    Raises:
        UserError: the file is missing, or is not what was written.
    """
    return unsealed(read_json(path), path, advice)


def unsealed(value: dict[str, Any], path: Path, advice: str) -> dict[str, Any]:
    """What was read from the sealed file ``path``, without the seal; else as :func:`read_sealed`."""
    seal = value.pop(_SEAL, None)
    with reading(path, "JSON", advice):  # an infinite number is none
        if seal != _digest(value):
            raise UserError(f"{path}: its content is not what was written; {advice}")
    return value


def _digest(value: dict[str, Any]) -> str:
    """SHA-256 of what JSON keeps of a mapping without its seal, whatever the order of its keys."""
    kept = {key: inner for key, inner in value.items() if key != _SEAL}
    again = json.loads(json.dumps(kept, allow_nan=False))
    return hashlib.sha256(json.dumps(again, sort_keys=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of any JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
