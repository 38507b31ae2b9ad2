"""Whether all that a file shows is in the file: nothing is read from elsewhere, or made up where nothing is stored.

HDF5 can point to other files: links, raw storage that is any file of the machine, arrays that are put together from
others. A zarr store can hold soft links. Who opens a file from elsewhere did not ask for those, and its checksum does
not cover them. Both can declare any number of values and store none: they read as zeros, and take all memory.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import h5py
import zarr

from vcc_fm.ground.errors import UserError

_READ = ("obs", "var", "X", "layers", "raw")


def check_hdf5(file: h5py.File, where: str) -> None:
    """Refuse an HDF5 file that leads out of itself anywhere, or stores less than it declares where it is read.

    Args:
        file: open.
        where: source and file, for messages.

    Raises:
        UserError: a link, an array or its values are elsewhere, or values are missing.
    """
    # What these return ends the walk; an error raised in it would not come out as itself.
    if found := file.visititems_links(_link_out) or file.visititems(_values_out):
        raise UserError(f"{where}{found}")


def _link_out(name: str, link: object) -> str | None:
    if isinstance(link, h5py.HardLink | h5py.SoftLink):
        return None
    return f": {name} is a link to another file; write it anew with anndata, in one file"


def _values_out(name: str, stored: object) -> str | None:
    if not isinstance(stored, h5py.Dataset):
        return None
    if stored.external or stored.is_virtual:
        return f": the values of {name} are in another file; write it anew with anndata"
    if name.startswith(_READ) and (missing := _missing(stored)):
        size = " x ".join(f"{size:,}" for size in stored.shape)
        return f", {name}: declares {size} values and stores fewer ({missing}); get it again"
    return None


def _missing(stored: h5py.Dataset) -> str:
    """What is not stored of an array; empty where it is whole."""
    if not stored.size:
        return ""
    if stored.chunks is None:
        # Few values may stand in the header of the array, whose size HDF5 does tell.
        size = stored.id.get_storage_size()
        return f"{size:,} of {stored.nbytes:,} bytes" if size < stored.nbytes else ""
    needed = math.prod(-(-size // step) for size, step in zip(stored.shape, stored.chunks, strict=True))
    found = stored.id.get_num_chunks()
    return f"{found:,} of {needed:,} chunks" if found < needed else ""


def check_folder(store: Path, where: str) -> None:
    """Refuse a zarr store in a folder from which a soft link leads out.

    Args:
        store: the folder, which may be reached by a link itself.
        where: source and file, for messages.

    Raises:
        UserError: there is such a link.
    """
    root = store.resolve()
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
                    name = Path(entry.path).relative_to(root)
                    raise UserError(f"{where}: {name} is a link out of the store; put what it leads to in its place")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def check_lengths(table: h5py.Group | zarr.Group, where: str) -> None:
    """Refuse a table of which a column has another length than the index: its other rows may be stored nowhere.

    Args:
        table: obs or var, as anndata writes it.
        where: source, file and table, for messages.

    Raises:
        UserError: there is such a column.
    """
    index = str(table.attrs["_index"])
    rows = _rows(table[index])
    for name in table:
        if name != "__categories" and _rows(table[name]) != rows:
            found = f"{_rows(table[name]):,} rows, the index {index} {rows:,}"
            raise UserError(f"{where}/{name}: damaged (it has {found}); get it again")


def _rows(column: h5py.Dataset | h5py.Group | zarr.Array | zarr.Group) -> int:
    if isinstance(column, h5py.Dataset | zarr.Array):
        return int(column.shape[0])
    return int((column["codes"] if "codes" in column else column["values"]).shape[0])
