"""SE with random weights, its synthetic cells, and arc-state as a black box, for `se.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from _screen import CONTROL, write_store
from rich.console import Console
from torch import Tensor

from vcc_fm.encoders.cells.state_se_encoder import SeSettings, StateSeEncoder
from vcc_fm.encoders.cells.state_se_geometry import TIED, SeGeometry
from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint

# The parity tests have random checkpoints, also in arc-state's own kind: one description of them is enough.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "encoders"))
from state_se_checkpoints import arc_config, random_names, random_tensors, tiny, write_arc_checkpoint

SE_600M = SeGeometry(
    width=2048, hidden=2048, layers=16, heads=16, output=2048, token_dim=5120, genes=19_790, datasets=14_420
)
HAS_ARC = importlib.util.find_spec("state") is not None
# What the network needs none of: heads of training, and the gene decoder.
UNUSED = ("binary_decoder.", "dataset_encoder.")


def counts(cells: int, genes: int, expressed: int, seed: int = 0) -> sp.csr_matrix:
    """Poisson counts [cells, genes] float32, about ``expressed`` genes of a cell not 0; many values are ties."""
    rng = np.random.default_rng(seed)
    rate = rng.permutation(np.exp(rng.normal(0, 2, genes)))
    low, high = 1e-6, 1e6
    while high / low > 1.01:
        middle = np.sqrt(low * high)
        low, high = (middle, high) if (1 - np.exp(-middle * rate)).sum() < expressed else (low, middle)
    blocks = [rng.poisson(low * rate, (min(64, cells - at), genes)) for at in range(0, cells, 64)]
    return sp.vstack([sp.csr_matrix(block.astype(np.float32)) for block in blocks]).tocsr()


def write_cells(folder: Path, matrix: sp.csr_matrix) -> None:
    """A cell store of ``matrix``, whose genes are the first of the vocabulary of a geometry with so many genes."""
    folder.mkdir()
    cells, genes = matrix.shape
    names = random_names(tiny(genes))
    target = np.array([CONTROL, names[0]])[np.arange(cells) % 2]
    obs = pd.DataFrame(
        {"context": "c", "batch": "b", "perturbation": target}, index=[f"cell{i}" for i in range(cells)]
    )
    path = folder / "cells.h5ad"
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(path)
    write_store(path, folder / "cells", Console(quiet=True))
    path.unlink()


def checkpoint(geometry: SeGeometry, tensors: dict[str, Tensor]) -> SeCheckpoint:
    """Random weights as the reader would give them."""
    needed = {key: tensor for key, tensor in tensors.items() if key not in TIED and not key.startswith(UNUSED)}
    return SeCheckpoint(geometry, random_names(geometry), needed, "random", None, ())


def encoder(geometry: SeGeometry, tensors: dict[str, Tensor], genes: int, pad: int, **options: Any) -> StateSeEncoder:
    """Ours in mode ``compat``, for cells with the first ``genes`` of the vocabulary."""
    columns = random_names(geometry)[:genes]
    return StateSeEncoder(checkpoint(geometry, tensors), columns, SeSettings("compat", pad), **options)


class Arc:
    """arc-state with weights of a geometry, and query genes as many as its own defaults have.

    Args:
        folder: for its files.
        geometry: of the weights.
        pad: length of a sequence.
    """

    def __init__(self, folder: Path, geometry: SeGeometry, pad: int):
        self.folder, self.geometry, self.pad = folder, geometry, pad
        self.names = random_names(geometry)

    def config(self) -> Any:
        """Its configuration; the tests' has few query genes, which would spare it work that it always does."""
        from importlib.resources import files

        from omegaconf import OmegaConf

        defaults = OmegaConf.load(str(files("state") / "configs" / "state-defaults.yaml"))
        queries = {key: defaults.dataset[key] for key in ("P", "N", "S")}
        return OmegaConf.merge(arc_config(self.geometry, self.pad), {"dataset": queries})

    def load(self) -> Any:
        """Its ``Inference``, with the weights of :func:`random_tensors`."""
        from omegaconf import OmegaConf
        from state.emb.inference import Inference

        path = self.folder / "arc.ckpt"
        write_arc_checkpoint(path, random_tensors(self.geometry), self.names, self.geometry, self.pad)
        content = torch.load(path, mmap=True, weights_only=True)
        changed = self.folder / f"arc-{self.pad}.ckpt"
        torch.save(content | {"cfg_yaml": OmegaConf.to_yaml(self.config())}, changed)
        del content
        path.unlink()
        inference = Inference()
        with silent():
            inference.load_model(str(changed))
        changed.unlink()
        return inference

    def write(self, matrix: sp.csr_matrix) -> Path:
        """An h5ad with the cells of ``matrix``."""
        path = self.folder / f"{matrix.shape[0]}.h5ad"
        self.cells(matrix).write_h5ad(path)
        return path

    def cells(self, matrix: sp.csr_matrix) -> anndata.AnnData:
        """The cells of ``matrix``, whose columns are the first genes of the vocabulary."""
        return anndata.AnnData(matrix, var=pd.DataFrame(index=self.names[: matrix.shape[1]]))

    def tokens(self, matrix: sp.csr_matrix) -> tuple[np.ndarray, float]:
        """Values [n, pad] of its loader, and cells per second from the first batch's arrival to the last's."""
        from state.emb.data import create_dataloader

        vectors = random_tensors(self.geometry)["pe_embedding.weight"]
        with silent():
            loader = create_dataloader(
                self.config(),
                adata=self.cells(matrix),
                adata_name="cells",
                protein_embeds=dict(zip(self.names, vectors, strict=True)),
                precision=torch.float32,
                gene_column=None,
            )
            found, arrived = [], []
            for batch in loader:
                found.append(batch[7].numpy().copy())
                arrived.append(time.perf_counter())
        later = sum(len(values) for values in found[1:])
        return np.concatenate(found), later / (arrived[-1] - arrived[0])


def arc_rate(inference: Any, few: Path, many: Path, batch: int) -> float:
    """Its cells per second, of those of ``many`` that ``few`` lacks: nothing is started for them any more."""
    seconds, cells = [], []
    for path in (few, many):
        start = time.perf_counter()
        with silent():
            cells.append(len(inference.encode_adata(str(path), None, batch_size=batch)))
        seconds.append(time.perf_counter() - start)
    return (cells[1] - cells[0]) / (seconds[1] - seconds[0])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without arc-state's progress and messages."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def operations(geometry: SeGeometry, tokens: int) -> float:
    """Operations for a cell of so many tokens, CLS and data set included; the last layer is computed for these two."""
    width, hidden = geometry.width, geometry.hidden

    def layer(kept: int) -> float:
        linear = 2 * kept * (2 * width**2 + 2 * width * hidden) + 4 * tokens * width**2
        return linear + 4 * kept * tokens * width

    return (geometry.layers - 1) * layer(tokens) + layer(2)


@contextlib.contextmanager
def own_memory() -> Iterator[list[float]]:
    """Into the list goes this process's largest memory, MB, without mapped files, which the system may drop."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], *(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed at the end."""
    return tempfile.TemporaryDirectory(prefix="se-")
