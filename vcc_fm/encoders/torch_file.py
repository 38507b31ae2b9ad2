"""Files of torch: plain tensors and values alone, and the dictionaries symbol -> vector that State and Arc publish."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from vcc_fm.ground.errors import UserError, reading, shown

SAVE_AGAIN = "save it again as torch.save({str(symbol): vector, …}) with 1-D float tensors"


def load_plain(path: Path, what: str, advice: str) -> Any:
    """Tensors and plain values of a file that ``torch.save`` wrote in its zip form, the default since torch 1.6.

    The file is mapped, not loaded. Nothing else is ever unpickled: that could run any code.

    Args:
        path: the file.
        what: it should be, for the message.
        advice: how to get such a file.

    Raises:
        UserError: the file is missing, cut short, or needs an unsafe load.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; a file of torch is expected")
    if not path.exists():
        raise UserError(f"{path}: no such file; {advice}")
    with reading(path, what):
        # The zip form can be mapped, and its index stands at its end, so that a file cut short is no zip file.
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"{path}: cut short, or not written by torch.save since torch 1.6; get it again, or {advice}"
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            needs = re.search(r"GLOBAL (\S+)", str(error))
            holds = f"holds {needs[1]}, which" if needs else "holds something that"
            raise UserError(
                f"{path}: {holds} only an unsafe load can read, and a pickle could abuse; where you trust it, {advice}"
            ) from None


def symbol_vectors(table: object, path: Path) -> dict[str, torch.Tensor]:
    """A dictionary symbol -> vector, if ``table`` is one.

    Args:
        table: of :func:`load_plain`.
        path: of the file, for the message.

    Raises:
        UserError: it is not a dictionary of ``str`` to 1-D float tensors of one length above 0.
    """
    if not isinstance(table, dict) or not table:
        kind = "an empty dictionary" if table == {} else type(table).__name__
        raise UserError(f"{path}: a dictionary of symbol -> vector is expected, found {kind}; {SAVE_AGAIN}")
    for symbol, vector in table.items():
        if not isinstance(symbol, str):
            raise UserError(
                f"{path}: a key is {shown(symbol)} ({type(symbol).__name__}) where a symbol is expected; {SAVE_AGAIN}"
            )
        if not isinstance(vector, torch.Tensor) or vector.dim() != 1 or not vector.is_floating_point():
            found = (
                f"{str(vector.dtype).removeprefix('torch.')} of shape {list(vector.shape)}"
                if isinstance(vector, torch.Tensor)
                else type(vector).__name__
            )
            raise UserError(f"{path}: {symbol} is {found} where a 1-D float vector is expected; {SAVE_AGAIN}")
    first, width = next((symbol, len(vector)) for symbol, vector in table.items())
    other = next((symbol for symbol, vector in table.items() if len(vector) != width), None)
    if other is not None or not width:
        raise UserError(
            f"{path}: vectors of one length above 0 are expected, found {width} for {first}"
            + (f" and {len(table[other])} for {other}" if other is not None else "")
        )
    return table
