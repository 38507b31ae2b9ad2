"""The decoder of patches: a nucleus, its neighbourhood and its nearest nuclei in; expression of all genes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from vcc_fm.decoder.build import encoder_of
from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, check_backbone, unfit
from vcc_fm.decoder.load import base_config, load_backbone
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.decoder.model import SetDecoder
from vcc_fm.ground.errors import UserError, asked_by
from vcc_fm.recipe.decoder import BackboneSettings
from vcc_fm.slides.data import PatchBatch, PatchData
from vcc_fm.slides.ridge import Ridge
from vcc_fm.training.phase import Phase


class PatchDecoderConfig(PerturbationDecoderConfig):
    """``backbone``, ``genes`` and ``cell_encoder`` as there; ``cell_width`` is F."""

    model_type = "patch-decoder"


class PatchDecoder(SetDecoder):
    """What ridge regressions on both patches expect, and what the transformer learns beyond it.

    Token order: set, neighbourhood, S nuclei, the predicted one first; a nucleus tells where it is. What is learned
    starts at zero: an untrained decoder is the regressions.

    Scores go by the order of the genes in a nucleus. Where most counts are zero, the gene of the larger expected value
    is often not that of the larger expected rank. So one head gives both, and :func:`ordered` joins them.
    """

    config_class = PatchDecoderConfig

    def __init__(self, config: PatchDecoderConfig):
        super().__init__(config)
        width, inputs, learned = self.add_backbone(config.backbone_config()), config.cell_width, 2 * len(config.genes)
        # Buffers: the regression stays as it was fitted, under adapters too.
        for name, shape in {"centre": (), "size": (), "slope": (learned,)}.items():
            self.register_buffer(name, torch.zeros(2 * inputs, *shape))
        self.register_buffer("mean", torch.zeros(learned))
        self.special_token = nn.Embedding(1, width)
        self.near_projection, self.wide_projection = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.place_projection, self.token_norm = nn.Linear(3, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, learned)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.post_init()

    def forward(self, batch: PatchBatch) -> torch.Tensor:
        """Values, log1p(100 x / total), and ranks, over G, of B nuclei: [B, T] float32, not clipped."""
        centre, size = (self.get_buffer(name).split(self.config.cell_width) for name in ("centre", "size"))
        near_BSF, wide_BF = (batch.near_BSF - centre[0]) / size[0], (batch.wide_BF - centre[1]) / size[1]
        own_BS1 = torch.zeros_like(batch.offset_BS2[..., :1])
        own_BS1[:, 0] = 1.0
        place_BSD = self.place_projection(torch.cat([batch.offset_BS2, own_BS1], dim=-1))
        set_B = torch.zeros(len(batch), 1, dtype=torch.long, device=batch.device)
        tokens = [self.special_token(set_B), self.wide_projection(wide_BF)[:, None]]
        tokens_BLD = self.token_norm(torch.cat([*tokens, self.near_projection(near_BSF) + place_BSD], dim=1))
        real_BL = torch.cat([torch.ones_like(batch.mask_BS[:, :1]).expand(-1, 2), batch.mask_BS], dim=1)
        expected_BT = torch.cat([near_BSF[:, 0], wide_BF], dim=-1) @ self.get_buffer("slope") + self.get_buffer("mean")
        return expected_BT + self.head(self.first_hidden(tokens_BLD, real_BL))


class ExpressionError:
    """What training minimises: mean squared errors over genes, of values and of ranks."""

    def __init__(self) -> None:
        self.weights = {"value": 1.0, "rank": 1.0}

    def __call__(self, model: nn.Module, batch: PatchBatch) -> dict[str, torch.Tensor]:
        """[B] each."""
        assert batch.target_BT is not None
        errors_B2 = (model(batch) - batch.target_BT).square().unflatten(-1, (2, -1)).mean(dim=-1)
        return dict(zip(self.weights, errors_B2.unbind(dim=-1), strict=True))


def ordered(predicted: np.ndarray) -> np.ndarray:
    """Predicted values in the order of the predicted ranks, [n, G], zero or above, of both [n, T]."""
    values, ranks = np.split(predicted, 2, axis=1)
    place = ranks.argsort(axis=1).argsort(axis=1)
    return np.take_along_axis(np.sort(values.clip(min=0), axis=1), place, axis=1)


def build(phase: Phase[BackboneSettings], data: PatchData, start: Ridge) -> PatchDecoder | PeftModel:
    """What trains: the decoder itself, or adapters on a base around it; untrained it predicts what ``start`` does.

    Raises:
        UserError: the base cannot be loaded or does not fit.
    """
    settings, base = phase.decoder, phase.base
    backbone, loaded = dict[str, Any](settings.backbone), None
    torch.manual_seed(phase.seed)
    if base == "pretrain":
        raise UserError("decoder.base=pretrain: a recipe on slides makes no base; name one, or take scratch")
    if base == "scratch":
        check_backbone(backbone)
    else:
        with asked_by("decoder.base"):
            backbone = base_config(base, settings.revision).to_dict()
            loaded = load_backbone(base, settings.revision)
    encoder = encoder_of(data.store.meta)
    config = PatchDecoderConfig(backbone=backbone, genes=data.genes, cell_width=data.store.width, cell_encoder=encoder)
    try:
        decoder = PatchDecoder(config)
    except UNFIT as error:
        raise unfit(backbone, error) from None
    decoder.bf16_backbone = phase.config.precision == "bf16"
    for name, values in start._asdict().items():
        decoder.get_buffer(name).copy_(torch.from_numpy(values))
    if loaded is None:
        return decoder
    decoder.backbone.load_state_dict(loaded.state_dict())
    return add_adapters(decoder, settings.lora, base)
