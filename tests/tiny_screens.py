"""Small screens with known counts, and cell stores made of them, for tests of all that reads cells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.splits.split import Role, Split
from vcc_fm.store import prepare
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore, write_embeddings
from vcc_fm.store.prepare import write_cell_store

CONTROL = "control"
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Screen:
    """Counts [n, G] and obs [n] with columns context, batch, perturbation; the index holds the barcodes."""

    counts: np.ndarray
    obs: pd.DataFrame
    genes: list[str]
    control: str = CONTROL
    separator: str = "+"


def screen(
    counts: np.ndarray, context: Any, batch: Any, perturbation: Any, genes: list[str] | None = None, **keys: Any
) -> Screen:
    """A screen from its columns; genes are named a, b, c, … where they have no names."""
    barcodes = [f"cell{i}" for i in range(len(counts))]
    obs = pd.DataFrame({"context": context, "batch": batch, "perturbation": perturbation}, index=barcodes)
    return Screen(np.asarray(counts), obs, genes or [chr(97 + i) for i in range(counts.shape[1])], **keys)


def papalexi(real_data: Path) -> Screen:
    """Papalexi 2021, assigned cells: 25 perturbations and the control in three replicates, which are the contexts."""
    cells = anndata.read_h5ad(real_data / "perturbation/papalexi2021_thp1_crisprko_20729x299_counts.h5ad")
    cells = cells[cells.obs["assigned"].astype(bool)]
    label = cells.obs["target_gene"].astype(str).replace("non-targeting", CONTROL).to_numpy()
    replicate = cells.obs["bio_rep"].astype(str).to_numpy()
    return screen(cells.X.toarray(), replicate, "1", label, list(cells.var_names))


def write_screen(folder: Path, name: str, one: Screen) -> SourceConfig:
    """Write a screen as h5ad; its entry in a recipe."""
    path = folder / f"{name}.h5ad"
    counts = sp.csr_matrix(one.counts.astype(np.float32))
    anndata.AnnData(counts, obs=one.obs, var=pd.DataFrame(index=one.genes)).write_h5ad(path)
    return SourceConfig(
        name=name,
        path=str(path),
        values="counts",
        perturbation_column="perturbation",
        control=one.control,
        separator=one.separator,
        context_column="context",
        batch_column="batch",
    )


def write_store(
    folder: Path, configs: list[SourceConfig], seed: int = 0, chunk_values: int = 10**7, **data: Any
) -> CellStore:
    """Write the cell store of ``configs`` as ``folder`` and open it.

    ``chunk_values`` stored values are read at a time; further keywords are those of ``data``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = DataConfig(sources=configs, **data)
    with mock.patch.object(prepare, "READING_BYTES", max(1, (config.memory_mb << 20) // chunk_values)):
        write_cell_store(folder, config, configs, seed, "f" * 64, False, process_state(), QUIET)
    return CellStore(folder)


def store_of(folder: Path, *screens: Screen, seed: int = 0, **data: Any) -> CellStore:
    """The cell store of ``screens``, which are sources s0, s1, …."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = [write_screen(folder, f"s{number}", one) for number, one in enumerate(screens)]
    return write_store(folder / "store", configs, seed, **data)


def draw_counts(
    rng: np.random.Generator, share: np.ndarray, depth: np.ndarray, alpha: np.ndarray | float
) -> np.ndarray:
    """Negative-binomial counts [n, G] of mean ``depth x share`` ([n, G] or [G]) and dispersion ``alpha``."""
    mean = depth[:, None] * share
    return rng.poisson(rng.gamma(np.broadcast_to(1 / alpha, mean.shape)) * alpha * mean)


def embedded(folder: Path, keys: Any, vectors: np.ndarray, key: str = "barcode") -> EmbeddingStore:
    """An embedding store of given vectors."""
    folder.mkdir(parents=True)
    meta = {"encoder": "none", "parameters": {}, "licence": "", "citation": ""}
    write_embeddings(folder, key, [(np.asarray(keys), vectors)], vectors.shape[1], "e" * 64, meta)
    return EmbeddingStore(folder)


def dataset_of(cells: CellStore, roles: dict[tuple[str, str], Role] | None = None, proteins: str = "ab") -> Dataset:
    """A dataset of ``cells``: cell i has the vector [i, -i], protein i the vector [i, 1, 1]; every group trains.

    ``roles`` changes the roles of the groups that it names.
    """
    groups = {group: n for group, n in cells.group_cells.items() if group[1] != cells.control}
    split = Split("perturbations", 0, 1, 0, dict.fromkeys(groups, "train") | (roles or {}), groups, [])
    row, gene = np.arange(len(cells)), np.arange(len(proteins))
    return Dataset(
        cells,
        embedded(cells.folder.with_name("cell-vectors"), cells.barcodes, np.stack([row, -row], 1)),
        embedded(cells.folder.with_name("proteins"), list(proteins), np.stack([gene, gene**0, gene**0], 1), "symbol"),
        split,
        "+",
    )
