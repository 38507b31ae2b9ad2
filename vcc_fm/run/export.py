"""Hand embeddings to other programs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata.io import write_elem

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import whole_file
from vcc_fm.ground.paths import expand
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.store.embeddings import EmbeddingStore

ROWS = 8192


def export_obsm(
    recipe: Recipe, configs: list[SourceConfig], name: str | None, file: Path, key: str | None, progress: ProgressLines
) -> dict[str, Any]:
    """Copy the h5ad file of a source, with the vectors of its cells in ``obsm``.

    Further vectors follow the cell embedding in the same matrix, as ``state emb transform`` writes SE's 10 data set
    values. Cells that the recipe left out, or that have no vector, get NaN. Encoder, licence and citation go to
    ``uns``.

    Args:
        recipe: its cells are embedded.
        configs: its sources.
        name: of the source; None where there is only one.
        file: the copy; it appears when it is whole.
        key: of ``obsm`` and ``uns``; None is what the encoder names, such as ``X_state`` or ``X_pca``.
        progress: told after every chunk of cells.

    Returns:
        File, number of cells, width, and number of cells without a vector.

    Raises:
        UserError: the cells are not embedded, there is no such source, or its file is no h5ad or has that key already.
    """
    config = _source(configs, name)
    path = expand(config.path)
    if path.exists() and not h5py.is_hdf5(path):
        raise UserError(
            f"{path}: is a zarr store, and the copy is an h5ad; write it as one first (anndata.read_zarr, write_h5ad)"
        )
    layout = Layout(recipe)
    store = EmbeddingStore(layout.cell_embeddings.require())
    columns = ["embedding", *store.meta["further"]]
    key = key or layout.cell_encoder.obsm
    row_of = {str(barcode): row for row, barcode in enumerate(store.keys)}
    with AnnDataSource(config) as source:
        prefix = f"{source.name}:" if len(configs) > 1 else ""
        # A cell may have been dropped after the source was read: for want of others with its perturbation.
        barcodes = source.labels.barcodes(0, len(source))
        rows = np.array([row_of.get(prefix + barcode, -1) for barcode in barcodes], np.int64)
        places = source.labels.rows
    with whole_file(file) as partial:
        shutil.copyfile(path, partial)
        with h5py.File(partial, "r+") as copy:
            rows_of_file = np.full(len(copy["obs"][copy["obs"].attrs["_index"]]), -1, np.int64)
            rows_of_file[places] = rows
            if key in copy.get("obsm", {}):
                raise UserError(f"{path}: has obsm/{key} already; choose another --key")
            shape, missing = _write(copy, key, store, columns, rows_of_file, progress)
    return {"file": str(file), "key": key, "without_vector": missing} | shape


def _source(configs: list[SourceConfig], name: str | None) -> SourceConfig:
    known = {config.name: config for config in configs}
    if name is None and len(configs) == 1:
        return configs[0]
    if name not in known:
        raise UserError(f"--source: choose one of {', '.join(known)}" + (f", found {name}" if name else ""))
    return known[name]


def _write(
    copy: h5py.File, key: str, store: EmbeddingStore, columns: list[str], rows: np.ndarray, progress: ProgressLines
) -> tuple[dict[str, int], int]:
    """Write the matrix and where it comes from; returns its shape, and how many cells have no vector."""
    if "obsm" not in copy:
        write_elem(copy, "obsm", {})
    width = np.hstack([store.take(np.empty(0, np.int64), column) for column in columns]).shape[1]
    matrix = copy["obsm"].create_dataset(key, (len(rows), width), np.float32)
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    missing = 0
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        block = np.hstack([store.take(np.maximum(part, 0), column) for column in columns])
        block[part < 0] = np.nan
        matrix[start : start + len(part)] = block
        missing += int(np.isnan(block[:, 0]).sum())
        progress(start + len(part), len(rows))
    if "uns" not in copy:
        write_elem(copy, "uns", {})
    told = {name: store.meta[name] for name in ("encoder", "licence", "citation", "fingerprint")}
    write_elem(copy["uns"], key, told)
    return {"cells": len(rows), "width": width}, missing
