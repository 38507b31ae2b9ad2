"""What the decoder must not depend on, and what it must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModel

from vcc_fm.cellsets.batch import Batch, _each
from vcc_fm.decoder.config import PerturbationDecoderConfig
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.responses.expected import Expected

SETS, CELLS, GENES, WIDTH, TARGETS, PROTEIN = 3, 5, 12, 4, 2, 6
BACKBONES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_attention_heads": 2, "intermediate_size": 32},
    "bert": {"model_type": "bert", "num_attention_heads": 2, "intermediate_size": 32},
    "gpt2": {"model_type": "gpt2", "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


OTHERS: dict[str, Any] = BACKBONES["llama"] | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


def make_decoder(kind: str = "llama", **keys: Any) -> PerturbationDecoder:
    """A small decoder whose every weight is random, so that no term is silent."""
    torch.manual_seed(0)
    backbone = {**BACKBONES.get(kind, OTHERS | {"model_type": kind}), "hidden_size": 16, "num_hidden_layers": 2}
    config = PerturbationDecoderConfig(
        backbone=backbone | {"vocab_size": 1},
        genes=[f"G{i}" for i in range(GENES)],
        contexts=["a", "b"],
        batches=["u", "v"],
        learned_targets=["T"],
        cell_width=WIDTH,
        protein_width=PROTEIN,
        gene_rank=4,
        **keys,
    )
    decoder = PerturbationDecoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1 or parameter.abs().sum() == 0:
                parameter.normal_(std=0.3)
        decoder.gene_factors.coordinates_GK.normal_()
    return decoder


def with_log_shares(batch: Batch, log_share_BSG: torch.Tensor) -> Batch:
    """The batch with a profile of its own for each cell."""
    sets, size, _ = log_share_BSG.shape
    return replace(
        batch,
        log_share_UG=log_share_BSG.flatten(0, 1),
        measured_U=log_share_BSG.flatten(0, 1).isfinite().sum(-1),
        profile_BS=torch.arange(sets * size).view(sets, size),
    )


def set_alone(batch: Batch, number: int) -> Batch:
    """One set of a batch; what is of technical batches belongs to all."""
    return _each(batch, lambda value: value if len(value) == SETS * CELLS else value[number : number + 1])


def make_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.ones(SETS, CELLS, dtype=torch.bool)
    mask[1, 3:] = False
    target_mask = torch.tensor([[True, True], [True, False], [True, False]])
    log_share = torch.log_softmax(normal(SETS, CELLS, GENES), -1)
    log_share[2, :, 7] = -torch.inf
    counts = torch.poisson(torch.full((SETS, CELLS, GENES), 3.0), generator=generator)
    return Batch(
        cells_BSE=normal(SETS, CELLS, WIDTH),
        cell_mask_BS=mask,
        control_depth_BS=torch.full((SETS, CELLS), 1000.0),
        log_share_UG=torch.log_softmax(log_share, -1).flatten(0, 1),
        measured_U=torch.isfinite(log_share).sum(-1).flatten(),
        profile_BS=torch.arange(SETS * CELLS).view(SETS, CELLS),
        target_vector_BPV=normal(SETS, TARGETS, PROTEIN) * target_mask[..., None],
        target_code_BP=torch.zeros(SETS, TARGETS, dtype=torch.long),
        target_mask_BP=target_mask,
        target_gene_BP=torch.tensor([[0, 1], [2, -1], [-1, -1]]),
        context_code_B=torch.tensor([1, 2, 0]),
        batch_code_BS=torch.randint(0, 3, (SETS, CELLS), generator=generator),
        response_BG=normal(SETS, GENES) * torch.tensor([1.0, 0.0, 1.0])[:, None],
        deviation_BG=torch.rand(SETS, GENES, generator=generator) + 0.1,
        reliability_G=torch.rand(GENES, generator=generator),
        power_B=torch.tensor([20.0, 0.0, 1e3]),
        null_ratio_BG=torch.ones(SETS, GENES),
        noise_seed_B=torch.arange(SETS),
        counts_BSG=counts * mask[..., None] * torch.isfinite(log_share),
    )


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_the_order_of_cells_and_targets_does_not_matter(kind: str) -> None:
    decoder, batch = make_decoder(kind), make_batch()
    plain = decoder(batch).delta_BG
    order = torch.tensor([4, 2, 0, 3, 1])
    per_cell = ("cells_BSE", "cell_mask_BS", "control_depth_BS", "profile_BS", "batch_code_BS")
    shuffled = replace(batch, **{name: getattr(batch, name)[:, order] for name in per_cell})
    torch.testing.assert_close(decoder(shuffled).delta_BG, plain, rtol=0, atol=2e-5)
    per_target = ("target_vector_BPV", "target_code_BP", "target_mask_BP", "target_gene_BP")
    swapped = replace(batch, **{name: getattr(batch, name).flip(1) for name in per_target})
    torch.testing.assert_close(decoder(swapped).delta_BG, plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_every_cell_counts(kind: str) -> None:
    decoder, batch = make_decoder(kind), make_batch()
    changed = batch.cells_BSE.clone()
    changed[0, 4] += 1.0  # the last token
    difference = (decoder(replace(batch, cells_BSE=changed)).delta_BG - decoder(batch).delta_BG).abs().amax(-1)
    assert difference[0] > 1e-5, "a causal mask hides it from the set token"
    assert (difference[1:] == 0).all()


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in double precision, what is float32 by name too: rounding makes no difference then."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "olmo2", "phi3"])
def test_the_last_layer_computes_for_the_first_token_alone_what_it_would_for_all(kind: str, double: None) -> None:
    # Of some, another norm stands before, behind or in place of Llama's.
    decoder, batch = make_decoder(kind), make_batch()
    seen: list[torch.Size] = []
    last: Any = decoder.backbone.layers[-1]
    last.mlp.register_forward_hook(lambda _, __, found: seen.append(found.shape))

    def gradients() -> list[torch.Tensor]:
        decoder.zero_grad()
        decoder(batch).delta_BG.square().sum().backward()
        return [parameter.grad for parameter in decoder.parameters() if parameter.grad is not None]

    found = gradients()
    last.mlp._forward_pre_hooks.clear()
    decoder.backbone.norm._forward_pre_hooks.clear()
    wanted = gradients()
    assert seen[0] == (SETS, 1, 16)
    assert seen[1] == (SETS, 2 + TARGETS + CELLS, 16)
    assert len(found) == len(wanted) > 20
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_padding_counts_nowhere(kind: str) -> None:
    decoder, batch = make_decoder(kind), make_batch()
    plain = decoder(batch).delta_BG
    cells = batch.cells_BSE.clone()
    cells[1, 3:] = 1e3
    vectors = batch.target_vector_BPV.clone()
    vectors[1:, 1] = 1e3
    touched = decoder(replace(batch, cells_BSE=cells, target_vector_BPV=vectors)).delta_BG
    torch.testing.assert_close(touched, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_set_does_not_depend_on_its_neighbours() -> None:
    decoder, batch = make_decoder(), make_batch()
    together = decoder(batch).delta_BG
    for i in range(SETS):
        alone = decoder(set_alone(batch, i)).delta_BG
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_shares_sum_to_one_over_measured_genes_and_scale_zero_is_the_control() -> None:
    decoder, batch = make_decoder(), make_batch()
    predicted = decoder(batch).log_share_BSG(batch)
    torch.testing.assert_close(predicted.exp().sum(-1), torch.ones(SETS, CELLS))
    assert (predicted[2, :, 7] == -torch.inf).all()
    assert torch.isfinite(predicted[:2]).all()
    torch.testing.assert_close(
        decoder(batch, effect_scale=0.0).log_share_BSG(batch), batch.log_share_BSG, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "field",
    [
        "target_vector_BPV",
        "context_code_B",
        "batch_code_BS",
        "response_BG",
        "deviation_BG",
        "cells_BSE",
        "control_depth_BS",
    ],
)
@torch.no_grad()
def test_every_input_is_used(field: str) -> None:
    decoder, batch = make_decoder(), make_batch()
    value = getattr(batch, field)
    changed = (value + 1) % 3 if value.dtype == torch.long else value * 1.5 + 0.1
    assert (decoder(replace(batch, **{field: changed})).delta_BG - decoder(batch).delta_BG).abs().max() > 1e-4


@torch.no_grad()
def test_a_gene_never_seen_is_predicted_from_its_protein() -> None:
    decoder, batch = make_decoder(), make_batch()
    decoder.gene_factors.free[3] = 0.0
    batch = replace(batch, response_BG=torch.zeros_like(batch.response_BG))
    assert decoder(batch).delta_BG[..., 3].abs().max() > 1e-3
    decoder.gene_factors.coordinates_GK[3] = 0.0
    assert decoder(batch).delta_BG[..., 3].abs().max() == 0.0


@torch.no_grad()
def test_a_target_without_a_vector_is_known_by_its_learned_one_alone() -> None:
    decoder, batch = make_decoder(), make_batch()
    code_BP = torch.zeros_like(batch.target_code_BP)
    code_BP[0, 0] = 1
    vector_BPV = batch.target_vector_BPV.clone()
    vector_BPV[0, 0] = 0.0
    batch = replace(batch, target_code_BP=code_BP, target_vector_BPV=vector_BPV)
    none = decoder(batch).delta_BG
    vector_BPV[0, 0] = average = torch.linspace(-1.0, 1.0, PROTEIN)
    decoder.protein_scaling.mean.copy_(average)
    vector_BPV[0, 1] += average
    vector_BPV[1:] += average
    torch.testing.assert_close(decoder(batch).delta_BG, none)
    vector_BPV[0, 0] = 0.0
    torch.testing.assert_close(decoder(batch).delta_BG, none)
    assert (decoder(replace(batch, target_code_BP=0 * code_BP)).delta_BG - none)[0].abs().max() > 1e-3


@torch.no_grad()
def test_a_target_may_have_both_a_protein_and_a_learned_vector() -> None:
    decoder, batch = make_decoder(), make_batch()
    both = replace(batch, target_code_BP=torch.ones_like(batch.target_code_BP))
    without = replace(both, target_vector_BPV=0 * batch.target_vector_BPV)
    assert (decoder(both).delta_BG - decoder(batch).delta_BG).abs().max() > 1e-3
    assert (decoder(both).delta_BG - decoder(without).delta_BG).abs().max() > 1e-3


@torch.no_grad()
def test_a_new_head_repeats_the_expected_response_in_its_size() -> None:
    torch.manual_seed(0)
    config = PerturbationDecoderConfig(
        backbone={**BACKBONES["llama"], "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 1},
        genes=[f"G{i}" for i in range(GENES)], contexts=["a", "b"], batches=["u", "v"], cell_width=WIDTH,
        protein_width=PROTEIN, gene_rank=4,
    )  # fmt: skip
    batch = make_batch()
    batch.deviation_BG[:, 2] = 0.0  # a target gene has no part in sizes
    decoder = PerturbationDecoder(config).eval()
    torch.testing.assert_close(decoder(batch).delta_BG, batch.response_BG)
    reliability, fields = batch.reliability_G.numpy(), zip(batch.response_BG, batch.deviation_BG, strict=True)
    expected = [Expected(mean.numpy(), deviation.numpy(), reliability) for mean, deviation in fields]
    batch = replace(batch, power_B=torch.tensor([one.power for one in expected]))
    for found, one in zip(decoder(batch, in_size=True).delta_BG, expected, strict=True):
        torch.testing.assert_close(found, torch.from_numpy(one.in_size))


@torch.no_grad()
def test_what_is_learned_counts_as_far_as_it_is_trusted_and_the_response_is_unsure() -> None:
    decoder, batch = make_decoder(), make_batch()
    batch.target_gene_BP.fill_(-1)
    sure = replace(batch, deviation_BG=0 * batch.deviation_BG)
    beyond = decoder(sure).delta_BG / sure.response_BG  # the gate alone
    torch.testing.assert_close(beyond[0], beyond[0, :1].expand(GENES))
    full = decoder(batch).delta_BG - batch.response_BG
    decoder.config.trust = 0.25
    torch.testing.assert_close(decoder(batch).delta_BG, batch.response_BG + 0.25 * full)
    decoder.config.trust = 0.0
    torch.testing.assert_close(decoder(batch).delta_BG, batch.response_BG)


def test_a_decoder_saved_is_the_decoder_loaded(tmp_path: Any) -> None:
    decoder, batch = make_decoder(), make_batch()
    decoder.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, PerturbationDecoder)
    assert loaded.config.genes == decoder.config.genes
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(batch).log_share_BSG(batch), decoder(batch).log_share_BSG(batch), rtol=0, atol=1e-5
        )
