"""Arrays of one number a cell, narrow, made by one process and mapped by all."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vcc_fm.ground.files import one_writer, whole_file

Arrays = dict[str, np.ndarray]
BLOCK = 1 << 19
"""Numbers that are worked on at a time where a copy of all would double the memory."""


def narrow(names: int) -> np.dtype:
    """The smallest signed type that holds the places in a list of ``names``, and -1."""
    return np.min_scalar_type(-max(names, 1))


def places_type(size: int) -> np.dtype:
    """int32, or int64 where ``size`` cells need it."""
    return np.dtype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)


def places(mask: np.ndarray) -> np.ndarray:
    """Where ``mask`` [n] bool is true, rising, [k] int32 (int64 where n needs it)."""
    found = np.empty(np.count_nonzero(mask), places_type(len(mask)))
    done = 0
    for start in range(0, len(mask), BLOCK):
        part = np.flatnonzero(mask[start : start + BLOCK])
        found[done : done + len(part)] = part + start
        done += len(part)
    return found


def counted(codes: np.ndarray, names: int) -> np.ndarray:
    """How often each of 0..``names`` - 1 comes in ``codes`` [n], [names] int64; below zero nothing is counted."""
    counts = np.zeros(names + 1, np.int64)
    for start in range(0, len(codes), BLOCK):
        counts += np.bincount(codes[start : start + BLOCK].astype(np.int64) + 1, minlength=names + 1)
    return counts[1:]


def made_once(path: Path | None, make: Callable[[], tuple[Arrays, Any]]) -> tuple[Arrays, Any]:
    """What ``make`` returns, from a file where it is kept; of several processes one makes it, and the others wait.

    Args:
        path: of the safetensors file, whole or absent; None: there is none, and it stays in this process's memory.
        make: makes arrays of numbers by name, and a JSON value. What it raises, every process that comes by raises.

    Returns:
        The arrays, mapped into memory and not to be written to, and the JSON value.
    """
    if path is None:
        return make()
    with one_writer(path):
        if not _is_whole(path):
            arrays, said = make()
            with whole_file(path) as partial:
                _write(partial, arrays, said)
            del arrays
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        mapped = np.memmap(path, np.uint8, "r", file.tell()).view(np.ndarray)
    said = json.loads(header.pop("__metadata__")["said"])
    return {name: _array(mapped, **of) for name, of in header.items()}, said


def let_go(kept: np.ndarray) -> None:
    """Give the memory of an array of :func:`made_once`, and of its neighbours in the file, back until it is needed."""
    base: Any = kept
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and sys.platform != "win32":
        base.madvise(mmap.MADV_DONTNEED)


def _write(path: Path, arrays: Arrays, said: Any) -> None:
    """Write a safetensors file; the library would copy every array first."""
    # Wide numbers first: all begin at a multiple of their size.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    header: dict[str, Any] = {"__metadata__": {"said": json.dumps(said)}}
    end = 0
    for name, values in ordered.items():
        dtype = f"{values.dtype.kind.upper()}{8 * values.itemsize}"
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": (end, end + values.nbytes)}
        end += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in ordered.values():
            file.write(np.ascontiguousarray(values).data)  # `tofile` says without a number that the disk is full


def _is_whole(path: Path) -> bool:
    """Whether a file is there, and as long as its header says: a machine that fails may cut it."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def _array(mapped: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    """An array in the data of a safetensors file, whose types are called I32, U8, ..."""
    return mapped[slice(*data_offsets)].view(f"{dtype[0].lower()}{int(dtype[1:]) // 8}").reshape(shape)
