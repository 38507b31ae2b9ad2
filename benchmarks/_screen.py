"""A synthetic screen for the loader's benchmark: an h5ad, and the stores that the program's own writers make of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.recipe.decoder import DecoderSettings
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.splits.hold_out import make_splits
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore, write_embeddings
from vcc_fm.store.prepare import write_cell_store

CONTROL = "non-targeting"
CONTEXTS, BATCHES = 4, 3
CONTROL_SHARE = 0.2
CELLS_PER_PERTURBATION = 1000
CELL_WIDTH, PROTEIN_WIDTH = 2058, 5120  # of SE-600M and of ESM2-15B
DENSE_ROWS, CHUNK = 8192, 1024


@dataclass(frozen=True)
class Size:
    """How much there is: cells, genes of the axis, non-zero genes of a cell."""

    cells: int
    genes: int
    nonzeros: int


@dataclass(frozen=True)
class Screen:
    """The same cells twice: as stores with a few-shot split, and as an h5ad in the order of its groups.

    The h5ad holds counts as CSR X, the cells' embeddings as ``obsm["X_state"]`` and labels as categorical columns
    ``context``, ``batch`` and ``perturbation``. The recipe trains the demo's decoder on the stores.
    """

    data: Dataset
    h5ad: Path
    recipe: Recipe


def write_screen(folder: Path, size: Size, train: TrainConfig) -> Screen:
    """Write h5ad, cell store and embedding stores into ``folder``, and open the stores.

    Genes and counts of a cell are random: how fast a cell is read depends on how many there are, not on which.
    """
    rng = np.random.default_rng(0)
    path = folder / "screen.h5ad"
    vectors = _write_h5ad(path, size, rng)
    source = write_store(path, folder / "cells", Console(quiet=True))
    cells = CellStore(folder / "cells")
    targets = np.array(cells.labels)
    rule = SplitConfig(hold_out="few-shot", contexts=cells.contexts[-1:], test=0.5)
    data = Dataset(
        cells,
        _embed(folder / "cell-embeddings", "barcode", cells.barcodes, vectors.loc[cells.barcodes].to_numpy()),
        _embed(folder / "proteins", "symbol", targets, rng.standard_normal((len(targets), PROTEIN_WIDTH), np.float32)),
        make_splits(rule, cells.group_cells, CONTROL, "+", 0)[0],
        "+",
    )
    recipe = Recipe(
        name="loader", data=DataConfig(sources=[source]), split=rule, decoder=DecoderSettings(), train=train
    )
    return Screen(data, path, recipe)


def write_store(path: Path, store: Path, console: Console) -> SourceConfig:
    """Write the cell store of a synthetic h5ad with obs ``context``, ``batch`` and ``perturbation``; its source."""
    source = SourceConfig(
        name="synthetic",
        path=str(path),
        values="counts",
        perturbation_column="perturbation",
        control=CONTROL,
        context_column="context",
        batch_column="batch",
    )
    write_cell_store(store, DataConfig(sources=[source]), [source], 0, "c" * 64, True, process_state(), console)
    return source


def distinct_genes(rng: np.random.Generator, cells: int, genes: int, number: int) -> np.ndarray:
    """Different genes of each cell, [cells, number] int32, rising."""
    # A random start and a step without a common factor with G visit distinct genes: no redraw, no sort of all genes.
    steps = np.arange(1, genes)
    step = rng.choice(steps[np.gcd(steps, genes) == 1], size=(cells, 1))
    start = rng.integers(genes, size=(cells, 1))
    return np.sort(((start + step * np.arange(number)) % genes).astype(np.int32), axis=1)


def write_dense(path: Path, cells: CellStore) -> list[np.ndarray]:
    """Write the dense counts of some cells as Arrow; every row of the mapped file, [G] float32."""
    genes = len(cells.genes)
    schema = pa.schema({"counts": pa.list_(pa.float32(), genes)})
    rows = np.arange(min(len(cells), DENSE_ROWS))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in np.array_split(rows, -(-len(rows) // CHUNK)):
            flat = pa.array(cells.dense(part).ravel())
            writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, genes)], schema=schema))
    batches = list(pa.ipc.open_stream(pa.memory_map(str(path))))
    return [row for batch in batches for row in batch.column(0).values.to_numpy().reshape(-1, genes)]


def _write_h5ad(path: Path, size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """Write the cells; their embeddings, a row a barcode."""
    indices = distinct_genes(rng, size.cells, size.genes, size.nonzeros)
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
        dtype="category",
    )
    # cell-load's consecutive mode asks for it, and others read it no slower.
    obs = obs.sort_values(["context", "perturbation"], ignore_index=True)
    obs.index = pd.Index([f"cell{number}" for number in range(size.cells)])
    vectors = rng.standard_normal((size.cells, CELL_WIDTH), np.float32)
    var = pd.DataFrame(index=genes)
    anndata.AnnData(matrix, obs=obs, var=var, obsm={"X_state": vectors}).write_h5ad(path)
    return pd.DataFrame(vectors, obs.index)


def _embed(folder: Path, key: str, keys: np.ndarray, vectors: np.ndarray) -> EmbeddingStore:
    folder.mkdir()
    width = vectors.shape[1]
    meta = {"encoder": "random", "parameters": {"width": width}, "licence": "", "citation": ""}
    write_embeddings(folder, key, [(keys, vectors)], width, "e" * 64, meta)
    return EmbeddingStore(folder)
