"""The expression encoder: principal components of log-normalised counts, fitted on control cells only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field
from safetensors.numpy import load_file, save_file

from vcc_fm.encoders.cells.encoder import CellEncoder
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.words import many
from vcc_fm.recipe.embed import CellEncoderSettings
from vcc_fm.recipe.section import PositiveInt

if TYPE_CHECKING:
    from accelerate import PartialState
    from rich.console import Console

    from vcc_fm.store.cells import CellStore

FIT_CELLS = 20_000
"""Most control cells on which components are fitted; of more, so many are taken, evenly spaced over the store."""
FILE = "encoder.safetensors"


class ExpressionSettings(CellEncoderSettings):
    """Keys of ``embed.cells`` with ``encoder: expression``."""

    encoder: Literal["expression"] = Field(
        "expression", description="PCA of log-normalised expression, fitted on control cells only"
    )
    width: PositiveInt = Field(32, description="number of components")
    target_sum: float = Field(1e4, gt=0, description="depth to which a cell is scaled before log1p, UMI")


class Expression(CellEncoder):
    """Principal components of a store's own control cells."""

    Settings = ExpressionSettings
    obsm = "X_pca"

    def __init__(self, settings: ExpressionSettings):
        self.settings = settings
        self._encoder: ExpressionEncoder

    @property
    def width(self) -> int:
        """Number of components."""
        return self.settings.width

    def identity(self) -> Any:
        """See :class:`CellEncoder`."""
        return self.settings.model_dump(mode="json")

    def check(self, genes: int, controls: int) -> None:
        """Refuse fewer genes or control cells than components."""
        if min(genes, controls) <= self.width:
            raise UserError(
                f"embed.cells.width={self.width}: {genes} genes measured by all sources and {controls} control cells "
                f"to fit on; use a width below {min(genes, controls)}"
            )

    def fit(self, cells: CellStore, folder: Path) -> None:
        """Fit on at most ``FIT_CELLS`` control cells, evenly spaced over the store."""
        from vcc_fm.store.cells import evenly_spaced

        fitting = evenly_spaced(cells.rows(perturbation=cells.control), FIT_CELLS)
        measured = np.asarray(cells.measured.all(axis=0))
        self.check(int(measured.sum()), len(fitting))
        counts = cells.sparse(fitting)
        ExpressionEncoder.fit(counts, measured, self.width, self.settings.target_sum).save(folder / FILE)

    def load(self, cells: CellStore, folder: Path, state: PartialState, console: Console) -> None:
        """Read what was fitted.

        Raises:
            UserError: it is not what an encoder of this width on this gene axis was fitted to.
        """
        self._encoder = ExpressionEncoder.load(folder / FILE, self.width, len(cells.genes))

    def encode(self, cells: CellStore, rows: np.ndarray, progress: Callable[[int], None]) -> np.ndarray:
        """[n, width] float32."""
        vectors = np.empty((len(rows), self.width), np.float32)
        source = cells.batch_source[cells.batch[rows]]
        for number in np.unique(source):
            mine = source == number
            vectors[mine] = self._encoder.encode(cells.sparse(rows[mine]), cells.measured_by_source[number])
        return vectors

    def describe(self) -> dict[str, Any]:
        """See :class:`CellEncoder`."""
        return {
            "encoder": "expression",
            "parameters": self.settings.model_dump(exclude={"encoder"}) | {"genes": len(self._encoder.columns)},
            "licence": "that of the cells",
            "citation": "",
            "fitted_on": many(self._encoder.cells, "control cell"),
        }


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
        cells: number of cells that it was fitted on.
    """

    columns: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    scale: float
    target_sum: float
    cells: int

    @classmethod
    def fit(cls, counts: sp.csr_matrix, measured: np.ndarray, width: int, target_sum: float) -> ExpressionEncoder:
        """Fit on ``counts`` [n, G] of cells that no score is computed from.

        Args:
            counts: integer counts of training and control cells.
            measured: [G] bool, genes measured by every source.
            width: number of components.
            target_sum: depth to which cells are scaled, UMI.
        """
        from sklearn.decomposition import PCA

        columns = np.flatnonzero(measured)
        values = log_normalise(counts[:, columns], target_sum).astype(np.float64)
        # ARPACK starts from a vector that random_state draws: without it two fits differ in the last digits.
        pca = PCA(width, svd_solver="arpack", random_state=0).fit(values)
        return cls(
            columns,
            pca.mean_.astype(np.float32),
            pca.components_.astype(np.float32),
            float(np.sqrt(pca.explained_variance_[0])),
            target_sum,
            counts.shape[0],
        )

    @property
    def width(self) -> int:
        """Number of components."""
        return len(self.components)

    def encode(self, counts: sp.csr_matrix, measured: np.ndarray | None = None) -> np.ndarray:
        """Vectors [n, width] float32 of ``counts`` [n, G]; each row depends on its own cell alone.

        Of cells from elsewhere some genes may be missing. These are taken for average ones: they add nothing, and a
        cell is scaled to the share of ``target_sum`` that the others have in the mean cell.

        Args:
            counts: of the cells.
            measured: [G] bool, genes that were; None is all.
        """
        columns, mean, components, target = self.columns, self.mean, self.components, self.target_sum
        if measured is not None and not measured[columns].all():
            here, usual = measured[columns], np.expm1(mean.astype(np.float64))
            target *= float(usual[here].sum() / usual.sum())
            columns, mean, components = columns[here], mean[here], components[:, here]
        values = log_normalise(counts[:, columns], target)
        return ((values @ components.T - mean @ components.T) / self.scale).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the encoder as safetensors."""
        tensors = {"columns": self.columns, "mean": self.mean, "components": np.ascontiguousarray(self.components)}
        save_file(tensors | {"scale": np.array([self.scale, self.target_sum, self.cells])}, path)

    @classmethod
    def load(cls, path: Path, width: int, genes: int) -> ExpressionEncoder:
        """Read what :meth:`save` wrote, of ``width`` components on an axis of so many ``genes``.

        Raises:
            UserError: it is something else.
        """
        advice = "embed the cells again, or get the model again"
        with reading(path, "a fitted encoder", advice):
            tensors = load_file(path)
            columns, mean, components = (tensors[name] for name in ("columns", "mean", "components"))
            scale, target_sum, cells = tensors["scale"].tolist()
            ordered = np.unique(columns)  # distinct, and rising
            fits = columns.dtype == np.int64 and (ordered.shape, components.shape) == (mean.shape, (width, len(mean)))
            if not fits or (ordered != columns).any() or ordered[0] < 0 or ordered[-1] >= genes:
                raise UserError(f"{path}: was not fitted with {width} components on {genes} genes; {advice}")
            if not all(map(np.all, map(np.isfinite, (mean, components)))) or not (scale > 0 and target_sum > 0):
                raise UserError(f"{path}: holds numbers that are no fit; {advice}")
        return cls(columns, mean, components, scale, target_sum, int(cells))
