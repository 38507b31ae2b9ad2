"""What every baseline offers: a log ratio to the control profile, from training and control cells alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:  # a recipe looks at the class, for which a plan need not wait for torch
    import torch
    from rich.console import Console

    from vcc_fm.cellsets.dataset import Dataset


class Baseline(ABC):
    """A predictor that nothing trains. What it predicts becomes cells by the same emitter as the model's.

    Attributes:
        scaled: whether it predicts an effect, whose size the calibrate stage may choose.
        oracle: whether it knows the truth of simulated cells, and is no rung of the ladder.
        version: raised whenever it would predict other numbers, so that older predictions are made again.
        cell_encoders: names of the cell encoders whose vectors it can read; None where it reads none, or any.
        data: cells, vectors and split of one fold; of perturbed cells only training groups may be read.
    """

    scaled: ClassVar[bool] = True
    oracle: ClassVar[bool] = False
    version: ClassVar[int] = 1
    cell_encoders: ClassVar[frozenset[str] | None] = None

    def __init__(self, data: Dataset):
        self.data = data

    def prepare(self, groups: Collection[tuple[str, str]], device: torch.device, console: Console) -> None:
        """Do what takes long, once, for the (context, perturbation) ``groups`` that will be asked for.

        Args:
            groups: to predict.
            device: where to compute.
            console: where progress goes.
        """

    @abstractmethod
    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Natural log of each gene's share over its share in control cells, [G] float32."""
