"""What can predict: the decoder and the baselines, each as a distribution of counts for a set of control cells.

Everything is emitted by the same emitter from the same random numbers, so that predictors differ by what they predict
and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vcc_fm.baselines.additive import additive
from vcc_fm.baselines.control import control_unchanged
from vcc_fm.baselines.mean_response import mean_response
from vcc_fm.baselines.other_contexts import other_contexts
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import Assembler, CellSet
from vcc_fm.decoder.build import load_decoder, vocabulary_of
from vcc_fm.ground.errors import UserError

Baseline = Callable[[Dataset, str, str], np.ndarray]

BASELINES: dict[str, Baseline] = {
    "control": control_unchanged,
    "mean-response": mean_response,
    "other-contexts": other_contexts,
    "additive": additive,
}


class Predictor(Protocol):
    """Predicts one set at a time; ``effect_scale`` multiplies its log ratios to the control profile."""

    effect_scale: float

    @property
    def dispersion(self) -> np.ndarray:
        """Negative-binomial dispersion [G] of the cells it emits."""

    def log_share(self, one: CellSet) -> np.ndarray:
        """Natural log of each gene's share in each cell of a set, [n, G]; -inf where not measured."""


class BaselinePredictor:
    """A baseline's log ratio on the control profiles of the set's batches."""

    def __init__(self, data: Dataset, baseline: Baseline, effect_scale: float):
        self.data, self.baseline, self.effect_scale = data, baseline, effect_scale
        self._ratio: dict[tuple[str, str], np.ndarray] = {}

    @property
    def dispersion(self) -> np.ndarray:
        """Of the control cells."""
        return self.data.dispersion

    def log_share(self, one: CellSet) -> np.ndarray:
        """See :class:`Predictor`."""
        key = (one.context, one.perturbation)
        if key not in self._ratio:
            self._ratio[key] = self.baseline(self.data, *key)
        logits = self.data.log_shares[self.data.cells.batch[one.control_rows]] + self.effect_scale * self._ratio[key]
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


class DecoderPredictor:
    """A trained decoder."""

    def __init__(self, data: Dataset, folder: Path, set_size: int, effect_scale: float, device: torch.device):
        """Load the decoder in ``folder``.

        Raises:
            UserError: it was trained on another gene axis or with other encoders.
        """
        self.decoder = load_decoder(folder).eval().to(device)
        config = self.decoder.config
        if config.genes != data.cells.genes:
            raise UserError(f"{folder}: its gene axis is not that of {data.cells.folder}; train it on these cells")
        self.data, self.effect_scale, self._device = data, effect_scale, device
        self._assembler = Assembler(data, vocabulary_of(config), set_size, config.response, device)

    @property
    def dispersion(self) -> np.ndarray:
        """As trained."""
        return self.decoder.head.log_dispersion.detach().exp().double().cpu().numpy()

    @torch.no_grad()
    def log_share(self, one: CellSet) -> np.ndarray:
        """See :class:`Predictor`."""
        batch = self._assembler.assemble([one]).to(self._device)
        return self.decoder(batch, self.effect_scale).log_share_BSG[0, : len(one.control_rows)].cpu().numpy()
