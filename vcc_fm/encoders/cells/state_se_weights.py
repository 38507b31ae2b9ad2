"""SE from a folder as the Hub holds it (``arcinstitute/SE-600M``), or from a Lightning ``.ckpt``.

Three files make a checkpoint: the weights, ``protein_embeddings.pt`` (gene symbol -> row of the ESM table, in the
order of the rows) and ``config.yaml``, which alone tells the number of attention heads. Symbols in another order would
give every gene the token of another, silently, so the two tables are compared. Nothing is unpickled but tensors and
plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from vcc_fm.encoders.cells.state_se_geometry import TIED, SeGeometry
from vcc_fm.encoders.proteins.encoder import JSON
from vcc_fm.encoders.torch_file import load_plain, symbol_vectors
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import sha256_file
from vcc_fm.ground.hub import Address, address_of, pull

SE_600M = "arcinstitute/SE-600M"
SE_600M_REVISION = "5a9a80f44f7ce32ce57059933ef0d735d7c10ce5"

WEIGHTS = "model.safetensors"
PROTEINS = "protein_embeddings.pt"
CONFIG = "config.yaml"

_TABLE = "pe_embedding.weight"
_OUTPUT = "decoder.1.weight"
# Rows of the ESM table that are compared at a time, 21 MB at 5120 columns.
_CHUNK = 1024


@dataclass(frozen=True)
class SeCheckpoint:
    """A checkpoint of SE, checked.

    Attributes:
        geometry: Its sizes.
        names: Gene symbols, one per row of the ESM table.
        tensors: By the checkpoint's names, without the tied copies; mapped from the file, read when used.
        name: Hub id, or name of the folder or file.
        revision: Commit on the Hub; None where it came from elsewhere.
        files: That it was read from.
    """

    geometry: SeGeometry
    names: list[str]
    tensors: dict[str, Tensor]
    name: str
    revision: str | None
    files: tuple[Path, ...]

    def describe(self) -> dict[str, JSON]:
        """Name, revision and SHA-256 of the files, which takes a while: what ``store.json`` records."""
        digests: dict[str, JSON] = {file.name: sha256_file(file) for file in self.files}
        revision: dict[str, JSON] = {} if self.revision is None else {"revision": self.revision}
        return {"name": self.name, **revision, "heads": self.geometry.heads, "sha256": digests}


def load_state_se(path_or_hub_id: str, revision: str | None = None, heads: int | None = None) -> SeCheckpoint:
    """Load a checkpoint of SE, of any size.

    Args:
        path_or_hub_id: A folder with ``model.safetensors`` (else one ``.ckpt``), ``protein_embeddings.pt`` and
            ``config.yaml``; a ``.safetensors`` or ``.ckpt`` file with the other two beside it; or a Hub id.
        revision: Branch, tag or commit on the Hub; None is :data:`SE_600M_REVISION` for SE-600M, else the newest.
        heads: Attention heads; None takes ``model.nhead`` of ``config.yaml``.

    Raises:
        UserError: There is no such file, folder or repository; a file is missing, damaged or would have to run code;
            weights are missing, surplus, not finite or of unfit shapes; the gene symbols do not belong to the weights;
            the number of heads is unknown, or ``config.yaml`` is of another checkpoint.
    """
    file, name, commit = _find(path_or_hub_id, revision)
    with reading(file, "a checkpoint of SE"):
        return _load(file, name, commit, heads)


def _load(file: Path, name: str, commit: str | None, heads: int | None) -> SeCheckpoint:
    files = [file]
    config = file.parent / CONFIG
    settings: dict[str, Any] = {}
    if config.is_file():
        settings = _settings(config)
        files.append(config)
    vectors: Any = None
    if file.suffix == ".ckpt":
        tensors, vectors, hyper_parameters = _read_lightning(file)
        settings = {"nhead": hyper_parameters.get("nhead"), **settings}
    else:
        tensors = _read_safetensors(file)
    vectors_file = file
    if vectors is None:
        vectors_file = file.parent / PROTEINS
        files.append(vectors_file)
        advice = f"it tells which gene is which row of the ESM table: get it from {SE_600M}"
        vectors = load_plain(vectors_file, "gene vectors", advice)
    rows = symbol_vectors(vectors, vectors_file)
    if file.suffix == ".ckpt" and _TABLE not in tensors:
        tensors[_TABLE] = torch.stack(list(rows.values()))

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    geometry = SeGeometry.from_shapes(shapes, _heads(heads, settings, config), str(file))
    _check_settings(settings, geometry, config, file)
    _check_values(tensors, file)
    _compare(rows, vectors_file, tensors[_TABLE], file)
    untied = {key: tensor for key, tensor in tensors.items() if key not in TIED}
    return SeCheckpoint(geometry, list(rows), untied, name, commit, tuple(files))


def read_width(path_or_hub_id: str, revision: str | None = None) -> int:
    """Length of a checkpoint's cell embedding, without its weights: on the Hub only ``config.yaml`` is fetched.

    Raises:
        UserError: There is no such checkpoint, or its size cannot be told.
    """
    if Path(path_or_hub_id).exists() or address_of(path_or_hub_id) is None:
        file, _, _ = _find(path_or_hub_id, revision)
        tensors = _read_lightning(file)[0] if file.suffix == ".ckpt" else _read_safetensors(file)
        if _OUTPUT not in tensors:
            raise UserError(f"{file}: {_OUTPUT} is missing; give a checkpoint of SE (model.safetensors of SE-600M)")
        return int(tensors[_OUTPUT].shape[0])
    config = pull(_address(path_or_hub_id, revision), [CONFIG])[0] / CONFIG
    width = _settings(config).get("output_dim")
    if not isinstance(width, int):
        raise UserError(f"{config}: model.output_dim is {width!r}; download the repository and give its folder")
    return width


def _address(hub_id: str, revision: str | None) -> Address:
    """The repository, at the revision asked for; of SE-600M at the pinned one where none is."""
    if revision is None and hub_id.removeprefix("hf://") == SE_600M:
        revision = SE_600M_REVISION
    address = address_of(hub_id, revision=revision)
    if address is None or address.path:
        raise UserError(f"{hub_id}: no such folder, and no Hub id (OWNER/NAME)")
    return address


def _find(path_or_hub_id: str, revision: str | None) -> tuple[Path, str, str | None]:
    """The file with the weights, what the checkpoint is called, and its commit on the Hub."""
    path = Path(path_or_hub_id)
    if path.exists():
        if revision is not None:
            raise UserError(f"embed.cells.revision={revision}: {path} is here and not on the Hub, it has no revisions")
        if path.is_dir():
            return _weights_in(path), path.resolve().name, None
        if path.suffix not in (".safetensors", ".ckpt"):
            raise UserError(f"{path}: not a .safetensors or .ckpt file, nor a folder with one")
        return path, path.name, None
    if path.suffix in (".safetensors", ".ckpt"):
        raise UserError(f"{path}: no such file")
    address = _address(path_or_hub_id, revision)
    folder, commit = pull(address, [WEIGHTS, PROTEINS, CONFIG, "*LICENSE*", "*POLICY*"])
    return _weights_in(folder), address.repo, commit


def _weights_in(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    others = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".ckpt"))
    match others:
        case []:
            raise UserError(f"{folder}: no {WEIGHTS}; give a folder as the Hub holds {SE_600M}")
        case [file] if file.suffix == ".ckpt":
            return file
    raise UserError(
        f"{folder}: no {WEIGHTS}, but {', '.join(file.name for file in others)}; give the path of one file"
    )


def _settings(config: Path) -> dict[str, Any]:
    """Section ``model`` of ``config.yaml``; empty where it has none."""
    with reading(config, "plain YAML", "get it again, or remove it"):
        read = yaml.safe_load(config.read_text(encoding="utf-8"))
    match read:
        case {"model": dict() as model}:
            return model
    return {}


def _check_settings(settings: dict[str, Any], geometry: SeGeometry, config: Path, file: Path) -> None:
    """Sizes that ``config.yaml`` states are those that the shapes tell."""
    told = {
        "emsize": geometry.width,
        "d_hid": geometry.hidden,
        "nlayers": geometry.layers,
        "output_dim": geometry.output,
    }
    for key, size in told.items():
        stated = settings.get(key)
        # A size may be written as a reference to another (${model.emsize}), which is not followed.
        if isinstance(stated, int) and stated != size:
            raise UserError(f"{config}: model.{key} is {stated}, {file.name} has {size}: it is of another checkpoint")


def _heads(heads: int | None, settings: dict[str, Any], config: Path) -> int:
    if heads is not None:
        return heads
    found = settings.get("nhead")
    # isinstance of bool: `nhead: yes` would pass for 1
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    told = "is not there" if not config.is_file() else f"has model.nhead {found!r}"
    raise UserError(f"{config} {told}; set embed.cells.heads (16 for SE-600M), which the weights do not tell")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with reading(file, "safetensors"), safe_open(file, framework="pt", device="cpu") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}


def _read_lightning(file: Path) -> tuple[dict[str, Tensor], Any, dict[str, Any]]:
    """Weights, gene symbols with vectors (None where it has none) and hyper-parameters of a Lightning checkpoint."""
    match load_plain(file, "a checkpoint of torch", f"use {WEIGHTS}"):
        case {"state_dict": Mapping() as weights, **rest} if all(
            isinstance(value, Tensor) for value in weights.values()
        ):
            parameters = rest.get("hyper_parameters")
            return dict(weights), rest.get("protein_embeds_dict"), parameters if isinstance(parameters, dict) else {}
    raise UserError(f"{file}: no Lightning checkpoint: no `state_dict` with tensors in it")


def _check_values(tensors: dict[str, Tensor], file: Path) -> None:
    """Every weight is a finite number, and the tied copies are copies."""
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{file}: {key} is {str(tensor.dtype).removeprefix('torch.')}, wanted floating point")
        # Both are NaN where any is, and unlike isfinite they take no memory.
        if not all(math.isfinite(bound) for bound in torch.stack(torch.aminmax(tensor)).tolist()):
            raise UserError(f"{file}: {key} has NaN or infinite values; get it again")
    for copy, key in TIED.items():
        if copy in tensors and not torch.equal(tensors[copy], tensors[key]):
            raise UserError(f"{file}: {copy} is not equal to {key}; SE ties them, so this is another model")


def _compare(rows: dict[str, Tensor], rows_file: Path, table: Tensor, file: Path) -> None:
    """The vectors are the rows of the table, in its order."""
    symbols, vectors = list(rows), list(rows.values())
    if len(vectors) != len(table) or len(vectors[0]) != table.shape[1]:
        raise UserError(
            f"{rows_file}: {len(vectors)} genes with {len(vectors[0])} values each, {_TABLE} of {file.name} has shape "
            f"{list(table.shape)}; they are of two checkpoints"
        )
    unequal: list[int] = []
    for start in range(0, len(table), _CHUNK):
        block = torch.stack(vectors[start : start + _CHUNK]).to(table.dtype)
        unequal += (start + (block != table[start : start + _CHUNK]).any(1).nonzero().flatten()).tolist()
    if unequal:
        raise UserError(
            f"{rows_file}: {len(unequal)} of {len(table)} vectors are not the rows of {_TABLE} in {file.name}, the "
            f"first is of {symbols[unequal[0]]}; take both files from one revision, in their own order"
        )
