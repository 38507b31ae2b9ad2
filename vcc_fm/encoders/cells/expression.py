"""The expression encoder: principal components of log-normalised counts, fitted on training cells only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA

from vcc_fm.ground.errors import UserError

FIT_CELLS = 20_000
"""Most cells on which components are fitted; a larger training set is sampled."""


def log_normalise(counts: sp.csr_matrix, target_sum: float) -> sp.csr_matrix:
    """log1p of counts [n, G] scaled to ``target_sum`` UMI a cell, float32; a cell without counts stays zero."""
    depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(target_sum, depth, out=np.zeros_like(depth), where=depth > 0)
    values = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr)))
    return sp.csr_matrix((values.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


@dataclass(frozen=True)
class ExpressionEncoder:
    """A fitted encoder.

    Attributes:
        columns: [g] int64, positions on the gene axis that are used: the genes that every source measured, because a
            gene that was not measured must not look like one that is silent. A cell's depth is taken over them too.
        mean: [g] float32 mean of log-normalised expression.
        components: [width, g] float32, orthonormal rows.
        scale: float, standard deviation of the first component; vectors are divided by it.
        target_sum: UMI.
    """

    columns: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    scale: float
    target_sum: float

    @classmethod
    def fit(cls, counts: sp.csr_matrix, measured: np.ndarray, width: int, target_sum: float) -> ExpressionEncoder:
        """Fit on ``counts`` [n, G] of cells that no score is computed from.

        Args:
            counts: integer counts of training and control cells.
            measured: [G] bool, genes measured by every source.
            width: number of components.
            target_sum: depth to which cells are scaled, UMI.

        Raises:
            UserError: fewer shared genes or fitting cells than components.
        """
        columns = np.flatnonzero(measured)
        smallest = min(len(columns), counts.shape[0])
        if smallest <= width:
            raise UserError(
                f"embed.cells.width={width}: {len(columns)} genes measured by all sources and {counts.shape[0]} cells "
                f"to fit on; use a width below {smallest}"
            )
        values = log_normalise(counts[:, columns], target_sum).astype(np.float64)
        # ARPACK starts from a vector that random_state draws: without it two fits differ in the last digits.
        pca = PCA(width, svd_solver="arpack", random_state=0).fit(values)
        return cls(
            columns,
            pca.mean_.astype(np.float32),
            pca.components_.astype(np.float32),
            float(np.sqrt(pca.explained_variance_[0])),
            target_sum,
        )

    @property
    def width(self) -> int:
        """Number of components."""
        return len(self.components)

    def encode(self, counts: sp.csr_matrix) -> np.ndarray:
        """Vectors [n, width] float32 of ``counts`` [n, G]; each row depends on its own cell alone."""
        values = log_normalise(counts[:, self.columns], self.target_sum)
        return ((values @ self.components.T - self.mean @ self.components.T) / self.scale).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """What ``store.json`` says of the encoder."""
        return {
            "encoder": "expression",
            "parameters": {"width": self.width, "target_sum": self.target_sum, "genes": len(self.columns)},
            "licence": "that of the cells",
            "citation": "",
        }

    def save(self, path: Path) -> None:
        """Write the encoder as safetensors."""
        tensors = {"columns": self.columns, "mean": self.mean, "components": np.ascontiguousarray(self.components)}
        save_file(tensors | {"scale": np.array([self.scale, self.target_sum])}, path)

    @classmethod
    def load(cls, path: Path) -> ExpressionEncoder:
        """Read what :meth:`save` wrote."""
        tensors = load_file(path)
        scale, target_sum = tensors["scale"].tolist()
        return cls(tensors["columns"], tensors["mean"], tensors["components"], scale, target_sum)
