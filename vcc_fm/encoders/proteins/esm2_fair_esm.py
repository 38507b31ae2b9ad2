"""ESM2 from an original checkpoint: `esm2_t6_8M_UR50D.pt` … `esm2_t48_15B_UR50D.pt`, run by fair-esm's own model.

fair-esm's loader unpickles whatever a file holds. Here only tensors, plain values and ``argparse.Namespace`` (in which
these checkpoints keep their settings) are let through, and a file that holds anything else is refused unread.
"""

from __future__ import annotations

import argparse
import copy
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from esm.model.esm2 import ESM2
from torch import Tensor, nn

from vcc_fm.encoders.proteins.esm2_encoder import Backbone, Esm2Encoder, choose_dtype, choose_layer
from vcc_fm.encoders.proteins.token_batches import Cutting
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import sha256_file

_PREFIX = re.compile(r"^encoder\.(sentence_encoder\.)?")
_SETTINGS = {"encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "token_dropout"}
_HEADS = ("lm_head.", "contact_head.")


class _Float32Rotary(nn.Module):
    """fair-esm's rotary embedding, in float32 whatever the model's dtype.

    In bfloat16 it would count positions in bfloat16, where 257 is 256.
    """

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated query and key, [heads x b, t, head width], in their own dtype."""
        rotated_query, rotated_key = self.rotary(query.float(), key.float())
        return rotated_query.to(query.dtype), rotated_key.to(key.dtype)


def load_fair_esm(
    path: str,
    layer: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    cutting: Cutting | None = None,
) -> Esm2Encoder:
    """Load ESM2 through ``fair-esm``.

    Args:
        path: An original ``.pt`` file here; its contact-regression file is not needed.
        layer: Layer whose output is taken, 0 (token embedding) to the number of layers; None is the last.
        dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 on a GPU, else float32.
        device: As torch names it (``cpu``, ``cuda:1``).
        cutting: How sequences are cut; None takes the defaults.

    Raises:
        UserError: The file is missing, damaged, holds more than tensors and settings or another model than ESM2, its
            weights are not those that its settings ask for, or it has no such layer.
    """
    if device == "auto":
        raise UserError("embed.proteins.spread: original checkpoints run on one device; use a folder or Hub id")
    file, place = Path(path), torch.device(device)
    settings, weights = _read(file)
    with reading(file, "ESM2"):
        layers = settings.encoder_layers
        layer = choose_layer(layer, layers, file.name)
        model = _build(file, settings, weights)
    if layer < layers:
        # One layer stays even for the token embedding: fair-esm's forward needs a last layer.
        model.layers = model.layers[: max(layer, 1)]
        model.emb_layer_norm_after = nn.Identity()
    chosen = choose_dtype(dtype, place)
    rotaries = [_Float32Rotary(copy.deepcopy(block.self_attn.rot_emb).float()) for block in model.layers]
    model.to(chosen)
    for block, rotary in zip(model.layers, rotaries, strict=True):
        block.self_attn.rot_emb = rotary
    model.to(place).eval()

    def represent(tokens: Tensor) -> Tensor:
        return model(tokens.to(place), repr_layers=[layer])["representations"][layer]

    backbone = Backbone(
        represent,
        model.embed_dim,
        layer,
        place,
        chosen,
        lambda: {"loader": "fair-esm", "name": file.name, "sha256": sha256_file(file)},
    )
    return Esm2Encoder(backbone, cutting)


def _read(file: Path) -> tuple[argparse.Namespace, dict[str, Tensor]]:
    """Settings and weights of an ESM2 checkpoint."""
    with reading(file, "a checkpoint of torch"), torch.serialization.safe_globals([argparse.Namespace]):
        try:
            data: Any = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{file}: no such file") from None
        except pickle.UnpicklingError:
            raise UserError(
                f"{file}: not loaded: it holds more than tensors and settings, or is no checkpoint"
            ) from None
    match data:
        case {"cfg": {"model": argparse.Namespace() as settings}, "model": dict() as weights}:
            if absent := sorted(_SETTINGS - vars(settings).keys()):
                raise UserError(f"{file}: not ESM2: its settings lack {', '.join(absent)}; give an original esm2_*.pt")
            return settings, weights
        case {"args": argparse.Namespace() as settings}:
            found = f"a checkpoint of architecture {vars(settings).get('arch')!r} (ESM-1, ESM-1b or MSA)"
        case dict():
            found = f"a dictionary with {', '.join(sorted(map(str, data))[:4]) or 'nothing in it'}"
        case _:
            found = f"a {type(data).__name__}"
    raise UserError(f"{file}: not ESM2: found {found}; give an original esm2_*.pt")


def read_settings(file: Path) -> argparse.Namespace:
    """Settings of an ESM2 checkpoint, among them ``encoder_embed_dim``.

    Raises:
        UserError: as :func:`load_fair_esm`.
    """
    return _read(file)[0]


def _build(file: Path, settings: argparse.Namespace, weights: dict[str, Tensor]) -> ESM2:
    """fair-esm's model without its heads, with every weight as the file has it."""
    # No memory is filled before the weights come.
    with torch.device("meta"):
        model = ESM2(
            num_layers=settings.encoder_layers,
            embed_dim=settings.encoder_embed_dim,
            attention_heads=settings.encoder_attention_heads,
            alphabet="ESM-1b",
            token_dropout=settings.token_dropout,
        )
    model.lm_head = nn.Identity()
    model.contact_head = nn.Identity()
    named = {_PREFIX.sub("", name): tensor for name, tensor in weights.items()}
    named = {name: tensor for name, tensor in named.items() if not name.startswith(_HEADS)}
    expected = model.state_dict()
    if missing := sorted(expected.keys() - named.keys()):
        raise UserError(f"{file}: {len(missing)} weights are missing, the first is {missing[0]}; get it again")
    if surplus := sorted(named.keys() - expected.keys()):
        raise UserError(
            f"{file}: {len(surplus)} weights have no place in ESM2 as its settings describe it: {surplus[0]}"
        )
    for name, tensor in named.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{file}: {name} has shape {list(tensor.shape)}, its settings ask for {list(expected[name].shape)}"
            )
    model.load_state_dict(named, assign=True)
    return model
