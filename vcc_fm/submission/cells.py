"""The cells of a submission, read a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.scoring.inputs import Labels
from vcc_fm.store.cells import CellStore

ROWS = 1024
"""Cells in memory at a time; one that counts all of 20,000 genes takes 160 KB."""
AGAIN = "run `vcc-fm predict RECIPE` again"

Read = Callable[[int, int], sp.csr_matrix]


class Block(NamedTuple):
    """Cells that follow each other.

    Attributes:
        counts: [n, G] integer CSR on the axis of their part; sorted, without zeros and without genes not asked for.
        labels: [n] rows of obs.
        depth: [n] int64, counts of a cell.
    """

    counts: sp.csr_matrix
    labels: pd.DataFrame
    depth: np.ndarray


@dataclass(frozen=True)
class Part:
    """Cells of one origin, in the order in which they are submitted.

    Attributes:
        where: what holds them, for messages.
        labels: [n] rows, obs of the archive.
        genes: [G] axis of what is read.
        opened: gives, while it is open, a function from one place up to another to these cells' counts, [m, G] CSR.
    """

    where: str
    labels: pd.DataFrame
    genes: pd.Index
    opened: Callable[[], AbstractContextManager[Read]]

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, genes: pd.Index) -> Iterator[Block]:
        """All cells, with the counts of ``genes`` alone.

        Raises:
            UserError: they are not readable, or there is something else than counts.
        """
        asked = self.genes.isin(genes)
        with self.opened() as read:
            for start in range(0, len(self), ROWS):
                stop = min(start + ROWS, len(self))
                counts = read(start, stop)
                if counts.dtype.kind not in "iu" or (counts.nnz and counts.data.min() < 0):
                    raise UserError(f"{self.where}: X holds something else than counts; {AGAIN}")
                counts.data[~asked[counts.indices]] = 0
                counts.eliminate_zeros()
                counts = in_order(counts)
                depth = np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()
                yield Block(counts, self.labels.iloc[start:stop], depth)


def in_order(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix with rising columns in each row; two transpositions take half the time of sorting each row."""
    return matrix if matrix.has_sorted_indices else matrix.tocsc().tocsr()


def from_predictions(labels: Labels, rows: np.ndarray, obs: pd.DataFrame) -> Part:
    """The ``rows`` [n] of a prediction file, rising, which are called ``obs`` [n rows]."""

    @contextmanager
    def opened() -> Iterator[Read]:
        with h5py.File(labels.path) as file:
            matrix = sparse_dataset(file["X"])

            def read(start: int, stop: int) -> sp.csr_matrix:
                part = rows[start:stop]
                runs = np.split(part, np.flatnonzero(np.diff(part) != 1) + 1)
                with reading(labels.path, "h5ad", AGAIN):
                    return sp.vstack([matrix[int(run[0]) : int(run[-1]) + 1] for run in runs], format="csr")

            yield read

    return Part(str(labels.path), obs, labels.genes, opened)


def from_store(cells: CellStore, rows: np.ndarray, obs: pd.DataFrame) -> Part:
    """The ``rows`` [n] of a cell store, which are called ``obs`` [n rows]."""
    read = lambda start, stop: cells.sparse(rows[start:stop])  # noqa: E731 - two words of a function
    return Part(str(cells.folder), obs, pd.Index(cells.genes), lambda: nullcontext(read))


def stored_values(path: Path, rows: np.ndarray) -> int:
    """Stored values of the ``rows`` [n] of a prediction file, of all genes."""
    with reading(path, "h5ad", AGAIN), h5py.File(path) as file:
        return int(np.diff(file["X/indptr"][:])[rows].sum())
