"""A linear layer held in 4 bits (`bitsandbytes`, nf4 with double quantisation); imported only where one is wanted."""

from __future__ import annotations

import math
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula
from transformers.pytorch_utils import Conv1D

BLOCK = 64
"""Weights that share a scale, as everywhere in QLoRA; the scales themselves take 8 bits."""


class Linear4bit(bnb.nn.Linear4bit):  # under this name, which peft and accelerate ask for
    """A frozen layer in 4 bits. It is not part of a checkpoint: it is made again from the base."""

    def __init__(self, layer: nn.Linear | Conv1D, compute: torch.dtype):
        weight = _out_in(layer)
        out, width = weight.shape
        super().__init__(width, out, layer.bias is not None, compute, quant_type="nf4", device="meta")
        # Stored as float32, which engines shard and send as any other weight; `to` is what puts it into 4 bits.
        self.weight = bnb.nn.Params4bit(
            weight.detach(), blocksize=BLOCK, quant_type="nf4", quant_storage=torch.float32, module=self
        ).to("cpu")
        self.bias = layer.bias
        # Else it evaluates in bfloat16, whatever it computes in, where the processor can.
        self.support_avx512bf16_for_cpu = False

    def _save_to_state_dict(self, *args: Any) -> None:
        pass

    def _load_from_state_dict(self, *args: Any) -> None:
        pass


@torch.no_grad()
def round_(layer: nn.Linear | Conv1D) -> None:
    """Give ``layer`` the weights that it has in 4 bits, as float32."""
    weight = _out_in(layer)
    packed, state = bnb.functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    _out_in(layer).copy_(bnb.functional.dequantize_4bit(packed, state))


def _out_in(layer: nn.Linear | Conv1D) -> torch.Tensor:
    """Its weights [out, in], not copied."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


@register_flop_formula(torch.ops.bitsandbytes.gemm_4bit)
def _gemm_flop(inputs: torch.Size, packed: torch.Size, weight: list[int], *args: Any, **kwargs: Any) -> int:
    """Operations of a product with 4-bit weights [out, in], of which torch knows nothing."""
    return 2 * math.prod(inputs) * weight[0]
