"""A recorded step is the step, and only where a model trains."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_decoder_model import make_batch, make_decoder, set_alone

from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.train import LossWeights
from vcc_fm.training.loop import mean_loss


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, ...]]:
    """Shapes of what is recorded, by a stand-in that runs what it shall record each time; a CPU records nothing."""
    seen: list[tuple[torch.Size, ...]] = []

    def record(step: torch.nn.Module, sample: tuple[torch.Tensor, ...], **_: Any) -> torch.nn.Module:
        seen.append(tuple(value.shape for value in sample))
        step(*sample)
        return step

    monkeypatch.setattr(torch, "compile", lambda compute: compute)
    monkeypatch.setattr(torch.random, "fork_rng", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return seen


def step(decoder: PerturbationDecoder, losses: SetLosses, batch: Any) -> list[torch.Tensor]:
    """Loss terms and gradients."""
    decoder.zero_grad()
    terms = losses(decoder, batch)
    mean_loss(terms, losses).backward()
    return [
        *(value.detach() for value in terms.values()),
        *(p.grad for p in decoder.parameters() if p.grad is not None),
    ]


def test_a_recorded_step_is_the_step(recordings: list[tuple[torch.Size, ...]]) -> None:
    decoder, plain, recorded = make_decoder().train(), SetLosses(LossWeights()), SetLosses(LossWeights())
    recorded.record()
    for seed in range(3):
        batch = make_batch(seed)
        found, wanted = ([value.clone() for value in step(decoder, one, batch)] for one in (recorded, plain))
        assert len(found) == len(wanted) > 3
        assert all(map(torch.equal, found, wanted))
    assert len(recordings) == 1


def test_what_does_not_train_is_not_recorded(recordings: list[tuple[torch.Size, ...]]) -> None:
    decoder, plain, recorded = make_decoder(), SetLosses(LossWeights()), SetLosses(LossWeights())
    recorded.record()
    for batch in (make_batch(), set_alone(make_batch(), 1)):
        with torch.no_grad():
            found, wanted = recorded(decoder, batch), plain(decoder, batch)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not recordings


def test_a_batch_of_another_shape_is_refused(
    recordings: list[tuple[torch.Size, ...]],
) -> None:
    decoder, recorded = make_decoder().train(), SetLosses(LossWeights())
    recorded.record()
    recorded(decoder, make_batch())
    with pytest.raises(AssertionError, match="another shape"):
        recorded(decoder, set_alone(make_batch(), 0))


def test_what_cannot_be_compiled_says_what_to_do(
    recordings: list[tuple[torch.Size, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    recorded = SetLosses(LossWeights())
    recorded.record()
    with pytest.raises(UserError, match=r"\(operation not permitted when stream is capturing\); set compile=false"):
        recorded(make_decoder().train(), make_batch())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_the_step() -> None:
    decoder, plain, recorded = make_decoder().train().cuda(), SetLosses(LossWeights()), SetLosses(LossWeights())
    decoder.bf16_backbone = True
    recorded.record()
    for seed in range(3):
        batch = make_batch(seed).to(torch.device("cuda"))
        found, wanted = ([value.clone() for value in step(decoder, one, batch)] for one in (recorded, plain))
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
