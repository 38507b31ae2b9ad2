"""How far a decoder is trusted to correct the response that the training responses lead to expect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vcc_fm.cellsets.sampler import Sets
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.words import many
from vcc_fm.training.loop import Assembles, Losses

TRIED = (0.0, 0.25, 0.5, 0.75, 1.0)
CLEAR = 2.0
"""Standard errors over validation groups: what a few of them seem to gain is mostly luck."""


@dataclass(frozen=True)
class Trust:
    """What was chosen, and why.

    Attributes:
        value: factor on what was learned, one of ``TRIED``.
        gain: how much lower the validation loss is than without it; at the lowest loss of ``TRIED`` where ``value``
            is 0.
        error: standard error of the gain over groups; None where there is one group.
        groups: number of validation groups (context, perturbation).
    """

    value: float
    gain: float
    error: float | None
    groups: int

    def __str__(self) -> str:
        """One line for people."""
        error = "unknown" if self.error is None else f"{self.error:.2g}"
        seen = f"gain {self.gain:.3g}, standard error {error}, {many(self.groups, 'group')}"
        if self.value == 0:
            return f"nothing that was learned is clear in validation ({seen}): the expected response is kept as it is"
        return f"{self.value:.0%} of what was learned is trusted ({seen})"


def choose_trust(
    decoder: PerturbationDecoder, sampler: Sets, assembler: Assembles, losses: Losses, most: int
) -> Trust:
    """The share of what was learned whose gain in validation, less ``CLEAR`` standard errors, is largest; or none.

    Args:
        decoder: trained, on the device of the batches; its trust is set.
        sampler: of validation sets.
        assembler: of their batches.
        losses: what training minimised.
        most: validation sets that are looked at.
    """
    gain = _gains(decoder, sampler, assembler, losses, most)
    mean, number = gain.mean(axis=0), len(gain)
    error = gain.std(axis=0, ddof=1) / np.sqrt(number) if number > 1 else None
    chosen = 0 if error is None else int((mean - CLEAR * error).argmax())  # without what was learned: 0
    decoder.config.trust = TRIED[chosen]
    shown = chosen or int(mean.argmax())
    return Trust(TRIED[chosen], float(mean[shown]), None if error is None else float(error[shown]), number)


@torch.no_grad()
def _gains(decoder: PerturbationDecoder, sampler: Sets, assembler: Assembles, losses: Losses, most: int) -> np.ndarray:
    """How much lower the mean loss of each validation group is at each of ``TRIED``, [groups, tried]."""
    decoder.eval()
    sets = [sampler[position] for position in range(min(most, len(sampler)))]
    groups = sorted({(one.context, one.perturbation) for one in sets})
    row_of = [groups.index((one.context, one.perturbation)) for one in sets]
    total = np.zeros((len(groups), len(TRIED)))
    for one, row in zip(sets, row_of, strict=True):
        batch = assembler.assemble([one]).to(decoder.device)
        for column, trust in enumerate(TRIED):
            decoder.config.trust = trust
            terms = losses(decoder, batch)
            total[row, column] += sum(weight * float(terms[name].mean()) for name, weight in losses.weights.items())
    mean = total / np.bincount(row_of)[:, None]
    return mean[:, :1] - mean
