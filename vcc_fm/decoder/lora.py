"""Low-rank adaptation: the backbone frozen under adapters, everything around it trained."""

from __future__ import annotations

from collections.abc import Iterable

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.decoder import LoraSettings


def add_adapters(decoder: PerturbationDecoder, settings: LoraSettings, base: str) -> PeftModel:
    """Freeze ``decoder``, put adapters on its backbone, and make trainable copies of all modules around the backbone.

    Args:
        decoder: the base.
        settings: rank, scale, dropout and layers of the adapters.
        base: folder or Hub id of the base, kept in the adapter's config.

    Raises:
        UserError: the backbone has no such layers.
    """
    around = [name for name, module in decoder.named_children() if name != "backbone" and _has_parameters(module)]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_adapted_layers(decoder, settings),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        modules_to_save=around + _trained_in_full(decoder, settings),
        base_model_name_or_path=base,
    )
    decoder.name_or_path = base
    return get_peft_model(decoder, config)


def _adapted_layers(decoder: PerturbationDecoder, settings: LoraSettings) -> list[str]:
    """Full names, so that a layer around the backbone that shares a short name is never adapted."""
    linear = [name for name, module in decoder.backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if settings.target_modules != "all-linear":
        _check("target_modules", settings.target_modules, map(_short, linear))
        linear = [name for name in linear if _short(name) in settings.target_modules]
    if settings.layers is not None:
        _check("layers", settings.layers, (block for name in linear if (block := _block(name)) is not None))
        linear = [name for name in linear if _block(name) in settings.layers]
    return [f"backbone.{name}" for name in linear]


def _trained_in_full(decoder: PerturbationDecoder, settings: LoraSettings) -> list[str]:
    """Full names of the modules of the backbone that a recipe trains in full."""
    named = {name: module for name, module in decoder.backbone.named_modules() if name and _has_parameters(module)}
    _check("full", settings.full, map(_short, named))
    return [f"backbone.{name}" for name in named if _short(name) in settings.full]


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
