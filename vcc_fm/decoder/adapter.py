"""An adapter without its base: what of a decoder is not the base's, and how the two become one model again.

Nothing is taken from the adapter's config but what a LoRA of this program has, and no room is made before the headers
of all weights were compared with what the configs ask for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, unfit
from vcc_fm.decoder.four_bit import require_bitsandbytes, round_to_4_bits
from vcc_fm.decoder.load import base_config, compare, header, load_backbone, load_decoder, not_finite
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError, first_fault, reading
from vcc_fm.ground.files import read_json

AROUND, ADAPTER, WEIGHTS = "around.safetensors", "adapter", "adapter_model.safetensors"
_BACKBONE = "backbone."


class _Lora(BaseModel):
    """The keys of an adapter's config that say what it computes."""

    model_config = ConfigDict(strict=True)
    peft_type: str = Field(pattern="^LORA$")
    r: int = Field(gt=0)
    lora_alpha: float = Field(gt=0)
    target_modules: list[str]
    modules_to_save: list[str]
    use_rslora: bool
    use_dora: bool


def save_around(decoder: PerturbationDecoder, path: Path) -> None:
    """Write all tensors of a decoder but its backbone's, buffers too."""
    state = decoder.state_dict()
    save_file({name: value.contiguous() for name, value in state.items() if not name.startswith(_BACKBONE)}, path)


def load_adapter(folder: Path, base: str, revision: str | None) -> PerturbationDecoder:
    """The merged decoder of an adapter.

    Args:
        folder: with the decoder's ``config.json``, ``adapter/`` and ``around.safetensors``.
        base: folder or Hub id of what the adapter is put on: a decoder, or a backbone.
        revision: of the Hub id.

    Raises:
        UserError: the base cannot be had; adapter, base and config do not fit each other; or the adapter belongs on a
            base in 4 bits, and bitsandbytes is not installed.
    """
    config = base_config(str(folder), None)
    if not isinstance(config, PerturbationDecoderConfig):
        raise UserError(f"{folder}: holds a {config.model_type}, where a decoder of this program is expected")
    lora = _lora_config(folder / ADAPTER / "adapter_config.json")
    if config.base_in_4bit:
        require_bitsandbytes(f"{folder}: its adapter belongs on a base in 4 bits")
    if isinstance(base_config(base, revision), PerturbationDecoderConfig):
        backbone: nn.Module = load_decoder(base, revision).backbone
    else:
        backbone = load_backbone(base, revision)
    state = {f"{_BACKBONE}{name}": value for name, value in backbone.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()} | header(folder / AROUND)
    try:
        if config.backbone_config().num_hidden_layers > len(found):
            raise ValueError(f"the config asks for more layers than the {len(found)} tensors of base and adapter")
        with torch.device("meta"):
            empty = PerturbationDecoder(config)
            compare(f"{folder} on {base}", found, _shapes(empty.state_dict()))
            wanted = _shapes(get_peft_model_state_dict(get_peft_model(empty, lora), save_embedding_layers=False))
        compare(str(folder / ADAPTER), header(folder / ADAPTER / WEIGHTS), wanted)
        decoder = PerturbationDecoder(config)
        with reading(folder / AROUND, "safetensors"):
            decoder.load_state_dict(state | load_file(folder / AROUND))
        if config.base_in_4bit:
            round_to_4_bits(decoder.backbone)
        adapted = get_peft_model(decoder, lora)
        with reading(folder / ADAPTER, "safetensors"):
            set_peft_model_state_dict(adapted, load_file(folder / ADAPTER / WEIGHTS))
        merged = adapted.merge_and_unload()
    except UNFIT as error:
        raise UserError(f"{folder}: does not fit its base {base}: {unfit(config.backbone, error)}") from None
    if wrong := not_finite(merged):
        raise UserError(f"{folder}: {len(wrong)} tensors are not finite, such as {wrong[0]}; take another checkpoint")
    return merged


def _lora_config(path: Path) -> LoraConfig:
    """The LoRA that an adapter's config describes.

    Raises:
        UserError: it describes something else.
    """
    try:
        told = _Lora.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: is no LoRA of this program: {first_fault(error)}; get it again") from None
    return LoraConfig(
        r=told.r,
        lora_alpha=told.lora_alpha,
        target_modules=told.target_modules,
        modules_to_save=told.modules_to_save,
        use_rslora=told.use_rslora,
        use_dora=told.use_dora,
    )


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
