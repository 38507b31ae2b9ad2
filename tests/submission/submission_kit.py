"""A challenge in small: predictions, lists, and the cells of an archive."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from vcc_fm.store.cells import CellStore
from vcc_fm.store.counts_file import CountsFile
from vcc_fm.submission.challenge import Inputs

TARGETS = ["T1", "T2", "T3", "T4", "T5"]


@dataclass
class Kit:
    """Predictions and a challenge's lists, and what of them can be changed before they are written."""

    folder: Path
    cells: pd.DataFrame
    counts: np.ndarray
    genes: list[str]
    axis: list[str]
    targets: str
    manifest: dict[str, Any] | None
    header: str = "gene_name\n"
    store: Callable[[], CellStore] | None = None

    def changed(self, **fields: Any) -> Kit:
        return replace(self, **fields)

    def write(self, contexts: list[str] | None = None) -> Inputs:
        """Write all files; the predictions as the stage `predict` does."""
        with CountsFile(self.folder / "predictions.h5ad", self.genes, {}) as file:
            file.append(sp.csr_matrix(self.counts), self.cells)
        (self.folder / "gene_names.csv").write_text(self.header + "".join(f"{gene}\n" for gene in self.axis))
        (self.folder / "pert_counts.csv").write_text(self.targets)
        if self.manifest is not None:
            (self.folder / "manifest.json").write_text(json.dumps(self.manifest))
        lists = [self.folder / name for name in ("predictions.h5ad", "gene_names.csv", "pert_counts.csv")]
        return Inputs(lists[0], self.store or _no_store, *lists[1:], contexts)

    def expected(self) -> pd.DataFrame:
        """Counts by gene, cells in the order of the predictions."""
        return pd.DataFrame(self.counts, columns=self.genes)[self.axis]


def _no_store() -> CellStore:
    raise AssertionError("this challenge takes no control cells")


def random_counts(cells: int, genes: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(1.5, (cells, genes)).astype(np.int32)


def cells_in(archive: Path, folder: Path) -> anndata.AnnData:
    """The cells of an archive, unpacked by other programs than ours."""
    import tarfile

    zstandard = pytest.importorskip("zstandard", reason="needs zstandard: pip install -e '.[submit]'")
    with tarfile.open(archive) as tar, (folder / "unpacked.h5ad").open("wb") as file:
        zstandard.ZstdDecompressor().copy_stream(tar.extractfile("pred.h5ad.zst"), file)
    return anndata.read_h5ad(folder / "unpacked.h5ad")
