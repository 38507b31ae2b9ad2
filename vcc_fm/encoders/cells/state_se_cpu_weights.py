"""SE's weights as its native code on a CPU wants them: stacked, filled up to whole tiles, and with binning tabulated.

The network of values is linear, leaky rectified and linear again, from one number: a broken line. Its pieces are
computed once, in float64, and replace two matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]

MULTIPLE = 8
"""Channels that a matrix product makes come in such numbers; those that no weight makes are 0."""

_LEAK = 0.01


class CpuWeights(NamedTuple):
    """A network's weights as the native code wants them, float32 but for the broken line; made by :func:`weights_of`.

    Attributes:
        heads: of attention.
        gene_tokens: [g, width].
        special_tokens: [2, width], CLS and data set.
        bends: [s - 1] float64, where the broken line from a value to its bins' logits bends, rising.
        slopes: [s, bins] float64, of its pieces.
        offsets: [s, bins] float64.
        bins: [width, bins].
        qkv: [layers, 3 * width, width]; that of queries times log2(e) / sqrt(width / heads).
        qkv_bias: [layers, 3 * width].
        out: [layers, width, width].
        out_bias: [layers, width].
        norm1: [layers, 2, width], scale and shift.
        up: [layers, hidden, width].
        up_bias: [layers, hidden].
        down: [layers, width, hidden].
        down_bias: [layers, width].
        norm2: [layers, 2, width].
        wide: [2 * width, width], of the decoder.
        wide_bias: [2 * width].
        narrow: [width, 2 * width].
        narrow_bias: [width].
        norm: [2, width].
        cell: [output, width].
        cell_bias: [output].
        dataset: [dataset_width, output].
        dataset_bias: [dataset_width].
    """

    heads: int
    gene_tokens: FloatArray
    special_tokens: FloatArray
    bends: DoubleArray
    slopes: DoubleArray
    offsets: DoubleArray
    bins: FloatArray
    qkv: FloatArray
    qkv_bias: FloatArray
    out: FloatArray
    out_bias: FloatArray
    norm1: FloatArray
    up: FloatArray
    up_bias: FloatArray
    down: FloatArray
    down_bias: FloatArray
    norm2: FloatArray
    wide: FloatArray
    wide_bias: FloatArray
    narrow: FloatArray
    narrow_bias: FloatArray
    norm: FloatArray
    cell: FloatArray
    cell_bias: FloatArray
    dataset: FloatArray
    dataset_bias: FloatArray


def weights_of(
    tensors: Mapping[str, FloatArray], heads: int, gene_tokens: FloatArray, special_tokens: FloatArray
) -> CpuWeights:
    """Weights for ``state_se_cpu.embed``.

    Args:
        tensors: Those that ``state_se_model.StateSe`` has, float32.
        heads: of attention.
        gene_tokens: [g, width] float32.
        special_tokens: [2, width] float32.
    """
    layers = sum(key.endswith("norm1.weight") for key in tensors)
    width = gene_tokens.shape[1]

    def stack(name: str, rows: int = 1, columns: int = 1) -> FloatArray:
        """Of all layers: see :func:`_filled`."""
        return np.stack(
            [_filled(tensors[f"transformer_encoder.layers.{i}.{name}"], rows, columns) for i in range(layers)]
        )

    def norm(prefix: str) -> FloatArray:
        return np.stack([tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]])

    def norms(name: str) -> FloatArray:
        return np.stack([norm(f"transformer_encoder.layers.{i}.{name}") for i in range(layers)])

    qkv, qkv_bias = stack("qkv_proj.weight"), stack("qkv_proj.bias")
    factor = math.log2(math.e) / math.sqrt(width // heads)
    qkv[:, :width] *= factor
    qkv_bias[:, :width] *= factor
    bends, slopes, offsets = _broken_line(
        *(tensors[f"count_encoder.{part}"].astype(np.float64) for part in ("0.weight", "0.bias", "2.weight", "2.bias"))
    )
    return CpuWeights(
        heads=heads,
        gene_tokens=gene_tokens,
        special_tokens=special_tokens,
        bends=bends,
        slopes=slopes,
        offsets=offsets,
        bins=np.ascontiguousarray(tensors["bin_encoder.weight"].T),
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=stack("out_proj.weight"),
        out_bias=stack("out_proj.bias"),
        norm1=norms("norm1"),
        up=stack("linear1.weight", MULTIPLE),
        up_bias=stack("linear1.bias", MULTIPLE),
        down=stack("linear2.weight", 1, MULTIPLE),
        down_bias=stack("linear2.bias"),
        norm2=norms("norm2"),
        wide=tensors["decoder.0.intermediate_dense.weight"],
        wide_bias=tensors["decoder.0.intermediate_dense.bias"],
        narrow=tensors["decoder.0.dense.weight"],
        narrow_bias=tensors["decoder.0.dense.bias"],
        norm=norm("decoder.0.layer_norm"),
        cell=_filled(tensors["decoder.1.weight"], MULTIPLE),
        cell_bias=_filled(tensors["decoder.1.bias"], MULTIPLE),
        dataset=_filled(tensors["dataset_embedder.weight"], MULTIPLE, MULTIPLE),
        dataset_bias=_filled(tensors["dataset_embedder.bias"], MULTIPLE),
    )


def _filled(weight: FloatArray, rows: int = 1, columns: int = 1) -> FloatArray:
    """With zeros behind its rows, and the columns of a matrix, up to a multiple."""
    return np.pad(weight, [(0, -size % to) for size, to in zip(weight.shape, (rows, columns), strict=False)])


def _broken_line(
    weight: DoubleArray, bias: DoubleArray, outer: DoubleArray, offset: DoubleArray
) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """Bends, slopes and offsets of ``outer @ leaky_relu(weight * x + bias) + offset`` as a function of the number x.

    Left of all bends a unit is active where its weight is negative; at its bend, -bias / weight, it changes over.
    """
    factor = weight[:, 0]
    active = (factor < 0) | ((factor == 0) & (bias > 0))
    start = np.where(active, 1, _LEAK)
    bending = np.flatnonzero(factor)
    bending = bending[np.argsort(-bias[bending] / factor[bending], kind="stable")]
    change = np.sign(factor[bending]) * (1 - _LEAK)
    slopes = np.vstack([outer @ (start * factor), (outer[:, bending] * change * factor[bending]).T]).cumsum(axis=0)
    offsets = np.vstack([outer @ (start * bias) + offset, (outer[:, bending] * change * bias[bending]).T])
    return -bias[bending] / factor[bending], slopes, offsets.cumsum(axis=0)
