"""SE's gene decoder: the same as its definition on concatenated features, and as the package that trained it."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from state_se_checkpoints import NEEDS_STATE, TINY, load_arc, random_names, random_tensors
from torch import Tensor

from vcc_fm.encoders.cells.state_se_decoder import StateSeGeneDecoder, read_depth
from vcc_fm.ground.errors import UserError

TOKEN, GENE, CELL, DATASET = 12, 8, 6, 10
WIDTH = GENE + CELL + 1 + DATASET
GENES, CELLS = 7, 5


def drawn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def checkpoint() -> dict[str, Tensor]:
    """Random tensors under a checkpoint's names; no weight or bias is at a value that would hide its loss."""
    shapes = {
        "encoder.0.weight": (GENE, TOKEN),
        "encoder.0.bias": (GENE,),
        "encoder.1.weight": (GENE,),
        "encoder.1.bias": (GENE,),
        "binary_decoder.2.weight": (1, WIDTH),
        "binary_decoder.2.bias": (1,),
        "decoder.1.weight": (CELL, GENE),
    }
    for block in ("binary_decoder.0", "binary_decoder.1"):
        shapes |= {
            f"{block}.intermediate_dense.weight": (2 * WIDTH, WIDTH),
            f"{block}.intermediate_dense.bias": (2 * WIDTH,),
            f"{block}.dense.weight": (WIDTH, 2 * WIDTH),
            f"{block}.dense.bias": (WIDTH,),
            f"{block}.layer_norm.weight": (WIDTH,),
            f"{block}.layer_norm.bias": (WIDTH,),
        }
    return {key: drawn(*shape, seed=seed, scale=0.5) for seed, (key, shape) in enumerate(shapes.items())}


def concatenated(tensors: dict[str, Tensor], table: Tensor, cells: Tensor, dataset: Tensor, depth: Tensor) -> Tensor:
    """The definition: every pair's features side by side, every product on all of them; [n, g]."""
    genes = F.linear(table, tensors["encoder.0.weight"], tensors["encoder.0.bias"])
    genes = F.silu(F.layer_norm(genes, (GENE,), tensors["encoder.1.weight"], tensors["encoder.1.bias"]))
    n, g = len(cells), len(table)
    per_cell = [part[:, None].expand(n, g, -1) for part in (cells, depth[:, None], dataset)]
    x = torch.cat([genes.expand(n, g, -1), *per_cell], dim=-1)
    for block in ("binary_decoder.0", "binary_decoder.1"):
        own = {key.removeprefix(block + "."): tensor for key, tensor in tensors.items() if key.startswith(block)}
        hidden = F.relu(F.linear(x, own["intermediate_dense.weight"], own["intermediate_dense.bias"]))
        x = x + F.linear(hidden, own["dense.weight"], own["dense.bias"])
        x = F.layer_norm(x, (WIDTH,), own["layer_norm.weight"], own["layer_norm.bias"])
    return F.linear(x, tensors["binary_decoder.2.weight"], tensors["binary_decoder.2.bias"])[..., 0]


TENSORS = checkpoint()
TABLE = drawn(GENES, TOKEN, seed=100, scale=3.0)
EMBEDDED = F.normalize(drawn(CELLS, CELL, seed=101), dim=1)
VECTORS = drawn(CELLS, DATASET, seed=102)
DEPTHS = drawn(CELLS, seed=103).abs()


@pytest.fixture
def decoder() -> StateSeGeneDecoder:
    return StateSeGeneDecoder.from_tensors(TENSORS, TABLE)


def test_is_the_network_on_concatenated_features(decoder: StateSeGeneDecoder) -> None:
    expected = concatenated(TENSORS, TABLE, EMBEDDED, VECTORS, DEPTHS)
    assert expected.std() > 0.1
    found = decoder.decode(EMBEDDED, VECTORS, DEPTHS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_depth_is_4_unless_given_and_a_number_is_that_of_every_cell(decoder: StateSeGeneDecoder) -> None:
    expected = concatenated(TENSORS, TABLE, EMBEDDED, VECTORS, torch.full((CELLS,), 4.0))
    torch.testing.assert_close(decoder.decode(EMBEDDED, VECTORS), expected, atol=1e-5, rtol=1e-5)
    two = decoder.decode(EMBEDDED, VECTORS, 2.0)
    torch.testing.assert_close(two, decoder.decode(EMBEDDED, VECTORS, torch.full((CELLS,), 2.0)), atol=0, rtol=0)
    assert not torch.allclose(two, expected, atol=1e-3)


@pytest.mark.parametrize(("genes", "cells"), [(1, 1), (3, 2), (GENES, CELLS), (1000, 1000), (2, 4)])
def test_chunks_change_nothing_but_rounding(decoder: StateSeGeneDecoder, genes: int, cells: int) -> None:
    whole = decoder.decode(EMBEDDED, VECTORS, DEPTHS)
    found = decoder.decode(EMBEDDED, VECTORS, DEPTHS, genes_per_chunk=genes, cells_per_chunk=cells)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_a_pair_does_not_depend_on_the_others(decoder: StateSeGeneDecoder) -> None:
    order, some = [3, 0, 4], [5, 1]
    found = StateSeGeneDecoder.from_tensors(TENSORS, TABLE[some]).decode(
        EMBEDDED[order], VECTORS[order], DEPTHS[order]
    )
    whole = decoder.decode(EMBEDDED, VECTORS, DEPTHS)
    torch.testing.assert_close(found, whole[order][:, some], atol=1e-5, rtol=1e-5)


def test_weights_of_half_precision_are_computed_with_in_float32() -> None:
    half = {key: tensor.bfloat16() for key, tensor in TENSORS.items()}
    found = StateSeGeneDecoder.from_tensors(half, TABLE).decode(EMBEDDED, VECTORS, DEPTHS)
    rounded = {key: tensor.float() for key, tensor in half.items()}
    expected = concatenated(rounded, TABLE, EMBEDDED, VECTORS, DEPTHS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_is_frozen_and_leaves_what_it_was_built_from(decoder: StateSeGeneDecoder) -> None:
    before = {key: tensor.clone() for key, tensor in TENSORS.items()}
    decoder.decode(EMBEDDED, VECTORS)
    assert all(torch.equal(TENSORS[key], tensor) for key, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_read_depth_is_the_mean_of_what_is_expressed() -> None:
    # The second cell holds a stored zero, the third nothing.
    stored = sp.csr_matrix(([1.0, 2.0, 3.0, 0.0], [0, 2, 1, 3], [0, 2, 4, 4]), shape=(3, 4))
    depth = read_depth(stored)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, [1.5, 3.0, 0.0])


@pytest.mark.parametrize("key", [key for key in TENSORS if not key.startswith("decoder.")])
def test_a_missing_tensor_is_named(key: str) -> None:
    without = {name: tensor for name, tensor in TENSORS.items() if name != key}
    with pytest.raises(UserError, match=f"{key} is missing"):
        StateSeGeneDecoder.from_tensors(without, TABLE)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("binary_decoder.0.dense.weight", (3, 4), r"dense.weight has shape \[3, 4\], wanted \[25, 50\]"),
        ("binary_decoder.1.layer_norm.bias", (1,), r"layer_norm.bias has shape \[1\], wanted \[25\]"),
        ("encoder.1.weight", (9,), r"encoder.1.weight has shape \[9\], wanted \[8\]"),
        ("encoder.0.weight", (GENE,), r"encoder.0.weight has shape \[8\], wanted a matrix"),
        ("binary_decoder.2.weight", (1, 19), r"binary_decoder.2.weight has shape \[1, 19\], wanted more than 19"),
        ("binary_decoder.2.weight", (2, WIDTH), r"binary_decoder.2.weight has shape \[2, 25\], wanted \[1, 25\]"),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(key: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StateSeGeneDecoder.from_tensors(TENSORS | {key: torch.zeros(shape)}, TABLE)


def test_protein_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"protein vectors have shape \[7, 11\], encoder.0.weight wants \[genes, 12\]"):
        StateSeGeneDecoder.from_tensors(TENSORS, TABLE[:, 1:])


def test_an_exported_vector_is_not_taken_for_a_cell_embedding(decoder: StateSeGeneDecoder) -> None:
    exported = torch.cat([EMBEDDED, VECTORS], dim=1)
    with pytest.raises(UserError, match=r"cell embeddings \(without .*\) have shape \[5, 16\], .* wants \[5, 6\]"):
        decoder.decode(exported, VECTORS)
    with pytest.raises(UserError, match=r"dataset vectors have shape \[4, 10\], .* wants \[5, 10\]"):
        decoder.decode(EMBEDDED, VECTORS[1:])
    with pytest.raises(UserError, match=r"depths have shape \[1\], .* wants \[5\]"):
        decoder.decode(EMBEDDED, VECTORS, torch.ones(1))


def test_is_the_network_that_arc_state_trained(tmp_path: Path) -> None:
    pytest.importorskip("state", reason=NEEDS_STATE)
    tensors, names = random_tensors(TINY), random_names(TINY)
    model = load_arc(tmp_path, tensors, names, TINY, pad=32).model
    table = tensors["pe_embedding.weight"]
    cells = F.normalize(drawn(3, TINY.output, seed=1), dim=1)
    vectors, depths = drawn(3, DATASET, seed=2), torch.tensor([0.7, 4.0, 2.2])
    decoder = StateSeGeneDecoder.from_tensors(tensors, table)
    with torch.no_grad():
        genes = model.gene_embedding_layer(table)
        per_cell = torch.cat([cells, depths[:, None], vectors], dim=1)
        pairs = [part.expand(3, len(table), -1) for part in (genes, per_cell[:, None])]
        expected = model.binary_decoder(torch.cat(pairs, dim=-1))[..., 0]
    torch.testing.assert_close(decoder.genes, genes, atol=1e-5, rtol=0)
    torch.testing.assert_close(decoder.decode(cells, vectors, depths), expected, atol=1e-5, rtol=0)
