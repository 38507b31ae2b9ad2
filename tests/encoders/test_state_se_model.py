"""SE's network against torch's own transformer layers, against arc-state, and against what must not matter."""

import math
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from state_se_checkpoints import (
    NEEDS_STATE,
    TINY,
    arc_batch,
    load_arc,
    random_names,
    random_tensors,
    tiny,
)
from torch import Tensor, nn
from torch.nn import functional as F

from vcc_fm.encoders.cells.state_se_model import StateSe, build_state_se, gene_token_table

TENSORS = random_tensors(TINY)


@pytest.fixture(scope="module")
def network() -> StateSe:
    return build_state_se(TINY, TENSORS)


def cells(batch: int = 5, tokens: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct genes, values that sum to 100, a CLS value."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(TINY.genes, generator=generator)[:tokens] for _ in range(batch)])
    values = torch.rand(batch, tokens, generator=generator) ** 3
    return ids, 100 * values / values.sum(1, keepdim=True), torch.rand(batch, generator=generator)


def reference(ids: Tensor, values: Tensor, cls_value: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens through all layers, CLS first and data set last, with torch's own transformer layers."""

    def linear(key: str, states: Tensor) -> Tensor:
        return F.linear(states, TENSORS[f"{key}.weight"], TENSORS[f"{key}.bias"])

    def norm(key: str, states: Tensor) -> Tensor:
        return F.layer_norm(states, states.shape[-1:], TENSORS[f"{key}.weight"], TENSORS[f"{key}.bias"])

    table = TENSORS["pe_embedding.weight"]
    batch = len(ids)
    vectors = torch.cat(
        [
            TENSORS["cls_token"].expand(batch, 1, -1),
            (table / table.norm(dim=1, keepdim=True))[ids],
            TENSORS["dataset_token"].expand(batch, 1, -1),
        ],
        dim=1,
    )
    states = F.silu(norm("encoder.1", linear("encoder.0", vectors))) * math.sqrt(TINY.width)
    scalars = torch.cat([cls_value[:, None], values], dim=1)[..., None]
    bins = linear("count_encoder.2", F.leaky_relu(linear("count_encoder.0", scalars))).softmax(-1)
    states[:, :-1] += bins @ TENSORS["bin_encoder.weight"]
    for number in range(TINY.layers):
        layer = nn.TransformerEncoderLayer(TINY.width, TINY.heads, TINY.hidden, 0.0, F.gelu, batch_first=True)
        prefix = f"transformer_encoder.layers.{number}."
        own = {key.removeprefix(prefix): value for key, value in TENSORS.items() if key.startswith(prefix)}
        named = {key.replace("qkv_proj.", "self_attn.in_proj_"): value for key, value in own.items()}
        layer.load_state_dict({key.replace("out_proj.", "self_attn.out_proj."): value for key, value in named.items()})
        states = layer(states)
    inner = linear("decoder.0.dense", linear("decoder.0.intermediate_dense", states).relu())
    decoded = linear("decoder.1", norm("decoder.0.layer_norm", states + inner))
    cell = decoded[:, 0] / decoded[:, 0].norm(dim=1, keepdim=True)
    return cell.detach(), linear("dataset_embedder", decoded[:, -1]).detach()


def assert_close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_equals_all_tokens_through_all_layers(network: StateSe) -> None:
    found = network(*cells())
    assert_close(found, reference(*cells()))
    assert found[0].shape == (5, TINY.output)
    assert found[1].shape == (5, TINY.dataset_width)
    torch.testing.assert_close(found[0].norm(dim=1), torch.ones(5))


def test_order_of_tokens_is_immaterial(network: StateSe) -> None:
    ids, values, cls_value = cells()
    order = torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(1))
    assert_close(network(ids[:, order], values[:, order], cls_value), network(ids, values, cls_value), 1e-6)


def test_genes_values_and_cls_value_matter(network: StateSe) -> None:
    ids, values, cls_value = cells()
    before = network(ids, values, cls_value)[0]
    other_gene = ids.clone()
    other_gene[:, 0] = ids[:, 0].roll(1)
    for changed in (
        network(other_gene, values, cls_value),
        network(ids, values.roll(1, dims=1), cls_value),
        network(ids, values, cls_value + 1),
    ):
        assert (changed[0] - before).abs().amax(1).min() > 1e-4


def test_cell_alone_equals_cell_in_batch(network: StateSe) -> None:
    together = network(*cells())
    for cell in range(5):
        alone = network(*(part[cell : cell + 1] for part in cells()))
        assert_close(alone, (together[0][cell : cell + 1], together[1][cell : cell + 1]), 1e-6)


def test_key_bias_stands_for_repeated_tokens(network: StateSe) -> None:
    ids, values, cls_value = cells(1, 12)
    times = torch.tensor([1, 1, 7, 1, 2, 1, 1, 30, 1, 1, 3, 1])
    repeated = network(ids.repeat_interleave(times, 1), values.repeat_interleave(times, 1), cls_value)
    once = network(ids, values, cls_value, times.log()[None])
    assert_close(once, repeated)
    assert (network(ids, values, cls_value)[0] - repeated[0]).abs().max() > 1e-3


def test_empty_slots_are_not_attended_to(network: StateSe) -> None:
    ids, values, cls_value = cells(2, 20)
    bias = torch.zeros(2, 20)
    bias[0, 8:] = -torch.inf
    found = network(ids, values, cls_value, bias)
    short = network(ids[:1, :8], values[:1, :8], cls_value[:1])
    assert_close((found[0][:1], found[1][:1]), short)
    full = network(ids[1:], values[1:], cls_value[1:])
    assert_close((found[0][1:], found[1][1:]), full)


def test_panel_of_genes_equals_all_genes(network: StateSe) -> None:
    ids, values, cls_value = cells()
    panel = ids.unique().flip(0)
    own = torch.searchsorted(panel.flip(0), ids)
    some = build_state_se(TINY, TENSORS, panel)
    assert some.gene_tokens.shape == (len(panel), TINY.width)
    assert_close(some(len(panel) - 1 - own, values, cls_value), network(ids, values, cls_value), 1e-6)


def test_table_in_chunks_equals_table_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = gene_token_table(TENSORS)
    monkeypatch.setattr("vcc_fm.encoders.cells.state_se_model._TABLE_CHUNK", 7)
    torch.testing.assert_close(gene_token_table(TENSORS), at_once, atol=1e-5, rtol=0)


def test_gene_without_vector_has_finite_token() -> None:
    tensors = TENSORS | {"pe_embedding.weight": torch.zeros(TINY.genes, TINY.token_dim)}
    assert gene_token_table(tensors).isfinite().all()


def test_bfloat16_is_near_float32(network: StateSe) -> None:
    rounded = build_state_se(TINY, TENSORS, dtype=torch.bfloat16)
    for bias in (None, torch.rand(5, 40)):
        exact, near = network(*cells(), bias), rounded(*cells(), bias)
        assert near[0].dtype == near[1].dtype == torch.float32
        assert near[1].isfinite().all()
        assert F.cosine_similarity(near[0], exact[0]).min() >= 0.999
        assert not torch.equal(near[0], exact[0])
    dtypes = {name: parameter.dtype for name, parameter in rounded.named_parameters()}
    halved = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert halved == {name for name in dtypes if "layers" in name and ".norm" not in name}


def test_no_dropout(network: StateSe) -> None:
    first, second = network(*cells()), network.train()(*cells())
    network.eval()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_network_bears_the_names_of_the_checkpoint_and_shares_its_memory(network: StateSe) -> None:
    training = ("binary_decoder", "dataset_encoder", "gene_embedding_layer", "pe_embedding")
    tokens = ("encoder.", "cls_token", "dataset_token")
    wanted = {key for key in TINY.shapes() if not key.startswith(training + tokens)}
    assert network.state_dict().keys() == wanted
    assert all(tensor.data_ptr() == TENSORS[key].data_ptr() for key, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("pad", [128, 1024])
def test_forward_equals_arc_state(tmp_path: Path, pad: int) -> None:
    pytest.importorskip("state", reason=NEEDS_STATE)
    geometry = tiny(300)
    tensors, names = random_tensors(geometry), random_names(geometry)
    rng = np.random.default_rng(0)
    columns = [*rng.permutation(names[:260]), "UNKNOWN1", "UNKNOWN2"]
    # Some cells have fewer expressed genes than there are tokens, some have more; at pad 1024 zero genes are repeated.
    expressed = rng.random((16, 262)) < np.linspace(0.1, 0.9, 16)[:, None]
    matrix = (rng.gamma(1, 1, (16, 262)) * expressed).astype(np.float32)
    peer = load_arc(tmp_path, tensors, names, geometry, pad)
    cells = anndata.AnnData(matrix, var=pd.DataFrame(index=columns))
    batch = arc_batch(peer, cells, tensors, names, geometry, pad)
    with torch.no_grad():
        *_, cell, dataset = peer.model._compute_embedding_for_batch(batch)
        wanted = cell, peer.model.dataset_embedder(dataset)
    ids, values = batch[0].long(), batch[7].float()
    assert ids.shape == values.shape == (16, pad)

    network = build_state_se(geometry, tensors)
    assert_close(network(ids[:, 1:], values[:, 1:], values[:, 0]), wanted)
    if pad == 1024:
        for row in range(16):
            tokens = torch.stack([ids[row, 1:].double(), values[row, 1:].double()], 1)
            once, times = tokens.unique(dim=0, return_counts=True)
            found = network(
                once[None, :, 0].long(), once[None, :, 1].float(), values[row : row + 1, 0], times.log()[None]
            )
            assert len(once) < 300
            assert_close(found, (wanted[0][row : row + 1], wanted[1][row : row + 1]))
