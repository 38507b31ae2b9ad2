"""All counts of an opened source, as `prepare` reads them."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from vcc_fm.sources.anndata_source import AnnDataSource


def counts_of(source: AnnDataSource, chunk_cells: int) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """Positions and counts of all kept cells in order of the file, so many rows at a time; concludes the source."""
    states = []
    for start in range(0, source.rows_of_file, chunk_cells):
        cells = source.read(start, min(start + chunk_cells, source.rows_of_file))
        states.append(cells.evidence.state())
        yield cells.positions, cells.counts
    source.conclude(states)
