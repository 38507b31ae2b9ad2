"""From checked sources to a cell store: align the genes, order the cells, write them in one pass.

Counts pass through a spill file on disk in the order of the sources and are gathered from it in group order, so that
memory holds the labels of all cells but the counts of one chunk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from vcc_fm.errors import UserError
from vcc_fm.recipe import DataConfig, SourceConfig
from vcc_fm.sources.genes import axis_columns, gene_axis, measured_mask
from vcc_fm.sources.h5ad import H5adSource
from vcc_fm.store.arrow import DATA_FILE, write_dataset
from vcc_fm.store.cells import ROWS_PER_BATCH, SCHEMA, _gather, cell_features
from vcc_fm.store.folder import sha256_file, write_json


def write_cell_store(
    folder: Path,
    data: DataConfig,
    configs: list[SourceConfig],
    seed: int,
    fingerprint: str,
    simulated: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Write the cell store of ``configs`` into ``folder``, which exists and is the caller's to rename.

    Args:
        folder: where the dataset and ``store.json`` go.
        data: gene axis rule, minimum cells, chunk size.
        configs: the sources, simulated ones included.
        seed: of the order inside groups.
        fingerprint: of everything the store depends on.
        simulated: whether the cells are simulated; kept in ``store.json``.
        progress: called with (cells done, cells in all).

    Raises:
        UserError: a source is refused, sources disagree on the control label, or no cell is left.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(H5adSource(config)) for config in configs]
        controls = sorted({config.control for config in configs})
        axis = gene_axis([source.genes for source in sources], data.genes)
        cells = _cell_table(sources, configs)
        spill_folder = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        spill = _Spill(Path(spill_folder), len(cells))
        for number, source in enumerate(sources):
            columns = axis_columns(source.genes, axis)
            rows = np.flatnonzero(cells["source"].to_numpy() == number)
            for positions, counts in source.counts(data.chunk_cells):
                spill.add(rows[positions], _on_axis(counts, columns, len(axis)))
                if len(positions):
                    progress(int(rows[positions[-1]]) + 1, len(cells))
        spill.close()
        # Cells whose counts could not be proved were never added, and do not count towards a perturbation's cells.
        cells, few = _without_few(cells[spill.added], configs, data.minimum_cells)
        dropped = [source.dropped | left_out for source, left_out in zip(sources, few, strict=True)]
        labels = {name: sorted(cells[name].unique()) for name in ("context", "batch", "perturbation")}
        for name, known in labels.items():
            cells[f"{name}_code"] = pd.Index(known).get_indexer(cells[name]).astype(np.int32)
        order = _group_order(cells, seed)
        features = cell_features(len(axis), spill.largest)
        size = write_dataset(folder, features, _batches(cells, order, spill, features), fingerprint, "", "")
        meta = {
            "schema": SCHEMA,
            "fingerprint": fingerprint,
            "bytes": size,
            "sha256": sha256_file(folder / DATA_FILE),
            "cells": len(cells),
            "simulated": simulated,
            "order_seed": seed,
            "genes": axis.tolist(),
            "control": configs[0].control,
            **{f"{name}s" if name != "batch" else "batches": known for name, known in labels.items()},
            "batch_source": cells.groupby("batch_code")["source"].first().tolist(),
            "groups": _groups(cells.iloc[order]),
            "sources": [
                _provenance(source, config, axis, drops)
                for source, config, drops in zip(sources, configs, dropped, strict=True)
            ],
            "relabelled_controls": [label for label in controls if label != configs[0].control],
        }
        write_json(folder / "store.json", meta)


def _cell_table(sources: list[H5adSource], configs: list[SourceConfig]) -> pd.DataFrame:
    """All kept cells of all sources; the index is a cell's row in the spill file."""
    tables = []
    for number, (source, config) in enumerate(zip(sources, configs, strict=True)):
        table = source.cells.copy()
        table["source"] = number
        table["perturbation"] = unified_labels(table["perturbation"], config, configs[0])
        if len(sources) > 1:
            # Two files may both have a batch "1": these differ, and a batch has one set of measured genes.
            table["batch"] = source.name + ":" + table["batch"].astype(str)
            table["barcode"] = source.name + ":" + table["barcode"].astype(str)
        tables.append(table)
    cells = pd.concat(tables, ignore_index=True)
    # A lane that holds several contexts is a batch in each of them: controls of one are no controls of another.
    shared = cells.groupby("batch")["context"].transform("nunique") > 1
    cells.loc[shared, "batch"] = cells["context"] + ":" + cells["batch"]
    return cells


def _without_few(
    cells: pd.DataFrame, configs: list[SourceConfig], minimum_cells: int
) -> tuple[pd.DataFrame, list[dict[str, int]]]:
    """The cells without perturbations of too few in a context (index kept), and per source how many go and why."""
    size = cells.groupby(["context", "perturbation"])["source"].transform("size")
    few = (size < minimum_cells) & (cells["perturbation"] != configs[0].control)
    dropped = [
        {f"perturbation with fewer than {minimum_cells} cells": count} if count else {}
        for count in np.bincount(cells.loc[few, "source"], minlength=len(configs)).tolist()
    ]
    cells = cells[~few].copy()
    if cells.empty:
        raise UserError("no cell is left after the filters (keep, minimum_cells); loosen them")
    return cells, dropped


def unified_labels(labels: pd.Series, config: SourceConfig, first: SourceConfig) -> pd.Series:
    """The perturbation labels of a source in the words of the first source: its control label, its separator.

    Args:
        labels: [n] str perturbation labels as the source has them.
        config: of the source.
        first: of the first source, whose words the store uses.

    Raises:
        UserError: the first source's control label is a perturbation here, or a target gene holds its separator.
    """
    known = {}
    for label in labels.unique():
        parts = [first.control] if label == config.control else label.split(config.separator)
        if label == first.control != config.control:
            raise UserError(
                f"source {config.name!r}: {label!r} is a perturbation here (control is {config.control!r}) and the "
                f"control of source {first.name!r}; correct control, or leave these cells out with keep"
            )
        if config.separator != first.separator and label != config.control and first.separator in "\n".join(parts):
            raise UserError(
                f"source {config.name!r}: perturbation {label!r} holds {first.separator!r}, which joins target genes "
                f"in source {first.name!r}; rename it in the file, or list this source first"
            )
        known[label] = first.separator.join(parts)
    return labels.map(known)


def _group_order(cells: pd.DataFrame, seed: int) -> np.ndarray:
    """Row order: by context, batch and perturbation, shuffled inside a group."""
    shuffle = np.random.default_rng([seed, len(cells)]).permutation(len(cells))
    return np.lexsort((shuffle, cells["perturbation_code"], cells["batch_code"], cells["context_code"]))


def _groups(ordered: pd.DataFrame) -> list[list[int]]:
    """[context, batch, perturbation, start, end] of each run of rows."""
    codes = ordered[["context_code", "batch_code", "perturbation_code"]].to_numpy()
    starts = np.flatnonzero(np.r_[True, (np.diff(codes, axis=0) != 0).any(axis=1)])
    ends = np.r_[starts[1:], len(codes)]
    return np.column_stack([codes[starts], starts, ends]).tolist()


def _on_axis(counts: sp.csr_matrix, columns: np.ndarray, width: int) -> sp.csr_matrix:
    """The same cells with their genes renamed to axis positions; genes that are not on the axis are left out."""
    mapped = columns[counts.indices]
    on = mapped >= 0
    indptr = np.concatenate([[0], np.cumsum(on)])[counts.indptr]
    moved = sp.csr_matrix((counts.data[on], mapped[on], indptr), shape=(counts.shape[0], width))
    moved.sort_indices()
    return moved


class _Spill:
    """Counts of all cells on disk, in the order in which they were added."""

    def __init__(self, folder: Path, cells: int):
        self._paths = (folder / "genes", folder / "counts")
        self._files = [path.open("wb") for path in self._paths]
        self.start = np.zeros(cells, np.int64)
        self.length = np.zeros(cells, np.int64)
        self.depth = np.zeros(cells, np.int64)
        self.added = np.zeros(cells, bool)
        self._at = 0
        self.largest = 0

    def add(self, cells: np.ndarray, counts: sp.csr_matrix) -> None:
        self._files[0].write(counts.indices.astype(np.int32).tobytes())
        self._files[1].write(counts.data.astype(np.int32).tobytes())
        self.start[cells] = self._at + counts.indptr[:-1]
        self.length[cells] = np.diff(counts.indptr)
        self.depth[cells] = np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()
        self.added[cells] = True
        self._at += counts.nnz
        self.largest = max(self.largest, int(counts.data.max(initial=0)))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        if self._at == 0:
            raise UserError("no gene of any source is on the gene axis with a count above zero")
        genes, counts = (np.memmap(path, np.int32, "r") for path in self._paths)
        return genes, counts


def _batches(
    cells: pd.DataFrame, order: np.ndarray, spill: _Spill, features: datasets.Features
) -> Iterator[pa.RecordBatch]:
    kinds = [np.dtype(features[name].feature.dtype) for name in ("genes", "counts")]
    genes, counts = spill.arrays()
    for start in range(0, len(order), ROWS_PER_BATCH):
        part = cells.iloc[order[start : start + ROWS_PER_BATCH]]
        rows = part.index.to_numpy()
        offsets = np.concatenate([[0], np.cumsum(spill.length[rows])])
        values = [np.empty(offsets[-1], kind) for kind in kinds]
        for source, target in zip((genes, counts), values, strict=True):
            _gather(source, spill.start, spill.length, rows, target)
        lists = [pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(value)) for value in values]
        flat = [part[f"{name}_code"].to_numpy() for name in ("context", "batch", "perturbation")]
        columns = [*lists, pa.array(spill.depth[rows].astype(np.int32)), *map(pa.array, flat)]
        columns.append(pa.array(part["barcode"].to_numpy(), pa.string()))
        yield pa.RecordBatch.from_arrays(columns, schema=features.arrow_schema)


def _provenance(source: H5adSource, config: SourceConfig, axis: np.ndarray, dropped: dict[str, int]) -> dict[str, Any]:
    return {
        "name": source.name,
        "file": Path(config.path).name,
        "sha256": source.sha256,
        "matrix": config.matrix,
        "values": source.evidence,
        "genes": len(source.genes),
        "genes_off_axis": int((axis_columns(source.genes, axis) < 0).sum()),
        "missing_genes": np.flatnonzero(~measured_mask(source.genes, axis)).tolist(),
        "cells": len(source.cells),
        "dropped": dropped,
        "repairs": source.repairs,
    }
