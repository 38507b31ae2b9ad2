"""Other programs that read cells for training, for `loader.py`; each as its own documentation has it used.

All run in this process and thread, and hand over what a training step needs, dense: counts of perturbed cells and, in
float32, an embedding for each. The checks compare what they deliver with our stores, cell by cell.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import datasets
import numpy as np
import pandas as pd
from _screen import CONTROL, Screen

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import SetSampler

SETS, SET_SIZE = 16, 32
# Of scDataset's guide for AnnData: blocks of 16 neighbours, batches of 64, 16 of which are fetched at a time.
BLOCK, BATCH, FETCH = 16, 64, 16


@dataclass(frozen=True)
class Delivery:
    """A batch: dense counts [n, G] of cells, embeddings [n, E], and the barcodes of the cells that have them."""

    counts: np.ndarray
    vectors: np.ndarray
    counts_of: np.ndarray
    vectors_of: np.ndarray


@dataclass(frozen=True)
class Peer:
    """Another program.

    Attributes:
        name: in the table.
        package: its name on PyPI.
        module: what must be importable.
        batches: batches of a round: as many as it reads at a time.
        read: endless batches of a screen; it may write into the folder.
    """

    name: str
    package: str
    module: str
    batches: int
    read: Callable[[Screen, Path], Iterator[Delivery]]

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module) is not None


def check(delivery: Delivery, data: Dataset) -> None:
    """Assert that counts and embeddings are those of our stores."""
    position = pd.Index(data.cells.barcodes)
    assert np.array_equal(delivery.counts, data.cells.dense(position.get_indexer(delivery.counts_of)))
    assert np.array_equal(delivery.vectors, data.cell_vectors.take(position.get_indexer(delivery.vectors_of)))


def _cell_load(screen: Screen, folder: Path, consecutive: bool) -> Iterator[Delivery]:
    """cell-load's training batches: control embeddings and perturbed counts are the least that it can be asked for."""
    logging.getLogger("cell_load").setLevel(logging.ERROR)
    from cell_load.data_modules import PerturbationDataModule
    from cell_load.dataset import PerturbationDataset

    table = folder / "cell-load.toml"
    table.write_text(f'[datasets]\nsynthetic = "{screen.h5ad}"\n\n[training]\nsynthetic = "train"\n')
    module = PerturbationDataModule(
        str(table),
        batch_size=SETS,
        num_workers=0,
        pert_col="perturbation",
        batch_col="batch",
        cell_type_key="context",
        control_pert=CONTROL,
        embed_key="X_state",
        output_space="all",
        is_log1p=False,
        should_yield_control_cells=False,
        cell_sentence_len=SET_SIZE,
        barcode=True,
        use_consecutive_loading=consecutive,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        module.setup()
    loader = module.train_dataloader()
    # Else a second thread copies each batch, where there is a GPU.
    loader.pin_memory = False
    while True:
        for batch in loader:
            yield Delivery(
                batch["pert_cell_counts"].numpy(),
                batch["ctrl_cell_emb"].numpy(),
                np.array(batch["pert_cell_barcode"]),
                np.array(batch["ctrl_cell_barcode"]),
            )
        # It keeps the last 10,000 cells, all of a screen as small as this one and few of a real one.
        PerturbationDataset._fetch_gene_expression_raw.cache_clear()
        PerturbationDataset.fetch_obsm_expression.cache_clear()


def _scdataset(screen: Screen, folder: Path) -> Iterator[Delivery]:
    """The h5ad on disk by the hooks of scDataset.

    A fetch stays sparse and a batch is made dense, which was the fastest of four ways tried. A cell comes with its own
    embedding: drawing controls is not scDataset's job, and rows in the order of the file are read no slower.
    """
    from scdataset import BlockShuffling, scDataset

    cells = anndata.read_h5ad(screen.h5ad, backed="r")
    vectors, barcodes = cells.obsm["X_state"], cells.obs_names.to_numpy()

    def fetch(_: Any, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        return cells.X[rows], rows

    def batch(fetched: tuple[Any, np.ndarray], chosen: np.ndarray) -> Delivery:
        counts, rows = fetched[0][chosen].toarray(), fetched[1][chosen]
        return Delivery(counts, vectors[rows], barcodes[rows], barcodes[rows])

    measured = np.flatnonzero(cells.obs["perturbation"] != CONTROL)
    blocks = BlockShuffling(BLOCK, indices=measured)
    loader = scDataset(cells, blocks, BATCH, FETCH, fetch_callback=fetch, batch_callback=batch, seed=0)
    while True:
        yield from loader


def _datasets(screen: Screen, folder: Path) -> Iterator[Delivery]:
    """Rows of our own folders, the measured cells of a set and their controls, read and made dense by numpy."""
    data = screen.data
    cells = datasets.load_from_disk(str(data.cells.folder)).with_format("numpy", columns=["genes", "counts"])
    vectors = datasets.load_from_disk(str(data.cell_vectors.folder)).with_format("numpy", columns=["embedding"])
    sampler = SetSampler(data, data.split.groups("train"), SET_SIZE, 0)
    for step in itertools.count():
        sets = sampler.step(step, SETS, slice(None))
        measured = np.concatenate([one.measured_rows for one in sets])
        controls = np.concatenate([one.control_rows for one in sets])
        dense = np.zeros((len(measured), len(data.cells.genes)), np.float32)
        lists = cells[measured]
        for cell, genes, counts in zip(dense, lists["genes"], lists["counts"], strict=True):
            cell[genes] = counts
        barcodes = data.cells.barcodes
        yield Delivery(dense, vectors[controls]["embedding"], barcodes[measured], barcodes[controls])


CELL_LOAD = Peer("cell-load", "cell-load", "cell_load", 1, lambda *where: _cell_load(*where, consecutive=False))
CONSECUTIVE = Peer(
    "cell-load, consecutive", "cell-load", "cell_load", 1, lambda *where: _cell_load(*where, consecutive=True)
)
SCDATASET = Peer("scDataset", "scdataset", "scdataset", FETCH, _scdataset)
DATASETS = Peer("datasets rows, densified by numpy", "datasets", "datasets", 1, _datasets)
PEERS = (CELL_LOAD, CONSECUTIVE, SCDATASET, DATASETS)
