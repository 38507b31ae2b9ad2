"""A frozen backbone whose linear layers are held in 4 bits, under adapters in full precision (QLoRA).

Layers are made on a CPU, each on one core, wherever they go from there: a mean over all scales of a layer is part of
them, and a resumed run, or who merges an adapter, must find the same bits.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from vcc_fm.decoder.model import SetDecoder
from vcc_fm.encoders.parallel import each_on_one_core
from vcc_fm.ground.errors import UserError

_CPU = torch.device("cpu")


def require_bitsandbytes(what: str) -> None:
    """Refuse to go on without the library that knows 4-bit weights.

    Args:
        what: needs it.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{what}, for which bitsandbytes is not installed: pip install 'vcc-fm[qlora]'")


def hold_in_4_bits(decoder: SetDecoder, compute: torch.dtype) -> None:
    """Replace the linear layers of the backbone by such of 4 bits.

    Args:
        decoder: in float32, on a CPU.
        compute: what products are computed in.
    """
    from vcc_fm.decoder.linear4bit import Linear4bit

    layers = linear_layers(decoder.backbone)
    held = each_on_one_core(lambda layer: Linear4bit(layer, compute), layers.values(), _CPU)
    for name, layer in zip(layers, held, strict=True):
        decoder.backbone.set_submodule(name, layer)
    decoder.is_loaded_in_4bit = True  # where peft looks


def round_to_4_bits(backbone: nn.Module) -> None:
    """Give the linear layers of a backbone, in float32 on a CPU, the weights that they have in 4 bits."""
    from vcc_fm.decoder.linear4bit import round_

    list(each_on_one_core(round_, linear_layers(backbone).values(), _CPU))


def linear_layers(backbone: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """Name -> layer of all that can be held in 4 bits."""
    return {name: layer for name, layer in backbone.named_modules() if type(layer) in (nn.Linear, Conv1D)}


def size_of(parameter: nn.Parameter) -> int:
    """Numbers that a parameter holds; in 4 bits several share an element."""
    if not is_4_bit(parameter):
        return parameter.numel()
    shape: torch.Size = parameter.quant_state.shape  # type: ignore[attr-defined]
    return shape.numel()


def is_4_bit(parameter: nn.Parameter) -> bool:
    """Whether a parameter is held in 4 bits."""
    return type(parameter).__name__ == "Params4bit"
