"""SE ("State Embedding"): its network and its table of gene tokens.

A cell is a set of tokens: one per gene, with its share of the cell's expression as value, and two learned ones, CLS
and data set. There are no positions, so their order is immaterial; transformer layers of full attention follow.

Abhinav K. Adduri et al., "Predicting cellular responses to perturbation across diverse contexts with State",
bioRxiv 2025.06.26.661135 (2025).

Three savings, exact up to rounding: a gene's token depends on the gene alone, so all are computed once; the last layer
and the decoder are run for CLS and data set alone, since only these are read; tokens that are equal stay equal in
every layer, so they may be given once, as an attention key with the logarithm of their number added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcc_fm.encoders.cells.state_se_geometry import TIED, SeGeometry

_LAYER_NORM_EPS = 1e-5
_UNIT_EPS = 1e-12
# Rows of the ESM table that are in memory at a time, 21 MB at 5120 columns.
_TABLE_CHUNK = 1024
# CLS and data set, which stand before the gene tokens here.
_SPECIAL = 2
# From this width on a CPU's linear layers go through oneDNN, up to twice as fast as MKL where a CPU is not Intel's;
# below it the conversion of inputs costs more than that.
_PACKED_WIDTH = 512


def token_states(vectors: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The token encoder: sqrt(width) * SiLU(LayerNorm(Linear(vectors))).

    Args:
        vectors: [n, token_dim], of unit length for genes, as they are for CLS and data set.
        tensors: The checkpoint, of which ``encoder.*`` is read.

    Returns:
        [n, width] float32 on the device of ``vectors``.
    """
    linear, bias, scale, shift = (
        tensors[f"encoder.{part}"].to(vectors.device, torch.float32)
        for part in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    states = F.linear(vectors.float(), linear, bias)
    states = F.silu(F.layer_norm(states, scale.shape, scale, shift, _LAYER_NORM_EPS))
    return states * math.sqrt(len(linear))


@torch.no_grad()
def gene_token_table(
    tensors: Mapping[str, Tensor], genes: Tensor | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """The token of each gene, before its value is added.

    Args:
        tensors: The checkpoint, of which ``pe_embedding.weight`` and ``encoder.*`` are read.
        genes: [g] int64 rows of the ESM table; None is all of them.
        device: Where it is computed, and stays.

    Returns:
        [g, width] float32, row i for ``genes[i]``.
    """
    table = tensors["pe_embedding.weight"]
    encoder = {key: tensors[key].to(device, torch.float32) for key in TIED.values()}
    chosen = torch.arange(len(table)) if genes is None else genes.cpu()
    tokens = torch.empty(len(chosen), len(encoder["encoder.0.bias"]), device=device)
    for start in range(0, len(chosen), _TABLE_CHUNK):
        rows = chosen[start : start + _TABLE_CHUNK]
        vectors = F.normalize(table[rows].to(device, torch.float32), dim=1, eps=_UNIT_EPS)
        tokens[start : start + _TABLE_CHUNK] = token_states(vectors, encoder)
    return tokens


class _Linear(nn.Linear):
    """A linear layer for [b, t, in]; once packed, with a copy of its weight for oneDNN."""

    _packed: Tensor | None = None

    def pack(self) -> None:
        """Copy the weight, which is float32 on the CPU."""
        self._packed = self.weight.detach().to_mkldnn()

    def forward(self, states: Tensor) -> Tensor:
        """[b, t, in] -> [b, t, out]."""
        if self._packed is not None:
            return F.linear(states.to_mkldnn(), self._packed, self.bias).to_dense()
        return F.linear(states, self.weight, self.bias)


class _Layer(nn.Module):
    """Post-norm transformer layer; residual stream and layer norms are float32 whatever the linear layers are."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = _Linear(width, 3 * width)
        self.out_proj = _Linear(width, width)
        self.linear1 = _Linear(width, hidden)
        self.linear2 = _Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)

    def forward(self, states: Tensor, mask: Tensor | None, kept: int) -> Tensor:
        """States of the first ``kept`` tokens after the layer.

        Args:
            states: [b, t, width] float32.
            mask: Added to the attention scores, [b, 1, 1, t] in the dtype of the linear layers, or None.
            kept: Tokens that are computed; all t are attended to.

        Returns:
            [b, kept, width] float32.
        """
        width = states.shape[-1]
        entering = states.to(self.qkv_proj.weight.dtype)
        if kept == states.shape[1]:
            query, key, value = self.qkv_proj(entering).chunk(3, dim=-1)
        else:
            weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
            query = F.linear(entering[:, :kept], weight[:width], bias[:width])
            key, value = F.linear(entering, weight[width:], bias[width:]).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), attn_mask=mask
        )
        attended = self.out_proj(attended.transpose(1, 2).flatten(2))
        states = self.norm1(states[:, :kept] + attended)
        fed = self.linear2(F.gelu(self.linear1(states.to(self.linear1.weight.dtype))))
        return self.norm2(states + fed)

    def _split(self, states: Tensor) -> Tensor:
        """[b, t, width] -> [b, heads, t, width / heads]."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SkipBlock(nn.Module):
    """LayerNorm(x + dense(ReLU(intermediate_dense(x)))), twice as wide inside; parts are named as in checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, 2 * width)
        self.dense = nn.Linear(2 * width, width)
        self.layer_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        """[..., width] float32 -> [..., width]."""
        return self.layer_norm(self.dense(self.intermediate_dense(states).relu_()).add_(states))


class StateSe(nn.Module):
    """SE's network from gene tokens to cell embedding; made by :func:`build_state_se`.

    Its parameters bear the checkpoint's names and are those that inference needs: no heads of training, no gene
    decoder, and no token encoder, whose results are the two buffers.

    Attributes:
        gene_tokens: [g, width] float32: see :func:`gene_token_table`.
        special_tokens: [2, width] float32: CLS and data set.
    """

    gene_tokens: Tensor
    special_tokens: Tensor

    def __init__(self, geometry: SeGeometry, gene_tokens: Tensor, special_tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("gene_tokens", gene_tokens, persistent=False)
        self.register_buffer("special_tokens", special_tokens, persistent=False)
        width = geometry.width
        self.bin_encoder = nn.Embedding(geometry.bins, width)
        self.count_encoder = nn.Sequential(
            nn.Linear(1, geometry.bin_hidden), nn.LeakyReLU(0.01), nn.Linear(geometry.bin_hidden, geometry.bins)
        )
        self.transformer_encoder = nn.Module()
        self.transformer_encoder.layers = nn.ModuleList(
            [_Layer(width, geometry.hidden, geometry.heads) for _ in range(geometry.layers)]
        )
        self.decoder = nn.Sequential(SkipBlock(width), nn.Linear(width, geometry.output))
        self.dataset_embedder = nn.Linear(geometry.output, geometry.dataset_width)

    def to_dtype(self, dtype: torch.dtype) -> StateSe:
        """Cast linear layers and attention of the transformer, in place; all else stays float32.

        That is the residual stream, layer norms, values and their binning, and the decoder, which is run for two
        tokens of a cell and costs nothing.
        """
        for layer in self._layers():
            for linear in (layer.qkv_proj, layer.out_proj, layer.linear1, layer.linear2):
                linear.to(dtype)
        return self

    def pack(self) -> StateSe:
        """Make the transformer's linear layers faster, with a copy of their weights: float32 on the CPU, in place."""
        for layer in self._layers():
            for linear in (layer.qkv_proj, layer.out_proj, layer.linear1, layer.linear2):
                linear.pack()
        return self

    def forward(
        self, ids: Tensor, values: Tensor, cls_value: Tensor, key_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed cells.

        Args:
            ids: [b, t] int64 rows of ``gene_tokens``.
            values: [b, t] float32, percent of the cell's total log expression.
            cls_value: [b] float32, the value that CLS bears.
            key_bias: [b, t] float32 logarithm of how often a token is in the cell, -inf where there is none; None
                where each is there once, which leaves attention without a mask and so to the fastest kernel.

        Returns:
            Cell embedding [b, output] float32 of unit length, and data set vector [b, dataset_width] float32.
        """
        batch = len(ids)
        binned = self._binned(torch.cat([cls_value[:, None], values], dim=1))
        cls_state = self.special_tokens[0] + binned[:, :1]
        dataset_state = self.special_tokens[1].expand(batch, 1, -1)  # bears no value, not even 0
        states = torch.cat([cls_state, dataset_state, self.gene_tokens[ids] + binned[:, 1:]], dim=1)

        layers = self._layers()
        mask = None
        if key_bias is not None:
            padded = F.pad(key_bias, (_SPECIAL, 0))
            mask = padded[:, None, None].to(layers[0].qkv_proj.weight.dtype)
        for layer in layers[:-1]:
            states = layer(states, mask, states.shape[1])
        states = layers[-1](states, mask, _SPECIAL)

        decoded = self.decoder(states)
        return F.normalize(decoded[:, 0], dim=-1, eps=_UNIT_EPS), self.dataset_embedder(decoded[:, 1:])[:, 0]

    def _binned(self, values: Tensor) -> Tensor:
        """[b, t] float32 -> [b, t, width] float32, a soft choice among the bins' vectors."""
        return F.softmax(self.count_encoder(values[..., None]), dim=-1) @ self.bin_encoder.weight

    def _layers(self) -> list[_Layer]:
        layers = self.transformer_encoder.layers
        assert isinstance(layers, nn.ModuleList)
        return list(layers)  # type: ignore[arg-type]


def build_state_se(
    geometry: SeGeometry,
    tensors: Mapping[str, Tensor],
    genes: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> StateSe:
    """The network of a checkpoint, frozen.

    Args:
        geometry: Of the checkpoint.
        tensors: The checkpoint. On the CPU in float32 the network shares memory with it.
        genes: [g] int64 rows of the ESM table whose tokens are wanted; None is all. ``ids`` given to the network are
            positions in ``genes``.
        dtype: Of linear layers and attention: see :meth:`StateSe.to_dtype`.
        device: Where the network is, and where the gene tokens are computed.
    """
    learned = torch.cat([tensors["cls_token"], tensors["dataset_token"]]).to(device)
    gene_tokens = gene_token_table(tensors, genes, device)
    with torch.device("meta"):
        network = StateSe(geometry, gene_tokens, token_states(learned, tensors))
    network.load_state_dict({key: tensors[key].float() for key in network.state_dict()}, assign=True)
    network = network.to(device).to_dtype(dtype).requires_grad_(False).eval()
    on_cpu = network.gene_tokens.device.type == "cpu" and dtype == torch.float32
    if on_cpu and geometry.width >= _PACKED_WIDTH and torch.backends.mkldnn.is_available():
        network.pack()
    return network
