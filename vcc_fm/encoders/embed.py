"""Run the expression encoder over a cell store and write an embedding store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vcc_fm.encoders.expression import FIT_CELLS, ExpressionEncoder
from vcc_fm.recipe import CellEncoderConfig
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import write_embeddings

ROWS = 8192
Progress = Callable[[int, int], None]


def embed_cells(
    folder: Path, cells: CellStore, config: CellEncoderConfig, fingerprint: str, progress: Progress
) -> None:
    """Fit the expression encoder and write the vectors of all cells into ``folder``.

    The encoder is fitted on control cells alone: they are in no split's held-out part, so that one store serves every
    fold and no held-out cell can reach it. At most ``FIT_CELLS`` of them are used, evenly spaced over the store.

    Raises:
        UserError: there are too few controls or shared genes for the width.
    """
    controls = cells.rows(perturbation=cells.control)
    fitting = controls[np.linspace(0, len(controls) - 1, min(len(controls), FIT_CELLS)).astype(np.int64)]
    measured = np.asarray(cells.measured.all(axis=0))
    encoder = ExpressionEncoder.fit(cells.sparse(fitting), measured, config.width, config.target_sum)

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(cells), ROWS):
            rows = np.arange(start, min(start + ROWS, len(cells)))
            yield cells.barcodes[rows], encoder.encode(cells.sparse(rows))
            progress(int(rows[-1]) + 1, len(cells))

    encoder.save(folder / "encoder.safetensors")
    meta = encoder.describe() | {"cells": cells.fingerprint, "fitted_on": f"{len(fitting)} control cells"}
    write_embeddings(folder, "barcode", chunks(), config.width, fingerprint, meta)
