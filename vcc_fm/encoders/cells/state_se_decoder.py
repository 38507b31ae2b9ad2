"""State Embedding's gene decoder: the expression of a gene from a cell's embedding.

The network was trained to regress log1p expression from ``[gene | cell | depth | dataset]``: two skip blocks
``LayerNorm(x + dense(ReLU(intermediate_dense(x))))`` and a Linear to one number. Three of the four parts belong to the
cell and one to the gene, so the first Linear is applied to each gene and to each cell once, and a pair only adds the
two results. Nothing further splits without loss: a ReLU or a LayerNorm of the pair lies before every later product.

FLOPs a (cell, gene) pair, counting a multiply-add as two, at width W with 2W hidden units:

======================  ===============  ==========  ======================
product                 concatenated     here        SE-600M (W = 4107)
======================  ===============  ==========  ======================
block 0, first Linear   4 W^2            2 W         67.5 M  ->  0.008 M
block 0, second Linear  4 W^2            4 W^2       67.5 M
block 1, both Linears   8 W^2            8 W^2       134.9 M
last Linear             2 W              2 W         0.008 M
all                     16 W^2           12 W^2      269.9 M -> 202.4 M
======================  ===============  ==========  ======================

to which come, once a call, ``4 W x gene width`` = 33.6 MFLOP a gene and as much again a cell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcc_fm.encoders.cells.state_se_model import SkipBlock
from vcc_fm.ground.errors import UserError

DATASET_WIDTH = 10
"""Length of the dataset vector that follows a cell embedding."""
DEPTH = 4.0
"""Read depth that decoding takes where none is given; in training it was :func:`read_depth` of each cell."""


class StateSeGeneDecoder(nn.Module):
    """Log1p expression of a fixed list of genes from cell embeddings; frozen, float32.

    Attributes:
        genes: [g, d] float32 gene embeddings: what SE's token encoder makes of the raw protein vectors. Unlike a
            cell's tokens they are neither L2-normalised before it nor multiplied by sqrt(d) after it.
        cell_width: length of a cell embedding, without its dataset vector.
    """

    genes: Tensor

    def __init__(self, gene_width: int, width: int) -> None:
        super().__init__()
        self.cell_width = width - gene_width - 1 - DATASET_WIDTH
        self.zero = SkipBlock(width)
        self.one = SkipBlock(width)
        self.last = nn.Linear(width, 1)
        self.register_buffer("genes", torch.empty(0, gene_width), persistent=False)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], table: Tensor) -> StateSeGeneDecoder:
        """Build the decoder of some genes.

        Args:
            tensors: a checkpoint's ``encoder.*`` and ``binary_decoder.*``, of any float dtype; others are not read.
            table: [g, token_dim] raw protein vectors of the genes, in the order in which they shall be decoded.

        Raises:
            UserError: a tensor is missing or has another shape than the rest asks for.
        """
        gene_width, token_width = _matrix(tensors, "encoder.0.weight")
        _, width = _matrix(tensors, "binary_decoder.2.weight")
        smallest = gene_width + 1 + DATASET_WIDTH
        if width <= smallest:
            raise UserError(
                f"binary_decoder.2.weight has shape [1, {width}], wanted more than {smallest} columns: gene embedding "
                f"{gene_width}, cell embedding, depth 1, dataset vector {DATASET_WIDTH}"
            )
        if table.ndim != 2 or table.shape[1] != token_width:
            raise UserError(
                f"protein vectors have shape {list(table.shape)}, encoder.0.weight wants [genes, {token_width}]"
            )
        # No memory is filled with random weights before the real ones come.
        with torch.device("meta"):
            encoder = nn.Sequential(nn.Linear(token_width, gene_width), nn.LayerNorm(gene_width, eps=1e-5), nn.SiLU())
            decoder = cls(gene_width, width)
        _load(encoder, tensors, "encoder.")
        for number, part in enumerate((decoder.zero, decoder.one, decoder.last)):
            _load(part, tensors, f"binary_decoder.{number}.")
        with torch.no_grad():
            decoder.genes = encoder(table.to(decoder.last.weight))
        return decoder.requires_grad_(False).eval()

    @torch.no_grad()
    def decode(
        self,
        cells: Tensor,
        dataset_vectors: Tensor,
        depth: float | Tensor = DEPTH,
        *,
        genes_per_chunk: int = 1024,
        cells_per_chunk: int = 1,
    ) -> Tensor:
        """Predict the expression of every gene in every cell.

        Working memory is ``28 W`` bytes a pair of a chunk and ``8 W`` a gene, 150 MB for 1,024 genes of one cell at
        SE-600M; chunks change the result by rounding only. What is computed once a gene is computed once a call:
        many cells a call are cheaper than one.

        Args:
            cells: [n, cell_width] L2-normalised cell embeddings.
            dataset_vectors: [n, 10] their dataset vectors, not normalised.
            depth: read depth of all cells, or [n] of each (:func:`read_depth`).
            genes_per_chunk: genes of a chunk of pairs.
            cells_per_chunk: cells of a chunk of pairs.

        Returns:
            [n, g] float32 predicted log1p expression; the network does not keep it from being negative.

        Raises:
            UserError: cells, dataset vectors or depth have another shape.
        """
        n, place = len(cells), self.genes.device
        depths = torch.as_tensor(depth, dtype=torch.float32, device=place)
        alone = f"cell embeddings (without the {DATASET_WIDTH} numbers of their dataset vectors)"
        for what, given, wanted in (
            (alone, cells, [n, self.cell_width]),
            ("dataset vectors", dataset_vectors, [n, DATASET_WIDTH]),
            ("depths", depths, [n] if depths.ndim else []),
        ):
            if list(given.shape) != wanted:
                raise UserError(f"{what} have shape {list(given.shape)}, the gene decoder wants {wanted}")
        per_cell = torch.cat([cells.to(depths), depths.expand(n)[:, None], dataset_vectors.to(depths)], dim=1)
        first = self.zero.intermediate_dense
        of_gene, of_cell = first.weight.split([self.genes.shape[1], per_cell.shape[1]], dim=1)
        cell_hidden = F.linear(per_cell, of_cell, first.bias)
        expression = torch.empty(n, len(self.genes), device=place)
        for start in range(0, len(self.genes), genes_per_chunk):
            genes = self.genes[start : start + genes_per_chunk]
            gene_hidden = F.linear(genes, of_gene)
            for row in range(0, n, cells_per_chunk):
                rows = slice(row, row + cells_per_chunk)
                hidden = (cell_hidden[rows, None] + gene_hidden).relu_()
                expression[rows, start : start + genes_per_chunk] = self._pairs(hidden, genes, per_cell[rows])
        return expression

    def _pairs(self, hidden: Tensor, genes: Tensor, per_cell: Tensor) -> Tensor:
        """The network from block 0's second Linear on.

        Args:
            hidden: [c, k, 2W] block 0's hidden units, after the ReLU.
            genes: [k, d].
            per_cell: [c, W - d] cell embedding, depth and dataset vector.

        Returns:
            [c, k].
        """
        x = self.zero.dense(hidden)
        # The residual is the concatenation of both, added without being built.
        x[..., : genes.shape[1]] += genes
        x[..., genes.shape[1] :] += per_cell[:, None]
        return self.last(self.one(self.zero.layer_norm(x))).squeeze(-1)


def read_depth(log1p: sp.csr_matrix) -> np.ndarray:
    """Read depth as in SE's training: the mean of a cell's non-zero log1p values.

    Args:
        log1p: [n, g] log1p expression of the genes that are decoded.

    Returns:
        [n] float32; 0 for a cell that expresses none of them.
    """
    total = np.asarray(log1p.sum(axis=1, dtype=np.float64)).ravel()
    # A stored zero is no expressed gene.
    expressed = np.asarray(log1p.astype(bool).sum(axis=1)).ravel()
    return (total / np.maximum(expressed, 1)).astype(np.float32)


def _matrix(tensors: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    """Shape of a matrix from which the other shapes follow."""
    if key not in tensors:
        raise UserError(f"{key} is missing, found none of that name: these are not the weights of State Embedding")
    if tensors[key].ndim != 2:
        raise UserError(f"{key} has shape {list(tensors[key].shape)}, wanted a matrix")
    rows, columns = tensors[key].shape
    return rows, columns


def _load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put a checkpoint's tensors into ``module``, as float32, each checked."""
    found = {}
    for name, expected in module.state_dict().items():
        key, wanted = prefix + name, list(expected.shape)
        if key not in tensors:
            raise UserError(f"{key} is missing, wanted shape {wanted}; get the checkpoint again")
        if list(tensors[key].shape) != wanted:
            raise UserError(f"{key} has shape {list(tensors[key].shape)}, wanted {wanted}")
        found[name] = tensors[key].detach().float()
    module.load_state_dict(found, assign=True)
