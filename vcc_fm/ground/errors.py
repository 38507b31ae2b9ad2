"""The ways a command ends badly, and the one way in which a file from outside is refused.

A :class:`UserError` is something its reader can mend (exit code 2, one or two lines, no traceback). After
:class:`TryAgain` the same command goes on where it stopped (exit code 75, for schedulers that start it again).
Anything else is a fault of the program (exit code 1).
"""

from __future__ import annotations

import errno
import os
import reprlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LINE = 160
"""Letters of a value, or of a library's reason, that a message shows."""
_LONGEST = 2000
"""Longest line of a message, in letters. A longer one holds a value that nobody cut, and loses its middle."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system where there is no room to write."""

_values = reprlib.Repr()
_values.maxlevel, _values.maxstring, _values.maxother, _values.maxlong = 3, 120, 120, 60


class UserError(Exception):
    """What was found, where, and what to do about it, in one or two lines.

    Values from files stand in it: what a terminal would take for a command is written out, and a line is never longer
    than people read.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(_cut(_printable(line), _LONGEST) for line in message.split("\n")))


TRY_AGAIN = 75
"""Exit code of a command that did not finish and goes on when it is run again (``EX_TEMPFAIL`` of sysexits.h)."""


class TryAgain(Exception):
    """Work stopped, on request or because another process is gone, and goes on when it is run again."""


def obey_signals() -> None:
    """End at SIGTERM and SIGUSR1 by an exception, as at Ctrl-C: temporary files and worker processes go too."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def shown(value: object) -> str:
    """A value as Python writes it, in part of a line whatever its size; nested ones are not walked to the end."""
    return _cut(_values.repr(value), _LINE)


def first_line(error: BaseException) -> str:
    """What a library says of an error, in one line; its kind where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return _cut(error.strerror.partition("\n")[0], _LINE)
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return _cut(str(error).strip().partition("\n")[0], _LINE) or type(error).__name__


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic finds wrong: where, and what."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


@contextmanager
def reading(where: str | os.PathLike[str], what: str, advice: str = "get it again") -> Iterator[None]:
    """Read something from outside: whatever goes wrong in the block is a fault of the file.

    Args:
        where: file, and the place in it.
        what: it is read as (``YAML``, ``FASTA``).
        advice: what to do.

    Raises:
        UserError: as the block raises it, or in place of any other error, which stays its cause for ``--debug``.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise  # of something that is written meanwhile
        raise UserError(f"{where} is not readable as {what}: {first_line(error)}; {advice}") from error


@contextmanager
def asked_by(key: str) -> Iterator[None]:
    """Say which key of a recipe named what is refused inside; the message begins with the value.

    Raises:
        UserError: as the block, with the key in front.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}={error}") from error.__cause__


def _printable(line: str) -> str:
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in line
    )


def _cut(text: str, most: int) -> str:
    """Without its middle where it is too long: a message begins with the file and ends with what to do."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-(most // 3) + 3 :]}"
