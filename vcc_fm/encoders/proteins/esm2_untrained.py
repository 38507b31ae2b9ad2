"""An ESM2 with random weights: all of the real code path where no weights can be had (demonstrations, tests)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import EsmConfig, EsmModel

from vcc_fm.encoders.proteins.esm2_tokens import MASK, PADDING, SIZE
from vcc_fm.ground.files import whole_folder

SEED = 0
"""The same weights for every recipe: what changes from run to run are the data."""


def write_untrained(folder: Path, width: int, layers: int, heads: int) -> None:
    """Write an ESM2 of that shape into ``folder``, as the Hub would hold it; the same bytes for the same shape."""
    config = EsmConfig(
        vocab_size=SIZE,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        pad_token_id=PADDING,
        mask_token_id=MASK,
    )
    with torch.random.fork_rng(devices=[]), whole_folder(folder) as partial:
        torch.manual_seed(SEED)
        EsmModel(config, add_pooling_layer=False).save_pretrained(partial)
