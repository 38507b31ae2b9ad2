"""Protein vectors as a ``.pt`` dictionary, symbol -> 1-D tensor: the form in which State reads and Arc publishes them.

``ESM2_pert_features.pt`` and ``protein_embeddings.pt`` are of this form. Nothing but plain tensors is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vcc_fm.encoders.proteins.encoder import JSON, Known, VectorTable
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import sha256_file, whole_file
from vcc_fm.ground.identity import file_identity
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.embed import ProteinEncoderSettings


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
    import torch

    from vcc_fm.encoders.torch_file import SAVE_AGAIN, load_plain, symbol_vectors

    table = symbol_vectors(load_plain(path, "protein vectors", SAVE_AGAIN), path)
    vectors = np.empty((len(table), len(next(iter(table.values())))), np.float32)
    rows = torch.from_numpy(vectors)
    bad = []
    with reading(path, "protein vectors"):
        for row, (symbol, vector) in enumerate(table.items()):
            rows[row] = vector  # converts any float type
            if not bool(torch.isfinite(rows[row]).all()):
                bad.append(symbol)
    if bad:
        raise UserError(
            f"{path}: {len(bad):,} of {len(table):,} vectors hold NaN or infinity ({', '.join(bad[:3])}); remove them"
        )
    return list(table), vectors


def write_pt(path: Path, symbols: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write protein vectors as a dictionary that ``torch.load`` reads with its defaults.

    Each vector is stored on its own, so that a user who keeps one of them does not keep them all. The file is whole or
    absent.

    Args:
        path: the file to write, replaced where it exists.
        symbols: [n] distinct symbols.
        vectors: [n, width] float32.
    """
    import torch

    # torch warns at an array that it could not write to, such as a mapped one, though saving only reads.
    rows = np.require(vectors, np.float32, ["C", "W"])
    table = {str(symbol): torch.from_numpy(row) for symbol, row in zip(symbols, rows, strict=True)}
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(table, file)
