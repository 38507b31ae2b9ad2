"""What says cheaply whether an input is still the same: of files, folders and models, for fingerprints."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.paths import expand, without_secrets

_END = 1 << 20
_BLOCKS, _BLOCK = 64, 1 << 14
"""Number of blocks, and bytes of each, that are read between the ends of a file."""
_COLUMN = 16 << 20
"""Bytes of a column of labels that are read: 8 million cells in two bytes each."""
_TEXT = 64
"""Bytes for which a text counts, as reading it takes as long."""
_LABELS = ("obs", "var", "raw/var")
_SETTLED = 2_000_000_000
"""Nanoseconds after which another change has another time on any file system."""
MODEL = ("config.json", "*.safetensors")
"""Files of a transformers model that say what it computes."""

ARC_ST = ("config.yaml", "pert_onehot_map.pt")
"""Files of a run of Arc's ST, beside its checkpoints, that say what it computes."""

_ZARR_ROOT = ("zarr.json", ".zgroup")
_ZARR_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


def model_identity(model: str, patterns: tuple[str, ...] = MODEL) -> object:
    """Identity of a checkpoint file, or of the files in a folder that match ``patterns``; a Hub id is its own."""
    path = expand(model)
    if path.is_file():
        return file_identity(model)
    return folder_identity(path, patterns) if path.is_dir() else model


def file_identity(path: str) -> str:
    """Size and a SHA-256 of parts of a file, whatever its name; ``absent`` where there is none.

    Parts are the first and last MiB, blocks spread between them, and of an h5ad file what its labels hold: a
    matrix or a label that is mended in place may change neither size nor ends. Reading tens of gigabytes to see if
    a stage is done would take longer than many stages; the stage itself records the SHA-256 of the whole. A folder
    is ``absent`` unless it is a zarr store. What stands at an address is taken to stay the same: to ask at every look
    would need a network.
    """
    if "://" in path:
        return without_secrets(path)
    try:
        file = expand(path)
    except UserError:
        return "absent"
    if any((file / name).is_file() for name in _ZARR_ROOT):
        return _zarr_identity(file)
    if not file.is_file():
        return "absent"
    state = file.stat()
    # What was written just now may be written again at the same time, as the file system's clock has it.
    settled = time.time_ns() - state.st_mtime_ns > _SETTLED
    read = _content if settled else _content.__wrapped__
    return f"{state.st_size}:{read(file, state.st_size, state.st_mtime_ns, state.st_ino)}"


@lru_cache
def _content(file: Path, size: int, changed: int, place: int) -> str:
    """SHA-256 of the parts of a file; a run asks for each of its inputs some forty times."""
    end = max(0, size - _END)
    between = np.linspace(min(_END, end), end, _BLOCKS, dtype=int).tolist()
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        for start, length in ((0, _END), *((start, _BLOCK) for start in between), (end, _END)):
            handle.seek(start)
            digest.update(handle.read(length))
    if size > 2 * _END and h5py.is_hdf5(file):
        # A damaged file, or one that is being written, is refused by who reads it.
        with suppress(OSError, RuntimeError, KeyError), h5py.File(file, "r", locking=False) as content:
            for table in _LABELS:
                if isinstance(content.get(table), h5py.Group):
                    content[table].visititems(lambda name, part: digest.update(_values(name, part)))
    return digest.hexdigest()


def _values(name: str, part: h5py.Group | h5py.Dataset) -> bytes:
    """What a column of an h5ad file holds, or a part of it; where reading takes time, its size."""
    if not isinstance(part, h5py.Dataset):
        return b""
    text = h5py.check_string_dtype(part.dtype) is not None
    large = part.size * (_TEXT if text else part.dtype.itemsize) > _COLUMN
    if large or (part.dtype.hasobject and not text):
        return f"{name} {part.shape}".encode()
    values = np.asarray(part[()])
    # Texts are bytes here, those of one length in a plain array.
    held = b"\0".join(map(bytes, values.flat)) if values.dtype.hasobject else values.tobytes()
    return name.encode() + held


def _zarr_identity(folder: Path) -> str:
    """Total size and a SHA-256 of the names and sizes of all files, and of the content of metadata, obs and var.

    Other values in a matrix are seen by the sizes of its compressed chunks.
    """
    digest, total = hashlib.sha256(), 0
    for name, file in sorted((f.relative_to(folder).as_posix(), f) for f in folder.rglob("*") if f.is_file()):
        size = file.stat().st_size
        total += size
        digest.update(f"{name}\n{size}\n".encode())
        if file.name in _ZARR_METADATA or name.startswith(("obs/", "var/", "raw/var/")):
            digest.update(file.read_bytes())
    return f"{total}:{digest.hexdigest()}"


def store_identity(where: str) -> str:
    """Identity of a store elsewhere: its address, which is taken to stay the same, or that of its description."""
    return where if where.startswith("hf://") else file_identity(f"{where}/store.json")


def base_identity(base: Path) -> dict[str, str]:
    """Identity of what a decoder starts from: a saved model's folder, a run of Arc's ST, or a ``.ckpt`` file in one.

    None for a Hub id.
    """
    if base.suffix == ".ckpt":
        return {**folder_identity(arc_st_folder(base), ARC_ST), base.name: file_identity(str(base))}
    return folder_identity(base, (*MODEL, *ARC_ST, "checkpoints/*.ckpt"))


def arc_st_folder(checkpoint: Path) -> Path:
    """Folder of the run of ST that a checkpoint is of; it stands in ``checkpoints`` there, or in the folder itself."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def folder_identity(folder: Path, patterns: tuple[str, ...] = MODEL) -> dict[str, str]:
    """The identities of the files in a saved model's folder that say what it computes; none for a Hub id."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return {file.name: file_identity(str(file)) for file in files}
