"""Which layers are adapted and which are trained in full, by what a recipe says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from test_decoder_model import make_batch, make_decoder

from vcc_fm.decoder.lora import add_adapters
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.decoder import LoraSettings


def adapted(**settings: Any) -> PeftModel:
    torch.manual_seed(0)
    return add_adapters(make_decoder(), LoraSettings(**settings), "scratch")


def names(model: PeftModel, part: str) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad and part in name}


def test_all_linear_layers_of_the_backbone_are_adapted_and_all_around_it_trains() -> None:
    model = adapted()
    layers = {name.split(".lora_A")[0] for name in names(model, "lora_A")}
    linear = [name for name, one in model.get_base_model().backbone.named_modules() if hasattr(one, "lora_A")]
    assert layers == {f"base_model.model.backbone.{name}" for name in linear}
    assert not {name for name in names(model, "backbone") if "lora" not in name}
    assert names(model, "gene_factors")
    assert names(model, "head")


def test_layers_and_blocks_are_chosen_by_name_and_number() -> None:
    found = names(adapted(target_modules=["q_proj", "down_proj"], layers=[1]), "lora_A")
    assert {name.split("backbone.")[1].split(".lora")[0] for name in found} == {
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.down_proj",
    }


def test_modules_are_trained_in_full() -> None:
    found = {name for name in names(adapted(full=["input_layernorm"]), "backbone") if "lora" not in name}
    assert len(found) == 2
    assert all("input_layernorm" in name for name in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["query"]}, r"lora.target_modules: the backbone has no query; it has q_proj, k_proj"),
        ({"layers": [0, 7]}, r"lora.layers: the backbone has no 7; it has 0, 1"),
        ({"full": ["head"]}, r"lora.full: the backbone has no head; it has "),
    ],
)
def test_what_the_backbone_does_not_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(**settings)


@pytest.mark.parametrize("kind", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
def test_every_kind_starts_at_its_base_and_merges_into_what_it_was(kind: dict[str, Any]) -> None:
    base, batch = make_decoder().eval(), make_batch()
    model = adapted(r=4, alpha=8, **kind).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(batch).delta_BG, base(batch).delta_BG, rtol=0, atol=1e-6)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
        moved = model(batch).delta_BG
        assert (moved - base(batch).delta_BG).abs().max() > 1e-3
        torch.testing.assert_close(model.merge_and_unload()(batch).delta_BG, moved, rtol=0, atol=1e-5)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    def scaling(**settings: Any) -> float:
        model = adapted(r=16, alpha=8, target_modules=["q_proj"], layers=[0], **settings)
        return next(one.scaling["default"] for one in model.modules() if hasattr(one, "lora_A") and one.lora_A)

    assert scaling() == 0.5
    assert scaling(rslora=True) == 2.0
