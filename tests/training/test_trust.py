"""What validation bears out of what was learned, by losses that are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vcc_fm.training.trust import Trust, choose_trust


class Sets(list[Any]):
    """Two validation sets a group."""

    def __init__(self, perturbations: int):
        super().__init__(
            SimpleNamespace(context="K", perturbation=f"p{i}") for i in range(perturbations) for _ in range(2)
        )


def chosen(best: float, spread: float, perturbations: int, most: int = 1000) -> tuple[Trust, float]:
    """What is chosen where a group's loss is ``(trust - best)^2 + slope x trust``; spread of the slopes."""
    slope = dict(zip(sorted({one.perturbation for one in Sets(perturbations)}), noise(perturbations), strict=True))
    decoder: Any = SimpleNamespace(config=SimpleNamespace(trust=1.0), device="cpu", eval=lambda: None)

    def assemble(sets: list[Any]) -> Any:
        return SimpleNamespace(to=lambda _: sets[0])

    def losses(decoder: Any, one: Any) -> dict[str, torch.Tensor]:
        trust = decoder.config.trust
        value = (trust - best) ** 2 + spread * slope[one.perturbation] * trust
        return {"likelihood": torch.tensor([value]), "ignored": torch.tensor([99.0])}

    losses.weights = {"likelihood": 1.0}  # type: ignore[attr-defined]
    found = choose_trust(decoder, Sets(perturbations), SimpleNamespace(assemble=assemble), losses, most)  # type: ignore[arg-type]
    return found, decoder.config.trust


def noise(number: int) -> np.ndarray:
    """Mean 0, standard deviation 1."""
    values = np.random.default_rng(0).normal(size=number)
    return (values - values.mean()) / (values.std(ddof=1) or 1.0)


@pytest.mark.parametrize(("best", "trust"), [(1.0, 1.0), (0.5, 0.5), (0.1, 0.0), (0.0, 0.0), (-1.0, 0.0), (0.3, 0.25)])
def test_without_noise_the_lowest_loss_is_chosen(best: float, trust: float) -> None:
    found, set_to = chosen(best, 1e-6, 20)
    assert found.value == set_to == trust
    if trust:
        assert found.gain == pytest.approx(best**2 - (trust - best) ** 2, abs=1e-5)


def test_a_gain_that_few_groups_cannot_show_is_none() -> None:
    # The gain at 1 is 1, its standard error 3 / sqrt(n).
    few, _ = chosen(1.0, 3.0, 6)
    assert few.value == 0
    assert "nothing that was learned is clear in validation" in str(few)
    assert few.error == pytest.approx(3.0 / 6**0.5, rel=1e-4)
    many, _ = chosen(1.0, 3.0, 60)
    assert many.value > 0
    assert (many.gain, many.groups) == (pytest.approx(1 - (1 - many.value) ** 2, abs=1e-5), 60)
    assert "is trusted" in str(many)


def test_one_group_shows_nothing() -> None:
    alone, _ = chosen(1.0, 0.0, 1)
    assert (alone.value, alone.error) == (0, None)
    assert "standard error unknown, 1 group" in str(alone)
    # Of as many sets as are looked at.
    assert chosen(1.0, 0.0, 5, most=2)[0].groups == 1
