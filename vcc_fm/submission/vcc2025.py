"""Virtual Cell Challenge 2025: one context, log-normalised values, control cells included.

The rules and the archive's form are those of ``cell-eval prep`` 0.8.2 (MIT), which holds all cells in memory several
times over, and does not look at how its calls of ``zstd`` and ``tar`` end. So the archive is written here, piece by
piece, and ``cell-eval prep`` judges the cells that were read back from it where memory allows.

Values are ``log1p(count * T / depth)``, T the median depth of the control cells, as float32. cell-eval takes them as
they are. Were they counts, it would scale each file to the median depth of its own cells: the size of an effect on
depth would then move every value. Nor can it take them for counts, as it does where no value has decimals: log1p of a
ratio of whole numbers is never a whole number, save 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import listed
from vcc_fm.scoring.inputs import Labels
from vcc_fm.sources.controls import contexts_with, require_controls
from vcc_fm.submission.cells import Part, from_store
from vcc_fm.submission.challenge import COLUMN, CONTROL, PREDICTION, Official
from vcc_fm.submission.submit import Archived


class Vcc2025(Archived):
    """See the module."""

    most_cells = 200_000
    next = "upload it on the challenge's page"

    def cells_of(self, said: int | None) -> int | None:
        """See :class:`Challenge`; the list says how many were measured, and as many need not be predicted."""
        return None

    def find_contexts(self, labels: Labels) -> list[str]:
        """The one given, or the only one that the predictions have.

        Raises:
            UserError: there are several.
        """
        contexts = self.inputs.contexts or labels.contexts()
        if len(contexts) != 1:
            raise UserError(
                f"{labels.path}: this challenge has one context, found {listed(contexts)}; give --contexts with one"
            )
        return contexts

    def obs(self, cells: pd.DataFrame) -> pd.DataFrame:
        """See :class:`Challenge`."""
        return cells[["perturbation"]].rename(columns={"perturbation": COLUMN})

    def controls(self) -> list[Part]:
        """All control cells of the context.

        Raises:
            UserError: there are none, or the store lacks a gene.
        """
        cells, (context,) = self.inputs.cells(), self.contexts
        require_controls([context], contexts_with(cells.control, cells.group_cells), cells.control, str(cells.folder))
        rows = cells.rows(context, cells.control)
        part = from_store(cells, rows, pd.DataFrame({COLUMN: [CONTROL] * len(rows)}))
        self.target = float(np.median(np.concatenate([block.depth for block in part.blocks(self.genes)])))
        return [part]

    def values(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """See the module."""
        scaled = counts.astype(np.float64)
        depth = np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()
        scaled.data = np.log1p(scaled.data * np.repeat(self.target / np.maximum(depth, 1), np.diff(counts.indptr)))
        return scaled.astype(np.float32)

    def counts(self, values: sp.csr_matrix, depth: np.ndarray) -> np.ndarray:
        """See :class:`Challenge`; float32 holds a value to 1e-7, so that counts to 100,000 come back exactly."""
        unit = np.repeat(depth / self.target, np.diff(values.indptr))
        return np.asarray(np.rint(np.expm1(values.data.astype(np.float64)) * unit))

    def members(self, values: int) -> dict[str, bytes | None]:
        """The cells, and the watermark that the platform looks for."""
        return {PREDICTION: None, "watermark.txt": b"vcc-prep"}

    def official(self, h5ad: Path, values: int) -> Official:
        """``cell-eval prep``: 25.1 bytes a value, measured on 30 and 120 million.

        It knows no dry run, so its archive is thrown away, and no header of a gene axis, so it gets one without.
        """
        genes, output = (h5ad.with_name(name) for name in ("genes.csv", "official.vcc"))
        genes.write_text("\n".join(self.genes), encoding="utf-8")
        arguments = ["prep", "-i", str(h5ad), "-g", str(genes), "-o", str(output)]
        return Official("cell-eval>=0.8.2", ("cell-eval", "zstd", "tar"), arguments, values * 26)
