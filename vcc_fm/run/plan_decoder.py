"""The decoder that a recipe asks for: does it fit, and how large is it.

A llama of plain sizes, which nearly every recipe asks for, is judged by arithmetic, because the import of torch and
transformers takes longer than everything else that a plan does. Any other is built, without memory for its weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vcc_fm.ground.errors import UserError, asked_by
from vcc_fm.ground.hub import expanded
from vcc_fm.recipe.decoder import GENE_AXES
from vcc_fm.recipe.recipe import Recipe

if TYPE_CHECKING:
    from vcc_fm.decoder.model import PerturbationDecoder

_SIZES = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}


def plan_decoder(
    recipe: Recipe,
    cells: dict[str, Any],
    genes: list[str],
    targets: set[str],
    proteins: dict[str, Any] | None,
    problems: list[str],
) -> dict[str, Any] | None:
    """Base, backbone, and parameters (total and trainable) of the model that `train` trains.

    Args:
        recipe: its ``decoder`` section says which.
        cells: ``contexts``, number of ``batches`` and ``vector_width`` of the plan.
        genes: gene axis.
        targets: target genes.
        proteins: ``targets_without_sequence`` and ``width`` of the plan; None where they are not known.
        problems: what would fail is added here.

    Returns:
        None where the decoder cannot be built, or proteins or cell vectors are not known.
    """
    if proteins is None or cells["vector_width"] is None:
        return None
    sizes = _plain_sizes(recipe)
    if sizes is not None:
        return _plain(recipe, sizes, cells, len(genes), proteins)
    return _built(recipe, cells, genes, targets, proteins, problems)


def _plain_sizes(recipe: Recipe) -> dict[str, int] | None:
    """Sizes of a llama that is made here and fits together, trained whole or under the usual adapters; None else."""
    settings, sizes = recipe.decoder, dict(recipe.decoder.backbone)
    if settings.base not in ("scratch", "pretrain") or sizes.pop("model_type", None) != "llama":
        return None
    lora = settings.lora
    unusual = lora.target_modules != "all-linear" or lora.layers or lora.full or lora.dora or lora.load_in_4bit
    if settings.base == "pretrain" and unusual:
        return None
    plain = {key: size for key, size in sizes.items() if isinstance(size, int) and not isinstance(size, bool)}
    if plain.keys() != _SIZES or sizes.keys() != _SIZES or min(plain.values()) < 1:
        return None
    # Positions turn pairs of a head's channels.
    return None if plain["hidden_size"] % (2 * plain["num_attention_heads"]) else plain


def _plain(
    recipe: Recipe, sizes: dict[str, int], cells: dict[str, Any], genes: int, proteins: dict[str, Any]
) -> dict[str, Any]:
    """What :func:`_built` says of such a decoder."""
    width, inner, layers = (sizes[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    rank = recipe.decoder.gene_rank
    linear = layers * (4 * width * width + 3 * width * inner)  # attention, and the gated network
    norms = (2 * layers + 1) * width
    codes = 4 + len(cells["contexts"]) + cells["batches"] + len(proteins["targets_without_sequence"])
    vectors = cells["vector_width"] + 1 + proteins["width"]
    around = codes * width + (vectors + 2 * (width + 1) + 2) * width + (rank + 3) * width + 2 * width
    head = (genes + min(GENE_AXES, proteins["width"]) + width + 1) * rank + 2 * (width + 1)
    trainable = linear + norms + around + head
    total = sizes["vocab_size"] * width + trainable
    if recipe.decoder.base == "pretrain":
        # The backbone is frozen under adapters, and what is around it is copied to be trained.
        adapters = recipe.decoder.lora.r * layers * (4 * 2 * width + 3 * (width + inner))
        trainable = adapters + around + head
        total += trainable
    return {"base": recipe.decoder.base, "parameters": total, "trainable": trainable, "backbone": "llama"}


def _built(
    recipe: Recipe,
    cells: dict[str, Any],
    genes: list[str],
    targets: set[str],
    proteins: dict[str, Any],
    problems: list[str],
) -> dict[str, Any] | None:
    """Build the decoder on torch's device without memory, show it tokens, and count."""
    import torch

    from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, unfit
    from vcc_fm.decoder.lora import add_adapters
    from vcc_fm.decoder.model import PerturbationDecoder
    from vcc_fm.training.accelerator import count_parameters

    base = recipe.decoder.base
    try:
        backbone, known = _backbone(recipe, targets)
        config = PerturbationDecoderConfig(
            backbone=backbone,
            genes=genes,
            contexts=cells["contexts"],
            batches=[str(i) for i in range(cells["batches"])],
            learned_targets=sorted({*targets.intersection(proteins["targets_without_sequence"]), *known}),
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
        problems.append(str(unfit(backbone, error)))
        return None
    total, trainable = count_parameters(model)
    return {"base": base, "parameters": total, "trainable": trainable, "backbone": backbone["model_type"]}


def _backbone(recipe: Recipe, targets: set[str]) -> tuple[dict[str, Any], set[str]]:
    """The config of the backbone, the recipe's or that of its base; of which ``targets`` the base has vectors.

    Raises:
        UserError: the backbone's keys are wrong, or there is no such base.
    """
    from vcc_fm.decoder.arc_st import find_st
    from vcc_fm.decoder.config import PerturbationDecoderConfig, check_backbone
    from vcc_fm.decoder.load import base_config

    settings = recipe.decoder
    if settings.base in ("scratch", "pretrain"):
        check_backbone(settings.backbone)
        return dict(settings.backbone), set()
    base = expanded(settings.base)
    if (st := find_st(base)) is not None:
        return st.backbone, st.known(targets)
    with asked_by("decoder.base"):
        found = base_config(base, settings.revision)
    if isinstance(found, PerturbationDecoderConfig):
        return found.backbone, targets.intersection(found.learned_targets)
    return found.to_dict(), set()


def _show_tokens(decoder: PerturbationDecoder) -> None:
    """Let the backbone read four tokens as the decoder will give them: some models can be built and read none."""
    import torch

    width = decoder.special_token.embedding_dim
    decoder.backbone(
        inputs_embeds=torch.zeros(1, 4, width),
        attention_mask=torch.zeros(1, 1, 4, 4),
        position_ids=torch.zeros(1, 4, dtype=torch.long),
    ).last_hidden_state.float()
