"""Paths and addresses as a user gives them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vcc_fm.ground.errors import UserError, shown

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")


_ADDRESS = re.compile(r"(\w[\w+.-]*://)(?:[^\s/?#]*@)?([^\s?#]*)\S*")


LONGEST_NAME = 255
"""Bytes of a file's name: no file system of ours has longer ones."""


def expand(path: str) -> Path:
    """A path of a recipe as the file system knows it: ``${VARIABLE}`` and ``~`` are expanded.

    Raises:
        UserError: a variable is not set, there is no such user, or no file can have the name.
    """
    unset = [braced or bare for braced, bare in _VARIABLE.findall(path) if (braced or bare) not in os.environ]
    if unset:
        raise UserError(
            f"{path}: the environment variable {unset[0]} is not set; point it at the folder with the data"
        )
    expanded = os.path.expanduser(os.path.expandvars(path))
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home folder of that user; write ./~ for a name that begins so")
    if "\0" in expanded or any(len(os.fsencode(name)) > LONGEST_NAME for name in expanded.split("/")):
        raise UserError(f"{shown(path)}: no file can have that name; shorten it, to {LONGEST_NAME} bytes at most")
    return Path(expanded)


_FOLDERS = re.compile(r"(?<![\w:/.}])(?:file://)?(?:~\w*|\.{1,2})?/(?:[^\s/'\",;:|<>]+/)*([^\s/'\",;:|<>]+)/?")


def without_folders(text: str) -> str:
    """A text in which paths from a root, a home or a dot, which mean nothing elsewhere, are names of files."""
    return _FOLDERS.sub(r"\1", text)


def without_secrets(text: str) -> str:
    """A text with its addresses stripped of user, query and fragment, any of which may hold a token."""
    return _ADDRESS.sub(r"\1\2", text)
