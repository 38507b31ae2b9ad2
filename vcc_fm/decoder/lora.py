"""Low-rank adaptation: the backbone frozen under adapters, everything around it trained."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.recipe.decoder import LoraSettings


def add_adapters(decoder: PerturbationDecoder, settings: LoraSettings, base: str) -> PeftModel:
    """Freeze ``decoder``, put adapters on its backbone, and make trainable copies of all modules around the backbone.

    Args:
        decoder: the base.
        settings: rank, scale, dropout and layers of the adapters.
        base: folder or Hub id of the base, kept in the adapter's config.
    """
    around = [name for name, module in decoder.named_children() if name != "backbone" and _has_parameters(module)]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_adapted_layers(decoder, settings),
        modules_to_save=around,
        base_model_name_or_path=base,
    )
    decoder.name_or_path = base
    return get_peft_model(decoder, config)


def _adapted_layers(decoder: PerturbationDecoder, settings: LoraSettings) -> list[str]:
    """Full names, so that a layer around the backbone that shares a short name is never adapted."""
    linear = [
        f"backbone.{name}"
        for name, module in decoder.backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    if settings.target_modules == "all-linear":
        return linear
    return [name for name in linear if name.rsplit(".", 1)[-1] in settings.target_modules]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
