"""What tests of sources share: all counts of an opened one, as `prepare` reads them; combinations of what is read."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
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


def combinations(*lists: Iterable[Any], of: int) -> Iterator[Any]:
    """All combinations; one in ``of``, spread over all lists, is in the default set, the others are slow."""
    for chosen in itertools.product(*map(enumerate, lists)):
        places, values = zip(*chosen, strict=True)
        yield pytest.param(*values, marks=[] if sum(places) % of == 0 else [pytest.mark.slow])
