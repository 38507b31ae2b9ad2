"""What a stage makes, and the note beside it that says it is whole.

The note of ``NAME``, ``.NAME.done.json``, holds the fingerprint of what it was made from, and size and SHA-256 of each
of its files. ``vcc-fm run`` compares the sizes, and the content of small files; ``vcc-fm verify`` compares everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import ask_anew, read_json, sha256_file, write_json
from vcc_fm.store.description import NAME

_SMALL = 1 << 20
"""Bytes of a file that takes no time to read."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: NonNegativeInt
    sha256: str


class _Note(BaseModel):
    model_config = ConfigDict(strict=True)
    fingerprint: str
    seconds: float
    files: dict[str, _File]


@dataclass(frozen=True)
class Output:
    """What a stage makes: whole, or absent.

    Attributes:
        stage: that makes it, as on the command line.
        path: file or folder.
        fingerprint: of all that it depends on.
        beside: files made along with it, in the same folder or below it.
        fold, phase: which decoder it is, of those that the stage trains.
    """

    stage: str
    path: Path
    fingerprint: str
    beside: tuple[Path, ...] = ()
    fold: int = 0
    phase: str = ""

    def fault(self, content: bool = False) -> str | None:
        """Why it cannot be used, with its name; None where it is whole and of this fingerprint.

        Args:
            content: compare all of every file with its checksum, not only sizes and small files.
        """
        ask_anew(self.path)
        if not self.path.exists() or not self._note.exists():
            return f"{self.path} is missing or was not finished"
        try:
            note = _read(self._note)
        except UserError:
            return f"{self.path} was finished by another version of this program, or its note is damaged"
        if note.fingerprint != self.fingerprint:
            return f"{self.path} was made from another recipe or other data"
        expected = {_relative(path, self.path.parent) for path in (self.path, *self.beside)}
        listed = {part for name in note.files for part in (name, *map(str, PurePosixPath(name).parents))}
        if missing := sorted(expected - listed):
            return f"{self.path.parent / missing[0]} was not finished"
        return _fault(self.path.parent, note, content)

    def require(self, content: bool = False) -> Path:
        """Its path.

        Args:
            content: as :meth:`fault`.

        Raises:
            UserError: it is missing, damaged, or was made from something else.
        """
        if fault := self.fault(content):
            raise UserError(f"{fault}; run `vcc-fm {self.stage} RECIPE` first")
        return self.path

    def forget(self) -> None:
        """Take the note away before it is made anew: a stop between the two must not leave it on other content."""
        self._note.unlink(missing_ok=True)

    def mark(self, seconds: float) -> None:
        """Note that it is whole; making it took ``seconds``."""
        files: dict[str, dict[str, Any]] = {}
        for path in (self.path, *self.beside):
            files |= {_relative(file, self.path.parent): facts for file, facts in _facts(path)}
        write_json(self._note, {"fingerprint": self.fingerprint, "seconds": round(seconds, 3), "files": files})

    @property
    def _note(self) -> Path:
        return self.path.with_name(f".{self.path.name}.done.json")


def seconds_of(output: Output) -> float | None:
    """How long making it took; None where it is not there."""
    return _read(output._note).seconds if output._note.exists() else None


def check_outputs(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Compare all that stages have finished in ``folder``, or below it, with its checksums.

    The large files of a store are compared by size alone: who verifies a store reads them.

    Yields:
        Path of an output that is whole, number of its files, and their bytes.

    Raises:
        UserError: there is nothing to check, or a file is missing or damaged; the message names it.
    """
    notes = sorted(folder.rglob(".*.done.json"))
    if not notes:
        raise UserError(f"{folder}: is no store, and no stage has finished anything in it")
    for path in notes:
        note, output = _read(path), path.with_name(path.name.removeprefix(".").removesuffix(".done.json"))
        if fault := _fault(output.parent, note, content=not (output / NAME).is_file()):
            raise UserError(f"{fault}; run `vcc-fm run RECIPE`, which makes {output.name} again")
        yield output, len(note.files), sum(file.bytes for file in note.files.values())


def _fault(folder: Path, note: _Note, content: bool) -> str | None:
    """What is wrong with the files of ``folder`` that a note lists."""
    for name, said in note.files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            return f"{file} is missing"
        if size != said.bytes:
            return f"{file} is damaged: {size:,} bytes, {said.bytes:,} were written"
        if (content or size <= _SMALL) and sha256_file(file) != said.sha256:
            return f"{file} is damaged: its content is not what was written"
    return None


def _read(path: Path) -> _Note:
    with reading(path, "the note of a finished output", "remove it and run the stage again"):
        note = _Note.model_validate(read_json(path))
        for name in note.files:
            # A note from elsewhere must not lead out of its folder.
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"it names {name!r}")
        return note


def _facts(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Size and SHA-256 of a file, or of all files in a folder; a store's own description has those of its shards."""
    if path.is_file():
        yield path, {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        return
    shards = read_json(path / NAME)["shards"] if (path / NAME).is_file() else []
    known = {shard["file"]: shard["sha256"] for shard in shards}
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest = known.get(file.name) if file.parent == path else None
        yield file, {"bytes": file.stat().st_size, "sha256": digest or sha256_file(file)}


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
