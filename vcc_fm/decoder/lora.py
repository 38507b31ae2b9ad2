"""Low-rank adaptation: the backbone frozen under adapters, everything around it trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from vcc_fm.decoder.four_bit import hold_in_4_bits, linear_layers, require_bitsandbytes, round_to_4_bits
from vcc_fm.decoder.model import SetDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.decoder import LoraSettings


def add_adapters(
    decoder: SetDecoder, settings: LoraSettings, base: str, compute: torch.dtype | None = torch.float32
) -> PeftModel:
    """Freeze ``decoder``, put adapters on its backbone, and make trainable copies of all modules around the backbone.

    Args:
        decoder: the base.
        settings: rank, scale, dropout and layers of the adapters.
        base: folder or Hub id of the base, kept in the adapter's config.
        compute: what a base in 4 bits computes in; None: it is no more than rounded to 4 bits, a float32 each, into
            which adapters can be merged.

    Raises:
        UserError: the backbone has no such layers, or they cannot be held in 4 bits.
    """
    full = _trained_in_full(decoder, settings)
    around = [name for name, module in decoder.named_children() if name != "backbone" and _has_parameters(module)]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_adapted_layers(decoder, settings),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        modules_to_save=around + full,
        base_model_name_or_path=base,
    )
    decoder.name_or_path = base
    decoder.config.base_in_4bit = settings.load_in_4bit
    if settings.load_in_4bit:
        _check_4_bits(decoder, full)
        if decoder.device.type == "meta":
            pass  # a plan's, without weights
        elif compute is None:
            round_to_4_bits(decoder.backbone)
        else:
            hold_in_4_bits(decoder, compute)
    return get_peft_model(decoder, config)


def _adapted_layers(decoder: SetDecoder, settings: LoraSettings) -> list[str]:
    """Full names, so that a layer around the backbone that shares a short name is never adapted."""
    linear = [name for name, module in decoder.backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if settings.target_modules != "all-linear":
        _check("target_modules", settings.target_modules, map(_short, linear))
        linear = [name for name in linear if _short(name) in settings.target_modules]
    if settings.layers is not None:
        _check("layers", settings.layers, (block for name in linear if (block := _block(name)) is not None))
        linear = [name for name in linear if _block(name) in settings.layers]
    return [f"backbone.{name}" for name in linear]


def _trained_in_full(decoder: SetDecoder, settings: LoraSettings) -> list[str]:
    """Full names of the modules of the backbone that a recipe trains in full."""
    named = {name: module for name, module in decoder.backbone.named_modules() if name and _has_parameters(module)}
    _check("full", settings.full, map(_short, named))
    return [f"backbone.{name}" for name in named if _short(name) in settings.full]


def _check_4_bits(decoder: SetDecoder, full: list[str]) -> None:
    """Refuse a base that cannot be held in 4 bits.

    Raises:
        UserError: a linear layer of it trains in full, or is of an odd width; or bitsandbytes is not installed.
    """
    for name, layer in linear_layers(decoder.backbone).items():
        width = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
        if width % 8:
            raise UserError(
                f"decoder.lora.load_in_4bit: {name} takes {width} values, no multiple of 8, as it must in 4 bits; set "
                "it to false"
            )
        if any(f"backbone.{name}.".startswith(f"{module}.") for module in full):
            raise UserError(
                f"decoder.lora.load_in_4bit: {name} trains in full (decoder.lora.full), which no layer in 4 bits can; "
                "leave it to its adapter, or set load_in_4bit to false"
            )
    require_bitsandbytes("decoder.lora.load_in_4bit holds the base in 4 bits")


def _check(key: str, wanted: Iterable[str | int], known: Iterable[str | int]) -> None:
    """Refuse what the backbone does not have.

    Raises:
        UserError: some of ``wanted`` are not ``known``.
    """
    there = list(dict.fromkeys(known))
    for one in wanted:
        if one not in there:
            raise UserError(f"decoder.lora.{key}: the backbone has no {one}; it has {', '.join(map(str, there))}")


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _block(name: str) -> int | None:
    """Number of the block that a layer is in: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
