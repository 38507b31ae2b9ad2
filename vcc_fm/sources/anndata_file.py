"""A file as anndata writes it (h5ad, or zarr in a folder or a zip): opened, its tables read, its matrices named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import h5py
import pandas as pd
import zarr
from anndata.io import read_elem
from zarr.errors import ContainsArrayError
from zarr.storage import LocalStore, ZipStore

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import sha256_file
from vcc_fm.sources.inside import check_folder, check_hdf5, check_lengths
from vcc_fm.sources.matrix import Stored
from vcc_fm.sources.zarr_array import check_table

File: TypeAlias = h5py.File | zarr.Group


@contextmanager
def open_file(path: Path, where: str, get: str | None) -> Iterator[File]:
    """Open a file for reading; a folder or a name that ends in ``.zip`` is taken for zarr, all else for HDF5.

    Args:
        path: of the file.
        where: source and file, for messages.
        get: where to get the file, for the message when it is missing.

    Raises:
        UserError: it is missing, may not be read, or is neither HDF5 nor zarr; or it leads out of itself.
    """
    if not path.exists():
        raise UserError(f"{where}: no such file" + (f"; get it from {get}" if get else "; correct the path"))
    if path.is_dir() or path.suffix == ".zip":
        store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
        group = _root(store, where)
        with closing(store):
            if path.is_dir():
                check_folder(path, where)
            yield group
    else:
        with _hdf5(path, where) as file:
            with reading(where, "HDF5"):
                check_hdf5(file, where)
            yield file


def _hdf5(path: Path, where: str) -> h5py.File:
    with reading(where, "HDF5"):
        try:
            return h5py.File(path, "r")
        except PermissionError:
            raise UserError(f"{where}: may not be read; change its permissions") from None
        except BlockingIOError:
            raise UserError(f"{where}: is being written by another program; wait until that is done") from None


def _root(store: LocalStore | ZipStore, where: str) -> zarr.Group:
    with reading(where, "zarr"):
        try:
            return zarr.open_group(store, mode="r")
        except PermissionError:
            raise UserError(f"{where}: may not be read; change its permissions") from None
        except ContainsArrayError:
            raise UserError(
                f"{where}: zarr, but not AnnData: it is a single array; give the store around it"
            ) from None
        except FileNotFoundError:
            lacks = "no zarr store: no zarr.json and no .zgroup"
            if isinstance(store, LocalStore):
                message = f"is a folder, and {lacks} in it; give an h5ad file, or a zarr store written by anndata"
            else:
                message = f"is a zip, and {lacks} at its root; zip what is in the store's folder, not the folder"
            raise UserError(f"{where}: {message}") from None


def check_columns(file: File, path: str, columns: set[str], where: str) -> Stored:
    """The table at ``path`` as it is stored, if none of its columns is cut short; see :func:`read_table`."""
    with reading(f"{where}, {path}", "AnnData"):
        stored = file[path]
        if isinstance(stored, h5py.Group | zarr.Group):
            check_lengths(stored, f"{where}, {path}")
        if isinstance(stored, zarr.Group):
            check_table(stored, columns, f"{where}, {path}")
    return stored


def read_table(file: File, path: str, columns: set[str], where: str) -> pd.DataFrame:
    """Read the table at ``path`` (obs, var, raw/var).

    Args:
        file: open for reading.
        path: of the table in the file.
        columns: those whose values will be used, which a zarr store must hold whole; see :func:`check_table`.
        where: source and file, for messages.

    Raises:
        UserError: it is damaged, or written by a very old anndata.
    """
    stored = check_columns(file, path, columns, where)
    with reading(f"{where}, {path}", "AnnData"):
        table = read_elem(stored)
    if not isinstance(table, pd.DataFrame):
        raise UserError(f"{where}, {path}: written by an anndata before 0.7; write it again with a newer one")
    return table


def locate(file: File, matrix: str, where: str) -> tuple[Stored, str]:
    """The matrix of that name, and the path of its table of genes.

    Raises:
        UserError: the file holds no AnnData, or has no such matrix.
    """
    with reading(where, "AnnData"):
        if "obs" not in file or "var" not in file:
            kind = "zarr, but not AnnData" if isinstance(file, zarr.Group) else "HDF5, but not h5ad"
            raise UserError(f"{where}: {kind}: it has no obs and var")
        present = matrices(file)
        if matrix not in present:
            raise UserError(f"{where}: has no matrix {matrix!r}; set matrix to one of {', '.join(present)}")
        return (file["raw/X"], "raw/var") if matrix == "raw" else (file[matrix], "var")


def matrices(file: File) -> list[str]:
    """Names of the matrices, as a recipe writes them: X, raw, layers/NAME."""
    names = ["X"] if "X" in file else []
    names += ["raw"] if "raw/X" in file else []
    return names + (sorted(f"layers/{name}" for name in file["layers"]) if "layers" in file else [])


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def changed_at(path: Path) -> int:
    """When a file, or anything in a folder, was last written, ns since the epoch; 0 where there is nothing."""
    inside = path.rglob("*") if path.is_dir() else []
    return max((part.stat().st_mtime_ns for part in [path, *inside] if part.exists()), default=0)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file; of a folder, that of a list of all files in it: name, newline, SHA-256, newline.

    Names are relative to the folder and sorted, so that a folder that moves stays the same.
    """
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for name, part in sorted((part.relative_to(path).as_posix(), part) for part in path.rglob("*") if part.is_file()):
        digest.update(f"{name}\n{sha256_file(part)}\n".encode())
    return digest.hexdigest()
