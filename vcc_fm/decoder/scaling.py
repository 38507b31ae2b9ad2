"""Bring the vectors of an encoder to a common centre and size before a decoder reads them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class VectorScaling(nn.Module):
    """(x - mean) / scale, with a mean per component and one scale for all of them.

    Encoders differ in size (an ESM2 vector, a cell of unit length) and most of a vector is what all proteins or all
    cells have in common. The scale is one number, so that components keep their proportions: those of small variance
    are mostly noise.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, vectors: NDArray[np.float32]) -> None:
        """Take mean and root of the mean variance of ``vectors`` [n, width]; equal vectors keep their size."""
        values = vectors.astype(np.float64)
        scale = np.sqrt(values.var(axis=0).mean())
        self.mean.copy_(torch.from_numpy(values.mean(axis=0)))
        self.scale.fill_(scale if scale > 0 else 1.0)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [..., width], scaled."""
        return (vectors - self.mean) / self.scale
