"""A synthetic screen for benchmarks of the loader: stores and a split, made by the program's own writers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.split import make_splits
from vcc_fm.recipe import DataConfig, SourceConfig, SplitConfig
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore, write_embeddings
from vcc_fm.store.prepare import write_cell_store

CONTROL = "non-targeting"
CONTEXTS, BATCHES = 4, 3
CONTROL_SHARE = 0.2
CELLS_PER_PERTURBATION = 1000
CELL_WIDTH, PROTEIN_WIDTH = 2058, 5120  # of SE-600M and of ESM2-15B


@dataclass(frozen=True)
class Size:
    """How much there is: cells, genes of the axis, non-zero genes of a cell."""

    cells: int
    genes: int
    nonzeros: int


def write_screen(folder: Path, size: Size) -> Dataset:
    """Write h5ad, cell store and embedding stores into ``folder``; the opened stores with a few-shot split.

    Genes and counts of a cell are random: how fast a cell is read depends on how many there are, not on which.
    """
    rng = np.random.default_rng(0)
    config = _write_h5ad(folder / "screen.h5ad", size, rng)
    store_folder = folder / "cells"
    store_folder.mkdir()
    write_cell_store(store_folder, DataConfig(sources=[config]), [config], 0, "c" * 64, True, lambda *_: None)
    cells = CellStore(store_folder)
    targets = [label for label in cells.perturbations if label != CONTROL]
    rule = SplitConfig(hold_out="few-shot", contexts=cells.contexts[-1:], test=0.5)
    return Dataset(
        cells,
        _embed(folder / "cell-embeddings", "barcode", cells.barcodes, CELL_WIDTH, rng),
        _embed(folder / "proteins", "symbol", np.array(targets), PROTEIN_WIDTH, rng),
        make_splits(rule, cells.group_cells, CONTROL, "+", 0)[0],
        "+",
    )


def _write_h5ad(path: Path, size: Size, rng: np.random.Generator) -> SourceConfig:
    # A random start and a step without a common factor with G visit distinct genes: no redraw, no sort of all genes.
    steps = np.arange(1, size.genes)
    step = rng.choice(steps[np.gcd(steps, size.genes) == 1], size=(size.cells, 1))
    start = rng.integers(size.genes, size=(size.cells, 1))
    indices = np.sort((start + step * np.arange(size.nonzeros)) % size.genes, axis=1).astype(np.int32)
    counts = 1 + rng.poisson(1.0, indices.size).astype(np.float32)
    indptr = np.arange(size.cells + 1) * size.nonzeros
    matrix = sp.csr_matrix((counts, indices.ravel(), indptr), (size.cells, size.genes))
    genes = [f"GENE{number}" for number in range(size.genes)]
    targets = np.array(genes)[rng.integers(max(4, size.cells // CELLS_PER_PERTURBATION), size=size.cells)]
    context = rng.integers(CONTEXTS, size=size.cells)
    lane = rng.integers(BATCHES, size=size.cells)
    obs = pd.DataFrame(
        {
            "context": [f"context{c}" for c in context],
            "batch": [f"context{c}-lane{b}" for c, b in zip(context, lane, strict=True)],
            "perturbation": np.where(rng.random(size.cells) < CONTROL_SHARE, CONTROL, targets),
        },
        index=[f"cell{number}" for number in range(size.cells)],
    )
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    return SourceConfig(
        name="synthetic",
        path=str(path),
        values="counts",
        perturbation_column="perturbation",
        control=CONTROL,
        context_column="context",
        batch_column="batch",
    )


def _embed(folder: Path, key: str, keys: np.ndarray, width: int, rng: np.random.Generator) -> EmbeddingStore:
    folder.mkdir()
    meta = {"encoder": "random", "parameters": {"width": width}, "licence": "", "citation": ""}
    vectors = rng.standard_normal((len(keys), width), np.float32)
    write_embeddings(folder, key, [(keys, vectors)], width, "e" * 64, meta)
    return EmbeddingStore(folder)
