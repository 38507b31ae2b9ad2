"""Protein vectors as a ``.pt`` dictionary, symbol -> 1-D tensor: the form in which State reads and Arc publishes them.

``ESM2_pert_features.pt`` and ``protein_embeddings.pt`` are of this form. Nothing but plain tensors is ever unpickled.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vcc_fm.encoders.proteins.encoder import JSON, Known, VectorTable
from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.ground.files import sha256_file
from vcc_fm.ground.identity import file_identity
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.embed import ProteinEncoderSettings

_SAVE_AGAIN = "save it again as torch.save({str(symbol): vector, …}) with 1-D float tensors"


class TableSettings(ProteinEncoderSettings):
    """Keys of ``embed.proteins`` with ``encoder: table``."""

    encoder: Literal["table"] = Field("table", description="vectors as they are given")
    table: str = Field(description="a .pt dictionary symbol -> vector, such as ESM2_pert_features.pt")


class Table(VectorTable):
    """The vectors of a ``.pt`` dictionary; nothing is known of their sequences."""

    Settings = TableSettings

    def __init__(self, settings: TableSettings):
        self.settings = settings

    @cached_property
    def _read(self) -> tuple[list[str], NDArray[np.float32]]:
        return read_pt(expand(self.settings.table))

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._read[1].shape[1]

    def identity(self) -> Any:
        """See :class:`ProteinEncoder`."""
        return ["table", file_identity(self.settings.table)]

    def known(self, fasta: Path | None) -> Known:
        """See :class:`ProteinEncoder`."""
        return Known(set(self._read[0]), {})

    def vectors(self) -> tuple[list[str], NDArray[np.float32]]:
        """See :class:`VectorTable`."""
        return self._read

    def describe(self) -> dict[str, JSON]:
        """See :class:`ProteinEncoder`."""
        path = expand(self.settings.table)
        return {
            "encoder": "table",
            "parameters": {"file": path.name, "sha256": sha256_file(path)},
            "licence": "that of the file; it does not say how its vectors were made",
            "citation": "",
        }


def read_pt(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Read a dictionary of protein vectors.

    The file is mapped, not loaded: memory holds the result and little besides.

    Args:
        path: a file that ``torch.save`` wrote in its zip form, the default since torch 1.6.

    Returns:
        The symbols in the order of the file, and their vectors, [n, width] float32.

    Raises:
        UserError: the file is missing, cut short, or needs an unsafe load; it is not a dictionary of ``str`` to 1-D
            float tensors of one length; a vector holds NaN or infinity.
    """
    with reading(path, "protein vectors"):
        return _vectors(path, _load(path))


def _vectors(path: Path, table: object) -> tuple[list[str], NDArray[np.float32]]:
    import torch

    if not isinstance(table, dict) or not table:
        kind = "an empty dictionary" if table == {} else type(table).__name__
        raise UserError(f"{path}: a dictionary of symbol -> vector is expected, found {kind}; {_SAVE_AGAIN}")
    for symbol, vector in table.items():
        if not isinstance(symbol, str):
            raise UserError(
                f"{path}: a key is {shown(symbol)} ({type(symbol).__name__}) where a symbol is expected; {_SAVE_AGAIN}"
            )
        if not isinstance(vector, torch.Tensor) or vector.dim() != 1 or not vector.is_floating_point():
            found = (
                f"{str(vector.dtype).removeprefix('torch.')} of shape {list(vector.shape)}"
                if isinstance(vector, torch.Tensor)
                else type(vector).__name__
            )
            raise UserError(f"{path}: {symbol} is {found} where a 1-D float vector is expected; {_SAVE_AGAIN}")
    first, width = next((symbol, len(vector)) for symbol, vector in table.items())
    other = next((symbol for symbol, vector in table.items() if len(vector) != width), None)
    if other is not None or not width:
        raise UserError(
            f"{path}: vectors of one length above 0 are expected, found {width} for {first}"
            + (f" and {len(table[other])} for {other}" if other is not None else "")
        )
    vectors = np.empty((len(table), width), np.float32)
    rows = torch.from_numpy(vectors)
    bad = []
    for row, (symbol, vector) in enumerate(table.items()):
        rows[row] = vector  # converts any float type
        if not bool(torch.isfinite(rows[row]).all()):
            bad.append(symbol)
    if bad:
        raise UserError(
            f"{path}: {len(bad):,} of {len(table):,} vectors hold NaN or infinity ({', '.join(bad[:3])}); remove them"
        )
    return list(table), vectors


def _load(path: Path) -> object:
    import torch

    if path.is_dir():
        raise UserError(f"{path}: is a folder; a .pt file is expected")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    # The zip form can be mapped, and its index stands at its end, so that a file cut short is no zip file.
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: cut short, or not written by torch.save since torch 1.6; get it again, or {_SAVE_AGAIN}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {needs[1]}, which" if needs else "holds something that"
        raise UserError(f"{path}: {what} only an unsafe load can read; where you trust it, {_SAVE_AGAIN}") from None


def write_pt(path: Path, symbols: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write protein vectors as a dictionary that ``torch.load`` reads with its defaults.

    Each vector is stored on its own, so that a user who keeps one of them does not keep them all. The file is whole or
    absent: it is written under a temporary name, flushed and renamed.

    Args:
        path: the file to write, replaced where it exists.
        symbols: [n] distinct symbols.
        vectors: [n, width] float32.
    """
    import torch

    # torch warns at an array that it could not write to, such as a mapped one, though saving only reads.
    rows = np.require(vectors, np.float32, ["C", "W"])
    table = {str(symbol): torch.from_numpy(row) for symbol, row in zip(symbols, rows, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(table, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
