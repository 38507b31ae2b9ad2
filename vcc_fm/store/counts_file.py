"""An h5ad of integer counts, written a piece at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset, write_elem


class CountsFile:
    """Appends cells to an h5ad (CSR, int32) that appears under its name when it is whole.

    Memory holds one piece of counts and the labels of all cells.
    """

    def __init__(self, path: Path, genes: list[str], uns: dict[str, Any]):
        """Open ``path`` for writing on the gene axis ``genes``; ``uns`` says what the cells are."""
        self.path, self._genes, self._uns = path, genes, uns
        self._partial = path.with_name(path.name + ".partial")
        self._partial.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._partial, "w")
        self._labels: list[pd.DataFrame] = []

    def append(self, counts: sp.csr_matrix, labels: pd.DataFrame) -> None:
        """Add cells: counts [n, G] integers, ``labels`` [n] rows of obs columns."""
        piece = sp.csr_matrix((counts.data.astype(np.int32), counts.indices, counts.indptr), shape=counts.shape)
        if self._labels:
            sparse_dataset(self._file["X"]).append(piece)
        else:
            # Offsets of 64 bits from the first piece on: a large file has more values than 32 bits can address.
            piece.indptr = piece.indptr.astype(np.int64)
            write_elem(self._file, "X", piece, dataset_kwargs={"compression": "gzip", "compression_opts": 1})
        self._labels.append(labels)

    def __enter__(self) -> CountsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.close()
            self._partial.unlink()
            return
        try:
            self._finish()
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        self._partial.replace(self.path)

    def _finish(self) -> None:
        """Write what belongs to all cells together and close the file."""
        obs = pd.concat(self._labels, ignore_index=True)
        obs.index = obs.index.astype(str)
        for column in obs.columns:
            obs[column] = obs[column].astype("category")
        write_elem(self._file, "obs", obs)
        write_elem(self._file, "var", pd.DataFrame(index=pd.Index(self._genes, name="symbol")))
        write_elem(self._file, "uns", self._uns)
        for name in ("obsm", "varm", "obsp", "varp", "layers"):
            write_elem(self._file, name, {})
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._file.close()


def join_counts_files(parts: list[Path], path: Path) -> None:
    """Write the cells of ``parts``, in their order, into one file; all have the same genes and ``uns``."""
    with h5py.File(parts[0]) as first:
        genes, uns = read_elem(first["var"]).index.tolist(), read_elem(first["uns"])
    with CountsFile(path, genes, uns) as whole:
        for part in parts:
            with h5py.File(part) as file:
                whole.append(read_elem(file["X"]), read_elem(file["obs"]))
