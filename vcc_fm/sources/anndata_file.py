"""A file as anndata writes it: opened, its tables read, its matrices named."""

from __future__ import annotations

from pathlib import Path

import h5py
import pandas as pd
from anndata.io import read_elem

from vcc_fm.errors import UserError
from vcc_fm.sources.matrix import damage, first_line


def open_file(path: Path, where: str, get: str | None) -> h5py.File:
    """Open a file for reading.

    Args:
        path: of the file.
        where: source and file, for messages.
        get: where to get the file, for the message when it is missing.

    Raises:
        UserError: it is missing, may not be read, or is no HDF5.
    """
    if not path.exists():
        raise UserError(f"{where}: no such file" + (f"; get it from {get}" if get else "; correct the path"))
    if path.is_dir():
        raise UserError(f"{where}: is a folder; give an h5ad file")
    try:
        return h5py.File(path, "r")
    except PermissionError:
        raise UserError(f"{where}: may not be read; change its permissions") from None
    except BlockingIOError:
        raise UserError(f"{where}: is being written by another program; wait until that is done") from None
    except OSError as error:
        raise UserError(f"{where}: cut short or damaged, or not HDF5 ({first_line(error)}); get it again") from None


def read_table(file: h5py.File, path: str, where: str) -> pd.DataFrame:
    """Read the table at ``path`` (obs, var, raw/var).

    Raises:
        UserError: it is damaged, or written by a very old anndata.
    """
    with damage(f"{where}, {path}"):
        table = read_elem(file[path])
    if not isinstance(table, pd.DataFrame):
        raise UserError(f"{where}, {path}: written by an anndata before 0.7; write it again with a newer one")
    return table


def locate(file: h5py.File, matrix: str, where: str) -> tuple[h5py.Dataset | h5py.Group, str]:
    """The matrix of that name, and the path of its table of genes.

    Raises:
        UserError: the file is no h5ad, or has no such matrix.
    """
    if not {"obs", "var"} <= file.keys():
        raise UserError(f"{where}: HDF5, but not h5ad: it has no obs and var")
    present = matrices(file)
    if matrix not in present:
        raise UserError(f"{where}: has no matrix {matrix!r}; set matrix to one of {', '.join(present)}")
    return (file["raw/X"], "raw/var") if matrix == "raw" else (file[matrix], "var")


def matrices(file: h5py.File) -> list[str]:
    """Names of the matrices, as a recipe writes them: X, raw, layers/NAME."""
    names = ["X"] if "X" in file else []
    names += ["raw"] if "raw/X" in file else []
    return names + ([f"layers/{name}" for name in file["layers"]] if "layers" in file else [])
