"""What a mixed model of all training responses predicts; see :mod:`vcc_fm.responses.mixed_model`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vcc_fm.baselines.baseline import Baseline

if TYPE_CHECKING:
    import torch
    from rich.console import Console


class Mixed(Baseline):
    """The best linear unbiased prediction in the size that the signal is expected to have.

    At the target genes it is the knock-down that training perturbations show.
    """

    version: ClassVar[int] = 4

    def prepare(self, groups: Collection[tuple[str, str]], device: torch.device, console: Console) -> None:
        """Fit the model, once for all groups."""
        del groups, device
        model = self.data.expected.model
        widths = [len(next(iter(table.values()))) for table in model.kernels.tables]
        fitted = f"{len(model.evidence.groups):,} training groups" + f" in {len(model)} portions" * (len(model) > 1)
        console.print(f"mixed-model: {fitted}, widths of tables {widths}")

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """[G] float32."""
        return self.data.expected.of(context, perturbation).in_size
