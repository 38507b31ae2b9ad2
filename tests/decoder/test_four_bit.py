"""A backbone in 4 bits under adapters: what it computes, takes, counts and refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from refusals import keys, write_inputs
from test_decoder_model import BACKBONES, make_batch, make_decoder
from torch.utils.flop_counter import FlopCounterMode

from vcc_fm.decoder import four_bit
from vcc_fm.decoder.config import PerturbationDecoderConfig
from vcc_fm.decoder.four_bit import hold_in_4_bits, is_4_bit, linear_layers, round_to_4_bits, size_of
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.decoder import DecoderSettings, LoraSettings
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.plan import make_plan
from vcc_fm.training.accelerator import count_parameters

NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0,
]  # fmt: skip
"""The sixteen levels of QLoRA's NormalFloat, as its paper has them."""


@pytest.fixture
def bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora: pip install 'vcc-fm[qlora]'")


def adapted(decoder: PerturbationDecoder, compute: torch.dtype | None, **settings: Any) -> PeftModel:
    return add_adapters(decoder, LoraSettings(r=4, load_in_4bit=True, **settings), "base", compute)


def held_and_rounded(kind: str, **settings: Any) -> tuple[PeftModel, PeftModel]:
    """The same adapters, moved from where they start, on a base in 4 bits and on one of the same values in float32."""
    held = adapted(make_decoder(kind), torch.float32, **settings)
    rounded = adapted(make_decoder(kind), None, **settings)
    trained, other = (
        {name: one for name, one in model.named_parameters() if one.requires_grad} for model in (held, rounded)
    )
    assert trained.keys() == other.keys()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in trained.items():
            if "lora_A" in name or "lora_B" in name:
                value.normal_(std=0.1)
            other[name].copy_(value)
    return held.eval(), rounded.eval()


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"rslora": True, "layers": [1]}], ids=str)
@pytest.mark.parametrize("kind", BACKBONES)
def test_what_is_merged_is_what_was_trained(kind: str, settings: dict[str, Any]) -> None:
    batch = make_batch()
    held, rounded = held_and_rounded(kind, **settings)
    shares, plain = held(batch).log_share_BSG(batch), make_decoder(kind)(batch).log_share_BSG(batch)
    measured = torch.isfinite(shares)
    for model in (held, rounded):
        model(batch).log_share_BSG(batch)[measured].square().mean().backward()
    gradients = dict(rounded.named_parameters())
    for name, value in held.named_parameters():
        if value.requires_grad and value.grad is not None:
            torch.testing.assert_close(value.grad, gradients[name].grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        merged = rounded.merge_and_unload()
        assert not any(map(is_4_bit, merged.parameters()))
        torch.testing.assert_close(merged(batch).log_share_BSG(batch)[measured], shares[measured], rtol=0, atol=1e-5)
    assert (shares - plain)[measured].abs().max() > 1e-2


@pytest.mark.usefixtures("bitsandbytes")
def test_weights_are_the_nearest_levels_of_their_block() -> None:
    decoder = make_decoder()
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(decoder.backbone).items()}
    round_to_4_bits(decoder.backbone)
    levels = torch.tensor(NF4)
    for name, layer in linear_layers(decoder.backbone).items():
        blocks = before[name].reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        nearest = levels[(blocks[..., None] / largest[..., None] - levels).abs().argmin(-1)] * largest
        # The scale of a block takes 8 bits, too.
        torch.testing.assert_close(layer.weight.reshape(-1, 64), nearest, rtol=0.02, atol=0)


@pytest.mark.usefixtures("bitsandbytes")
def test_the_number_of_cores_changes_no_bit() -> None:
    torch.manual_seed(0)
    layer, threads, found = torch.nn.Linear(1024, 4096, bias=False), torch.get_num_threads(), []
    try:
        for cores in (1, 2, 3):
            torch.set_num_threads(cores)
            round_to_4_bits(rounded := torch.nn.Sequential(copy.deepcopy(layer)))
            found.append(rounded[0].weight)
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def bytes_of(model: torch.nn.Module) -> int:
    """Of the parameters, with the scales and levels of those in 4 bits."""
    total = 0
    for value in model.parameters():
        total += value.nbytes
        if is_4_bit(value):
            parts = value.quant_state.as_dict(packed=True)  # type: ignore[attr-defined]
            total += sum(part.nbytes for part in parts.values())
    return total


@pytest.mark.usefixtures("bitsandbytes")
def test_the_backbone_takes_an_eighth_and_counts_as_before() -> None:
    sizes_of = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = PerturbationDecoderConfig(backbone={"model_type": "llama", "vocab_size": 1, **sizes_of}, genes=["G"])
    decoder = PerturbationDecoder(config)
    layers, whole = linear_layers(decoder.backbone), bytes_of(decoder.backbone)
    linear = sum(layer.weight.nbytes for layer in layers.values())
    sizes = [size_of(value) for value in decoder.parameters()]
    hold_in_4_bits(decoder, torch.float32)
    saved = whole - bytes_of(decoder.backbone)
    # 4 bits a weight and 8 a block of 64, of 32; and the tables of levels, 1.3 kB a layer.
    assert (linear - saved) / linear < 0.14
    assert (linear - saved) / linear > 0.125
    assert [size_of(value) for value in decoder.parameters()] == sizes
    assert count_parameters(decoder)[0] == sum(sizes)


@pytest.mark.usefixtures("bitsandbytes")
def test_a_base_in_4_bits_is_not_part_of_a_checkpoint() -> None:
    held, rounded = held_and_rounded("llama")
    left_out = rounded.state_dict().keys() - held.state_dict().keys()
    linear = {f"base_model.model.backbone.{name}" for name in linear_layers(make_decoder().backbone)}
    assert {name.removesuffix(".base_layer.weight") for name in left_out} == linear
    assert held.state_dict().keys() < rounded.state_dict().keys()
    # As bytes: 4-bit weights that are stored as float32 may look like NaN.
    before = [value.detach().clone().view(torch.uint8) for value in held.parameters()]
    held.load_state_dict(held.state_dict(), strict=True)
    after = [value.detach().view(torch.uint8) for value in held.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.usefixtures("bitsandbytes")
def test_products_are_of_the_precision_of_the_recipe_and_counted() -> None:
    batch, found = make_batch(), {}
    for compute in (torch.float32, torch.bfloat16):
        decoder = make_decoder()
        hold_in_4_bits(decoder, compute)
        decoder.bf16_backbone = compute == torch.bfloat16
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shares = decoder(batch).log_share_BSG(batch)
            found[compute] = shares[torch.isfinite(shares)]
        with torch.no_grad(), FlopCounterMode(display=False) as plain:
            make_decoder()(batch)
        assert counter.get_total_flops() == plain.get_total_flops()
    distance = (found[torch.bfloat16] - found[torch.float32]).abs().max()
    assert 1e-4 < distance < 0.2 * found[torch.float32].abs().max()


def test_a_width_that_does_not_pack_is_refused() -> None:
    decoder = make_decoder()
    decoder.backbone.odd = torch.nn.Linear(12, 5)
    with pytest.raises(UserError, match=r"load_in_4bit: odd takes 12 values, no multiple of 8"):
        adapted(decoder, torch.float32)


def test_a_layer_that_trains_in_full_is_refused() -> None:
    for module in ("q_proj", "mlp"):
        with pytest.raises(UserError, match=r"load_in_4bit: layers.0.\S*_proj trains in full \(decoder.lora.full\)"):
            adapted(make_decoder(), torch.float32, full=[module])


@pytest.mark.usefixtures("bitsandbytes")
def test_a_norm_trains_in_full_beside_layers_in_4_bits() -> None:
    model = adapted(make_decoder(), torch.float32, full=["input_layernorm"])
    trained = {name for name, one in model.named_parameters() if one.requires_grad and "input_layernorm" in name}
    assert len(trained) == 2


def test_from_scratch_there_is_no_base_to_hold() -> None:
    with pytest.raises(ValidationError, match=r"load_in_4bit: with decoder.base=scratch everything trains"):
        DecoderSettings(lora=LoraSettings(load_in_4bit=True))


def test_without_the_library_training_and_plan_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    said = (
        "load_in_4bit holds the base in 4 bits, for which bitsandbytes is not installed: pip install 'vcc-fm[qlora]'"
    )
    with pytest.raises(UserError, match="not installed") as refused:
        adapted(make_decoder(), torch.float32)
    assert said in str(refused.value)
    content = write_inputs(tmp_path)
    keys(decoder__base="pretrain", pretrain__steps=2, pretrain__batch_sets=4)(tmp_path, content)
    assert make_plan(Recipe.model_validate(content), 1)["problems"] == []
    keys(decoder__lora__load_in_4bit=True)(tmp_path, content)
    (problem,) = make_plan(Recipe.model_validate(content), 1)["problems"]
    assert said in problem


@pytest.mark.usefixtures("bitsandbytes")
def test_a_plan_counts_the_parameters_of_the_model(tmp_path: Path) -> None:
    content = write_inputs(tmp_path)
    keys(decoder__base="pretrain", pretrain__steps=2, pretrain__batch_sets=4)(tmp_path, content)
    keys(decoder__lora__layers=[0])(tmp_path, content)
    plain = make_plan(Recipe.model_validate(content), 1)
    keys(decoder__lora__load_in_4bit=True)(tmp_path, content)
    held = make_plan(Recipe.model_validate(content), 1)
    assert held["problems"] == []
    assert held["decoder"] == plain["decoder"]
    assert held["decoder"] is not None
