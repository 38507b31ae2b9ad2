"""The decoder that a recipe asks for, built without memory for its weights: does it fit, and how large is it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, check_backbone
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.errors import UserError
from vcc_fm.recipe import Recipe, expand
from vcc_fm.training.phase import count_parameters


def plan_decoder(
    recipe: Recipe, cells: dict[str, Any], genes: list[str], proteins: dict[str, Any] | None, problems: list[str]
) -> dict[str, Any] | None:
    """Base, backbone, and parameters (total and trainable) of the model that `train` trains.

    Args:
        recipe: its ``decoder`` section says which.
        cells: ``contexts``, number of ``batches`` and ``vector_width`` of the plan.
        genes: gene axis.
        proteins: ``targets_without_sequence`` and ``width`` of the plan; None where they are not known.
        problems: what would fail is added here.

    Returns:
        None where the decoder cannot be built, or proteins or cell vectors are not known.
    """
    if proteins is None or cells["vector_width"] is None:
        return None
    base = recipe.decoder.base
    try:
        backbone = _backbone(recipe)
        config = PerturbationDecoderConfig(
            backbone=backbone,
            genes=genes,
            contexts=cells["contexts"],
            batches=[str(i) for i in range(cells["batches"])],
            learned_targets=proteins["targets_without_sequence"],
            cell_width=cells["vector_width"],
            protein_width=proteins["width"],
            gene_rank=recipe.decoder.gene_rank,
        )
        with torch.device("meta"):
            decoder = PerturbationDecoder(config)
            _show_tokens(decoder)
            model = decoder if base == "scratch" else add_adapters(decoder, recipe.decoder.lora, base)
    except UserError as error:
        problems.append(str(error))
        return None
    except UNFIT as error:
        said = " ".join(str(error).split())
        problems.append(f"decoder: a {backbone['model_type']} of these settings cannot be built: {said[:300]}")
        return None
    total, trainable = count_parameters(model)
    return {"base": base, "parameters": total, "trainable": trainable, "backbone": backbone["model_type"]}


def _backbone(recipe: Recipe) -> dict[str, Any]:
    """The config of the backbone: the recipe's, or that of its base.

    Raises:
        UserError: the backbone's keys are wrong, or there is no such base.
    """
    settings = recipe.decoder
    if settings.base in ("scratch", "pretrain"):
        check_backbone(settings.backbone)
        return dict(settings.backbone)
    base = str(expand(settings.base))
    try:
        found = AutoConfig.from_pretrained(base, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        reason = (
            f"no decoder or backbone that transformers can load ({said[:200]})"
            if _exists(settings.base)
            else ("no such folder, and no Hub id that can be reached from here")
        )
        raise UserError(
            f"decoder.base={settings.base}: {reason}; give scratch, pretrain, a folder or a Hub id"
        ) from None
    return found.backbone if isinstance(found, PerturbationDecoderConfig) else found.to_dict()


def _exists(base: str) -> bool:
    return expand(base).is_dir()


def _show_tokens(decoder: PerturbationDecoder) -> None:
    """Let the backbone read four tokens as the decoder will give them: some models can be built and read none."""
    width = decoder.special_token.embedding_dim
    decoder.backbone(
        inputs_embeds=torch.zeros(1, 4, width),
        attention_mask=torch.zeros(1, 1, 4, 4),
        position_ids=torch.zeros(1, 4, dtype=torch.long),
    ).last_hidden_state.float()
