"""Weights from a folder or the Hub: safetensors alone, no code, and compared with their config before they are read.

`transformers` makes room for whatever a config claims, and fills what the weights lack with what is in memory. So a
decoder is built without memory first, and the headers of the weights must name its tensors, in their shapes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, unfit
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import read_json
from vcc_fm.ground.hub import address_of, pull

WEIGHTS = ["*.json", "*.safetensors"]
"""Files of a model's repository that are fetched: nothing pickled, no code."""
_INDEX = "model.safetensors.index.json"


def load_decoder(base: str | Path, revision: str | None = None) -> PerturbationDecoder:
    """A trained decoder.

    Args:
        base: folder, or Hub id.
        revision: of the Hub id.

    Raises:
        UserError: there is none, its weights are not safetensors, or they do not fit its config.
    """
    folder = local_model(str(base), revision)
    config = base_config(str(base), revision)
    if not isinstance(config, PerturbationDecoderConfig):
        raise UserError(f"{base}: holds a {config.model_type}, where a decoder of this program is expected")
    check_weights(folder, config)
    return _load(PerturbationDecoder, folder, str(base))


def load_backbone(base: str, revision: str | None) -> nn.Module:
    """Any model that `transformers` can load; weights beyond it, as of a head, are left.

    Raises:
        UserError: as :func:`load_decoder`.
    """
    folder = local_model(base, revision)
    config, held = base_config(base, revision), sum(math.prod(shape) for shape in _headers(folder).values())
    try:
        with torch.device("meta"):
            claimed = sum(value.numel() for value in AutoModel.from_config(config).state_dict().values())
    except UNFIT as error:
        raise unfit(config.to_dict(), error) from None
    if claimed > 1.1 * held + 1e6:  # what a model makes itself, such as positions, takes little
        raise UserError(f"{base}: its config claims {claimed:,} numbers, its weights hold {held:,}; take another base")
    return _load(AutoModel, folder, base)


def local_model(base: str, revision: str | None, files: list[str] = WEIGHTS) -> Path:
    """The folder of a model: ``base`` itself, or what the Hub has under that id, its ``files`` alone.

    Raises:
        UserError: there is none.
    """
    if Path(base).is_dir():
        return Path(base)
    address = address_of(base, revision=revision)
    if address is None or address.path or address.kind != "model":
        raise UserError(f"{base}: no such folder, and no Hub id (ORG/NAME, or ORG/NAME@REVISION)")
    return pull(address, files)[0]


def base_config(base: str, revision: str | None) -> PretrainedConfig:
    """The configuration of a decoder or of any backbone that ``transformers`` can load.

    Args:
        base: folder or Hub id.
        revision: of the Hub id.

    Raises:
        UserError: there is none, or it names code.
    """
    folder = local_model(base, revision, ["config.json"])
    if not (folder / "config.json").is_file():
        raise UserError(f"{base}: no decoder or backbone that transformers can load (it has no config.json)")
    if "auto_map" in read_json(folder / "config.json"):
        raise UserError(f"{base}: its config.json names code to load it with (auto_map); code from a model is not run")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, *UNFIT) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{base}: no decoder or backbone that transformers can load ({said})") from None


def check_weights(folder: Path, config: PerturbationDecoderConfig) -> None:
    """Compare the headers of the weights in a folder with what a config asks for; no weight is read.

    Raises:
        UserError: there are no safetensors, or a tensor is missing, not expected or of another shape.
    """
    found = _headers(folder)
    try:
        layers = config.backbone_config().num_hidden_layers
        if layers > len(found):
            raise ValueError(f"the config asks for {layers} layers, the weights have {len(found)} tensors")
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in PerturbationDecoder(config).state_dict().items()}
    except UNFIT as error:
        raise UserError(f"{folder}: {unfit(config.backbone, error)}; take another checkpoint") from None
    compare(str(folder), found, wanted)


def compare(where: str, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of tensors with those that are wanted.

    Raises:
        UserError: one is missing, not expected or of another shape.
    """
    for what, names in (
        ("lack", wanted.keys() - found),
        ("have in vain", found.keys() - wanted),
        ("have in another shape", {name for name in wanted.keys() & found if wanted[name] != found[name]}),
    ):
        if names:
            first = min(names)
            shapes = f" ({list(found[first])} for {list(wanted[first])})" if "shape" in what else ""
            raise UserError(
                f"{where}: its weights {what} {len(names)} tensors, such as {first}{shapes}; take another checkpoint"
            )


def _headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the weights of a folder."""
    files = {"model.safetensors"}
    if (folder / _INDEX).exists():
        named = read_json(folder / _INDEX).get("weight_map")
        files = set(named.values()) if isinstance(named, dict) else set()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(files):
        file = folder / str(name)
        if file.parent != folder or not file.is_file():
            raise UserError(f"{folder}: its weights cannot be loaded (safetensors only): there is no {name}")
        shapes |= header(file)
    return shapes


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file, by its header alone.

    Raises:
        UserError: it is no such file.
    """
    with reading(file, "safetensors", "take another checkpoint"), safe_open(file, "pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}


def _load(kind: type[Any], folder: Path, base: str) -> Any:
    """Weights as safetensors only, code of this program only: a checkpoint from elsewhere must not run any."""
    try:
        model, found = kind.from_pretrained(
            str(folder), use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{base}: its weights cannot be loaded (safetensors only): {said}") from None
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{base}: its weights lack {len(missing)} tensors, such as {missing[0]}; take another checkpoint"
        )
    if wrong := not_finite(model):
        raise UserError(f"{base}: {len(wrong)} tensors are not finite, such as {wrong[0]}; take another checkpoint")
    return model


def not_finite(model: nn.Module) -> list[str]:
    """Names of the tensors of a model that hold NaN or infinity."""
    return [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
