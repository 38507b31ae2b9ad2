"""Stores that lie elsewhere: in another folder, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.hub import address_of, pull
from vcc_fm.ground.paths import expand
from vcc_fm.store.verify import is_store


def local_store(where: str, file: str = "*") -> Path:
    """The folder of a store, fetched first where that is an address.

    Args:
        where: a folder, or ``hf://datasets/ORG/NAME[@REVISION]/FOLDER``.
        file: what of it is fetched.

    Raises:
        UserError: there is no store.
    """
    if where.startswith("hf://"):
        address = address_of(where)
        if address is None or not address.path:
            raise UserError(f"{where}: write hf://datasets/ORG/NAME/FOLDER, with NAME@REVISION if needed")
        folder = pull(address, [f"{address.path}/{file}"])[0] / address.path
    else:
        folder = expand(where)
    if not is_store(folder):
        raise UserError(f"{where}: is no store (it has no store.json)")
    return folder
