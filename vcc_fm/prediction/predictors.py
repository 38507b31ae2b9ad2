"""What can predict: the decoder and the baselines, each as a distribution of counts for a set of control cells.

Everything is emitted by the same emitter from the same random numbers, so that predictors differ by what they predict
and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from vcc_fm.cellsets.assembler import Assembler
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import CellSet
from vcc_fm.decoder.build import vocabulary_of
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError


class Predictor(Protocol):
    """Predicts one set at a time."""

    @property
    def dispersion(self) -> np.ndarray:
        """Negative-binomial dispersion [G] of the cells it emits."""

    def log_share(self, one: CellSet, effect_scale: float) -> np.ndarray:
        """Natural log of each gene's share in each cell of a set, [n, G]; -inf where not measured.

        Args:
            one: the set.
            effect_scale: factor on the log ratios to the control profile.
        """


class RatioPredictor:
    """A log ratio for each (context, perturbation), on the control profiles of the set's batches: a baseline."""

    def __init__(self, data: Dataset, log_ratio: Callable[[str, str], np.ndarray]):
        self.data, self._log_ratio = data, log_ratio
        self._ratio: dict[tuple[str, str], np.ndarray] = {}

    @property
    def dispersion(self) -> np.ndarray:
        """Dispersion of the control cells."""
        return self.data.dispersion

    def log_share(self, one: CellSet, effect_scale: float) -> np.ndarray:
        """See :class:`Predictor`."""
        key = (one.context, one.perturbation)
        if key not in self._ratio:
            self._ratio[key] = self._log_ratio(*key)
        logits = self.data.log_shares[self.data.cells.batch[one.control_rows]] + effect_scale * self._ratio[key]
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


class DecoderPredictor:
    """A trained decoder."""

    def __init__(self, data: Dataset, decoder: PerturbationDecoder, set_size: int, device: torch.device):
        """Put ``decoder`` on a device.

        Raises:
            UserError: it was trained on another gene axis.
        """
        self.decoder = decoder.eval().to(device)
        config = self.decoder.config
        if config.genes != data.cells.genes:
            raise UserError(
                f"{decoder.name_or_path}: its gene axis is not that of {data.cells.folder}; train it on these cells"
            )
        self.data, self._device = data, device
        self._assembler = Assembler(data, vocabulary_of(config), set_size, config.response, device)

    @property
    def dispersion(self) -> np.ndarray:
        """As trained."""
        return self.decoder.head.log_dispersion.detach().exp().double().cpu().numpy()

    @torch.no_grad()
    def log_share(self, one: CellSet, effect_scale: float) -> np.ndarray:
        """See :class:`Predictor`."""
        batch = self._assembler.assemble([one]).to(self._device)
        predicted = self.decoder(batch, effect_scale, in_size=True)
        return predicted.log_share_BSG(batch)[0, : len(one.control_rows)].cpu().numpy()
