"""The cell store: one row a cell, sparse integer counts, in group order, mapped into memory.

Rows are ordered by (context, batch, perturbation) and shuffled inside a group by a recorded seed, so that any slice of
a group is a random cell set. ``store.json`` beside the data says the rest: gene axis, labels, which genes each source
measured, where everything came from and what was dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numba
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError
from vcc_fm.store.arrow import MappedTable, Store
from vcc_fm.store.description import LABELS, NAME, CellsDescription, damaged, read_store_json

SCHEMA = 4
CHUNK = 4096
"""Cells whose counts are read at a time where they are added up."""
NARROW = 1 << 16
"""Numbers below fit in two bytes."""
_LISTS = (pa.list_(pa.uint16()), pa.list_(pa.int32()))
_TYPES = {
    **{"genes": _LISTS, "counts": _LISTS, "depth": (pa.int32(),), "barcode": (pa.string(),)},
    **dict.fromkeys(LABELS, (pa.int64(),)),
}


def cell_features(genes: int, largest_count: int, names: dict[str, list[str]]) -> datasets.Features:
    """The columns of a cell store; a cell's genes and counts take two bytes each wherever they fit.

    How fast cells are read is how fast their bytes come from memory.

    Args:
        genes: on the axis.
        largest_count: of all cells.
        names: of the labels context, batch and perturbation.
    """
    narrow = {True: datasets.List(datasets.Value("uint16")), False: datasets.List(datasets.Value("int32"))}
    return datasets.Features(
        {
            "genes": narrow[genes <= NARROW],
            "counts": narrow[largest_count < NARROW],
            "depth": datasets.Value("int32"),
            **{label: datasets.ClassLabel(names=names[label]) for label in LABELS},
            "barcode": datasets.Value("string"),
        }
    )


@numba.njit(cache=True, nogil=True)
def _scatter(genes, gene_start, counts, count_start, length, rows, places, out):  # type: ignore[no-untyped-def]
    """Write the counts of ``rows[places]`` into ``out[places]`` [m, G], whatever it holds.

    Returns:
        A row with a gene that is not on the axis; -1 where there is none.
    """
    for i in places:
        row = rows[i]
        if row < 0 or row >= length.shape[0]:
            raise IndexError("a row that the store does not have")
        n = length[row]
        gene = genes[gene_start[row] : gene_start[row] + n]
        count = counts[count_start[row] : count_start[row] + n]
        # One comparison a cell: inside the loop that writes, it would cost up to a third of that loop.
        if n > 0:
            largest = gene[0]
            for k in range(n):
                largest = max(largest, gene[k])
            if largest >= out.shape[1]:
                return row
        # Zeros go where the counts go next, while the row is in the cache.
        dense = out[i]
        dense[:] = 0
        for k in range(n):
            dense[np.uint64(gene[k])] = count[k]
    return -1


@numba.njit(cache=True, nogil=True)
def _gather(values, start, length, rows, places, at, out):  # type: ignore[no-untyped-def]
    """Copy the list of row ``rows[i]`` to ``out[at[i]:]``, for the i in ``places``; the largest number of all."""
    largest = np.uint32(0)
    for i in places:
        row = rows[i]
        n = length[row]
        source, target = values[start[row] : start[row] + n], out[at[i] : at[i] + n]
        for k in range(n):
            target[k] = source[k]
            largest = max(largest, np.uint32(source[k]))
    return largest


@dataclass(frozen=True)
class Groups:
    """Runs of rows with the same context, batch and perturbation, in row order. All arrays are [number of groups]."""

    context: np.ndarray
    batch: np.ndarray
    perturbation: np.ndarray
    start: np.ndarray
    end: np.ndarray


def evenly_spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of ``rows`` [n], evenly spaced over them, the first and the last among them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]


class CellStore(Store):
    """Read access to a cell store; opening reads ``store.json`` and the row index, no counts.

    Attributes:
        genes: the gene axis, [G] symbols.
        control: label of the control cells.
        contexts, batches, perturbations: labels behind the integer codes.
        depth: [N] int32, UMI total of each cell over the gene axis.
        context, batch, perturbation: [N] int32 codes.
    """

    def __init__(self, folder: Path):
        """Open ``folder``.

        Raises:
            UserError: the folder is incomplete, of another schema, or not what was written.
        """
        super().__init__(folder, read_store_json(folder, SCHEMA, CellsDescription, "prepare it again"))
        self.genes: list[str] = self.meta["genes"]
        self.control: str = self.meta["control"]
        self.contexts: list[str] = self.meta["contexts"]
        self.batches: list[str] = self.meta["batches"]
        self.perturbations: list[str] = self.meta["perturbations"]
        self._table = MappedTable(folder, self.meta["shards"], _TYPES)
        if len(self._table) != self.meta["cells"]:
            raise damaged(folder / NAME, f"{self.meta['cells']} cells, but the files have {len(self._table)}")
        self.depth = self._table.column("depth")
        self.context, self.batch, self.perturbation = map(self._codes, LABELS)
        self._genes, self._counts = self._table.lists("genes"), self._table.lists("counts")
        # As unsigned numbers, what is below zero is large: one comparison tells whether a gene is on the axis.
        self._genes = replace(self._genes, values=[v.view(f"u{v.itemsize}") for v in self._genes.values])
        if (self._genes.length != self._counts.length).any():
            raise damaged(folder / NAME, "the files have cells with more genes than counts, or fewer")

    def _codes(self, label: str) -> np.ndarray:
        """The codes of a label, [N] int32, each of which has a name."""
        codes = self._table.column(label)
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(self.meta[LABELS[label]]):
            raise damaged(self.folder / NAME, f"the cells have {LABELS[label]} that store.json does not name")
        return codes.astype(np.int32)

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def control_code(self) -> int:
        """Code of the control label."""
        return self.perturbations.index(self.control)

    @property
    def separator(self) -> str:
        """What joins the target genes of a combination."""
        return str(self.meta["separator"])

    @property
    def labels(self) -> list[str]:
        """The perturbations, the control not among them."""
        return [label for label in self.perturbations if label != self.control]

    @cached_property
    def barcodes(self) -> np.ndarray:
        """[N] barcodes."""
        return self._table.column("barcode")

    @cached_property
    def groups(self) -> Groups:
        """The runs of rows with one context, batch and perturbation."""
        codes = self.context, self.batch, self.perturbation
        begins = np.r_[True, np.logical_or.reduce([np.diff(code) != 0 for code in codes])]
        start = np.flatnonzero(begins)
        context, batch, perturbation = (code[start].astype(np.int64) for code in codes)
        return Groups(context, batch, perturbation, start, np.r_[start[1:], len(self)])

    @cached_property
    def measured_by_source(self) -> np.ndarray:
        """[number of sources, G] bool: whether a source measured a gene."""
        masks = np.ones((len(self.meta["sources"]), len(self.genes)), bool)
        for mask, source in zip(masks, self.meta["sources"], strict=True):
            mask[source["missing_genes"]] = False
        return masks

    @property
    def measured_of(self) -> dict[str, np.ndarray]:
        """Source -> [G] bool, whether it measured a gene."""
        names = [source["name"] for source in self.meta["sources"]]
        return dict(zip(names, self.measured_by_source, strict=True))

    @cached_property
    def measured(self) -> np.ndarray:
        """[number of batches, G] bool: whether the source of a batch measured a gene."""
        return self.measured_by_source[self.batch_source]

    @cached_property
    def batch_source(self) -> np.ndarray:
        """[number of batches] int64: the source of a batch, by its number."""
        return np.asarray(self.meta["batch_source"], np.int64)

    @cached_property
    def group_cells(self) -> dict[tuple[str, str], int]:
        """(context, perturbation) -> number of cells, the control included."""
        frame = pd.DataFrame(
            {"c": self.groups.context, "p": self.groups.perturbation, "n": self.groups.end - self.groups.start}
        )
        sums = frame.groupby(["c", "p"])["n"].sum()
        codes = sums.index.to_frame(index=False).to_numpy()
        return {(self.contexts[c], self.perturbations[p]): int(n) for (c, p), n in zip(codes, sums, strict=True)}

    @property
    def context_sources(self) -> list[tuple[str, str]]:
        """Every pair of a context and the name of a source that has cells of it."""
        names = [source["name"] for source in self.meta["sources"]]
        pairs = np.unique(np.stack([self.groups.context, self.batch_source[self.groups.batch]], axis=1), axis=0)
        return [(self.contexts[context], names[source]) for context, source in pairs]

    def rows(self, context: str | None = None, perturbation: str | None = None) -> np.ndarray:
        """Rows [n] int64 of a context, a perturbation, or both, in row order."""
        groups = self.groups
        if context is not None and perturbation is not None:
            keys, order = self._pairs
            key = self.contexts.index(context) * len(self.perturbations) + self.perturbations.index(perturbation)
            chosen = order[slice(*np.searchsorted(keys, [key, key + 1]))]
        elif context is not None:
            chosen = np.flatnonzero(groups.context == self.contexts.index(context))
        elif perturbation is not None:
            chosen = np.flatnonzero(groups.perturbation == self.perturbations.index(perturbation))
        else:
            return np.arange(len(self))
        runs = [np.arange(a, b) for a, b in zip(groups.start[chosen], groups.end[chosen], strict=True)]
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The groups by (context, perturbation), in row order inside: sorted keys, and places in ``groups``."""
        keys = self.groups.context * len(self.perturbations) + self.groups.perturbation
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def dense(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Counts of ``rows`` [n] as a dense [n, G] float32 array; written into ``out`` where it is given."""
        shape = len(rows), len(self.genes)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape:
            raise ValueError(f"counts of shape {shape} do not fit into {out.shape}")
        genes, counts = self._genes, self._counts
        for file, places in self._table.by_file(rows):
            row = _scatter(
                *(genes.values[file], genes.start, counts.values[file], counts.start, genes.length),
                *(rows, places, out),
            )
            if row >= 0:
                raise self._off_axis(row)
        return out

    def _off_axis(self, row: int) -> UserError:
        return damaged(self.folder / NAME, f"cell {row} has a gene that is not on its axis of {len(self.genes)}")

    def sparse(self, rows: np.ndarray) -> sp.csr_matrix:
        """Counts of ``rows`` [n] as a [n, G] int32 CSR matrix with sorted indices."""
        genes, counts, start = self.lists(rows, lambda n, _: np.empty(n, np.int32))
        return sp.csr_matrix((counts, genes, start), shape=(len(rows), len(self.genes)))

    def lists(
        self, rows: np.ndarray, new: Callable[[int, np.dtype[Any]], np.ndarray] = np.empty
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts of ``rows`` [n] as the store has them.

        Args:
            rows: of the store.
            new: makes an array of a length, for what the store has in a type; it may choose another one.

        Returns:
            Positions on the gene axis and counts, both cell after cell, uint16 or uint32 if ``new`` does as it is
            told; where each cell begins, [n + 1] int64.
        """
        if len(rows) and rows.min() < 0:
            raise IndexError("a row that the store does not have")
        start = np.concatenate([[0], np.cumsum(self._genes.length[rows], dtype=np.int64)])
        genes, counts = (new(int(start[-1]), lists.values[0].dtype) for lists in (self._genes, self._counts))
        largest = -1
        for file, places in self._table.by_file(rows):
            for lists, out in ((self._counts, counts), (self._genes, genes)):
                found = _gather(lists.values[file], lists.start, lists.length, rows, places, start, out)
            largest = max(largest, found)
        if len(genes) and largest >= len(self.genes):
            off = int(np.argmax((genes < 0) | (genes >= len(self.genes))))
            raise self._off_axis(int(rows[np.searchsorted(start, off, side="right") - 1]))
        return genes, counts, start

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """Sum of the counts of ``rows`` [n] per gene, [G] int64, a chunk at a time."""
        total = np.zeros(len(self.genes), np.int64)
        for start in range(0, len(rows), CHUNK):
            total += np.asarray(self.sparse(rows[start : start + CHUNK]).sum(axis=0, dtype=np.int64)).ravel()
        return total
