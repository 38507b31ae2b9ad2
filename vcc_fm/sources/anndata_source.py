"""An h5ad file or zarr store as a source: its kept cells, their labels, and verified raw counts in chunks of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.arrays import counted, let_go
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.paths import expand, without_secrets
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.anndata_file import bytes_of, locate, matrices, open_file, read_table, sha256_of
from vcc_fm.sources.controls import doubted_labels
from vcc_fm.sources.evidence import Evidence, ScaledEvidence, no_evidence
from vcc_fm.sources.genes import approved_targets, gene_columns, renamed_targets
from vcc_fm.sources.integers import doubts_of, mix_of
from vcc_fm.sources.labels import kept_labels
from vcc_fm.sources.matrix import Block, CscMatrix, CsrMatrix, open_matrix, whole_cells
from vcc_fm.sources.obs import open_obs
from vcc_fm.sources.proof import BASE_NAMES, PROVED, Reading, ScaledValues
from vcc_fm.sources.symbols import SymbolTable
from vcc_fm.sources.totals import read_totals
from vcc_fm.sources.values import (
    COUNT_LIMIT,
    AmbiguousError,
    NotCountsError,
    Scale,
    check,
    decide,
    describe,
    recover,
)

_SAMPLE_CELLS = 64
_SCALED_SAMPLE_CELLS = 256  # scaled cells are told apart by what they have in common


class SourceCells(NamedTuple):
    """Kept cells as read.

    Attributes:
        positions: [m] int64, places among the kept cells of the source.
        counts: [m, G] int32 CSR with sorted indices and no stored zeros.
        evidence: of these cells, and of those that were left out as not proved.
    """

    positions: np.ndarray
    counts: sp.csr_matrix
    evidence: Evidence


class AnnDataSource:
    """A screen in an h5ad file or zarr store, opened and checked; use it in a ``with`` statement.

    Attributes:
        name: name of the source.
        genes: [G] str, distinct symbols in order of the file.
        labels: of the kept cells; two of the names of perturbations may be equal, where both became approved.
        dropped: reason -> number of cells; those whose counts could not be proved come in with :meth:`conclude`.
        repairs: name of a repair -> number of cells (or matrix columns, for genes) that it touched.
        evidence: what the matrix holds and how that was found: matrix, stored (dtype), declared, found, base (of the
            log), checked (``sample`` after opening, ``all`` after :meth:`conclude`), n_cells, n_values
            (non-zero), largest_residual (in units of the stored values; in UMI where cells are scaled),
            largest_count (UMI); where cells are scaled, what :class:`ScaledEvidence` has to say besides.
    """

    def __init__(
        self,
        config: SourceConfig,
        names: SymbolTable | None = None,
        pins: Mapping[str, str] | None = None,
        scratch: Path | None = None,
    ) -> None:
        """Open a file, read its labels and genes, and tell the scale of its values from a sample of cells.

        Args:
            config: of the source.
            names: other names of genes; genes and target genes go under their approved symbols.
            pins: symbol -> gene that it stands for, before ``names``.
            scratch: folder for what is made once for all processes that open the file there: labels, where rows begin,
                a matrix by column turned by row; None: memory and a temporary folder.

        Raises:
            UserError: the file is missing, damaged or not written by anndata, the matrix is absent, or labels, genes
                or values are not what the recipe says.
        """
        self.name = config.name
        self.path = expand(config.path)
        self._config = config
        self._where = f"source {config.name!r} ({without_secrets(config.path)})"
        # Labels, genes and values are the file's: what they trip is its fault, whatever library says so.
        with reading(self._where, "AnnData"), ExitStack() as stack:
            file = stack.enter_context(open_file(self.path, self._where, config.get))
            stored, var = locate(file, config.matrix, self._where)
            obs = open_obs(file, columns_used(config), self._where)
            self.labels = kept_labels(
                obs, config, self._where, None if scratch is None else scratch / "labels.safetensors"
            )
            genes = read_table(file, var, {config.symbols}, self._where)
            named = gene_columns(genes, config.symbols, config.duplicate_genes, self._where, names, pins)
            self.dropped = self.labels.dropped
            self.genes, self._columns = named.genes, named.columns
            self.repairs = self.labels.repairs | named.repairs
            if names is not None:
                known = self.labels.names["perturbation"]
                approved = approved_targets(known, config, named, names, pins)
                cells = counted(self.labels.codes["perturbation"], len(known))
                if changed := int(cells[approved != known].sum()):
                    self.repairs["target genes brought to their approved symbol"] = changed
                self._rename(approved)
            # Temporary files come later: a stack inside the stack, so that pop_all moves them too.
            temporary = stack.enter_context(ExitStack())
            self._matrix = open_matrix(stored, f"{self._where}, {config.matrix}", temporary, scratch)
            expected = (len(obs), len(named.columns))
            if self._matrix.shape != expected:
                raise UserError(
                    f"{self._where}, {config.matrix}: cut short or damaged (shape {self._matrix.shape}, obs and var "
                    f"have {expected[0]} and {expected[1]} rows)"
                )
            self._others = [name for name in matrices(file) if name != config.matrix]
            kept = None if scratch is None else scratch / "totals.safetensors"
            self._totals = read_totals(self.labels, config.totals_column, self._where, kept)
            self._dropped = dict(self.dropped)
            self._reading: Reading | float
            self._reading, self.evidence = self._sample()
            if doubt := doubted_labels(self.labels.names["perturbation"], config.control, self.genes):
                self.evidence["doubts"] = [*self.evidence.get("doubts", []), doubt]
            self._stack = stack.pop_all()

    def _rename(self, perturbations: np.ndarray) -> None:
        self.labels = replace(self.labels, names=self.labels.names | {"perturbation": perturbations})

    def __len__(self) -> int:
        """Number of kept cells."""
        return len(self.labels.rows)

    @property
    def cells(self) -> pd.DataFrame:
        """The kept cells as a table to look at; see :class:`Labels`."""
        return self.labels.cells

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and remove temporary files."""
        self._stack.close()

    def respell(self, spelling: Mapping[str, str]) -> None:
        """Put genes and target genes under other symbols.

        Args:
            spelling: symbol -> the one that takes its place; not where the file has that for another gene.
        """
        own = set(self.genes)
        renamed = {symbol: other for symbol, other in spelling.items() if other not in own}
        self.genes = np.array([renamed.get(symbol, symbol) for symbol in self.genes], dtype=str)
        self._rename(renamed_targets(self.labels.names["perturbation"], self._config, renamed))
        if changed := len(own & renamed.keys()):
            self.repairs["genes spelled as data.genes has them"] = changed

    def let_go(self) -> None:
        """Give the memory of what is kept of all cells back until it is needed."""
        let_go(self.labels.rows)
        if isinstance(self._matrix, CsrMatrix):
            let_go(self._matrix.indptr)

    @property
    def bytes(self) -> int:
        """Size of the file, or of all files of a zarr store."""
        return bytes_of(self.path)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file, or of all files of a zarr folder; a UserError where the recipe has another."""
        found, wanted = sha256_of(self.path), self._config.sha256
        if wanted is not None and found != wanted.lower():
            raise UserError(f"{self._where}: its SHA-256 is {found}, the recipe says {wanted}; get it again")
        return found

    def ranges(self, values: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Cut rows of the file into ranges [start, stop) of at most so many stored values, or of one row."""
        return self._matrix.ranges(values, start, stop)

    @property
    def rows_of_file(self) -> int:
        """Rows of the file, kept or not."""
        return self._matrix.shape[0]

    def read(self, start: int, stop: int) -> SourceCells:
        """Read the kept cells among the rows ``start`` to ``stop`` of the file; every value is verified.

        Scaled cells whose counts cannot be proved are left out; the evidence says how many.

        Raises:
            UserError: a value is no count on the scale that was found, or the file is damaged.
        """
        rows = self.labels.rows
        first, last = np.searchsorted(rows, np.array([start, stop], rows.dtype))
        positions = np.arange(first, last, dtype=np.int64)
        evidence = no_evidence(self._reading)
        if not len(positions):
            return SourceCells(positions, sp.csr_matrix((0, len(self.genes)), dtype=np.int32), evidence)
        block = self._matrix.block(start, stop).take(rows[first:last].astype(np.int64) - start)
        if isinstance(evidence, ScaledEvidence):
            assert isinstance(self._reading, Reading)
            values, proved = self._scaled_counts(block, positions, self._reading, evidence)
            return SourceCells(positions[proved], self._as_matrix(values, block, positions)[proved], evidence)
        assert not isinstance(self._reading, Reading)
        try:
            values, residual = recover(block.data, self._reading)
        except NotCountsError as error:
            raise self._refusal(error, block, positions) from None
        counts = self._as_matrix(values, block, positions)
        evidence.add(len(positions), block.data, counts.data, residual)
        return SourceCells(positions, counts, evidence)

    def conclude(self, states: Iterable[dict[str, Any]]) -> None:
        """Take the evidence of all rows together (``evidence.state()`` of each :meth:`read`).

        ``evidence`` and ``dropped`` are those of the whole file from here on.

        Raises:
            UserError: too few cells are proved.
        """
        whole = no_evidence(self._reading)
        for state in states:
            whole.absorb(state)
        if isinstance(whole, ScaledEvidence):
            if whole.share < self._config.recovered:
                raise self._too_few(whole, "cells")
            self.dropped = self._dropped | dict(sorted(whole.unproved.items()))
        self.evidence = self.evidence | {"checked": "all"} | whole.summary()

    def _sample(self) -> tuple[Reading | float, dict[str, Any]]:
        """How to read the matrix and the evidence for it, from cells spread over the file."""
        declared = self._config.values
        scales: tuple[Scale, ...] = ("counts", "log1p-counts") if declared == "auto" else (declared,)
        places = self._places(_SAMPLE_CELLS)
        block = self._matrix.sample(self.labels.rows[places])
        stored = str(block.data.dtype)
        evidence: dict[str, Any] = {"matrix": self._config.matrix, "stored": stored, "declared": declared}
        if declared in ("auto", "counts", "log1p-counts"):
            try:
                scale, base = decide(block.data, scales)
            except NotCountsError as error:
                if declared != "auto" or isinstance(error, AmbiguousError):
                    raise self._refusal(error, block, places) from None
            else:
                counts, residual = recover(block.data, base)
                # Of a matrix by column there are no whole cells yet.
                if base == 0 and not isinstance(self._matrix, CscMatrix) and (told := doubts_of(block)):
                    evidence["doubts"] = told
                return base, evidence | {
                    "found": scale,
                    "base": BASE_NAMES.get(base),
                    "checked": "sample",
                    "n_cells": len(places),
                    "n_values": int(np.count_nonzero(block.data)),
                    "largest_residual": residual,
                    "largest_count": int(counts.max(initial=0)),
                }
        self._check(block, places)  # turning a matrix by column only to refuse it would be a waste
        places = self._places(_SCALED_SAMPLE_CELLS)
        block = whole_cells(self._matrix, self.labels.rows[places])
        reading = self._find_reading(block, places)
        sample = ScaledEvidence(reading)
        self._scaled_counts(block, places, reading, sample)
        # Fewer in the sample than this happens to less than one in 10,000 files that have enough.
        wanted = self._config.recovered
        if sample.share < wanted - 4 * np.sqrt(wanted * (1 - wanted) / len(places)):
            raise self._too_few(sample, "sampled cells", mix_of(block.data, block.indptr))
        return reading, evidence | {"checked": "sample"} | sample.summary()

    def _places(self, number: int) -> np.ndarray:
        """Positions of up to ``number`` kept cells, spread over the file."""
        return np.unique(np.linspace(0, len(self) - 1, number).astype(np.int64))

    def _find_reading(self, block: Block, places: np.ndarray) -> Reading:
        """How scaled cells are to be read, from whole ones."""
        from vcc_fm.sources.reading import TotalsError, find_reading  # compiles, and only scaled cells need it

        declared = self._config.values
        tried: tuple[ScaledValues, ...] = ("normalised", "log-normalised")
        if declared in ("normalised", "log-normalised"):
            tried = (declared,)
        try:
            decide(block.data, ("counts", "log1p-counts"))
        except NotCountsError as error:
            self._check(block, places)
            try:
                totals = None if self._totals is None else self._totals[places]
                reading = find_reading(block.data, block.indptr, tried, totals)
            except TotalsError as found:
                raise UserError(
                    f"{self._where}: totals_column {self._config.totals_column!r} is not the depth from which "
                    f"the cells were scaled: {found}; give the right column, or none"
                ) from None
            if reading is None:
                raise self._refusal(error, block, places) from None
            return reading
        looks = describe(block.data, block.indptr, len(self._columns))
        raise UserError(f"{self._where}, {self._config.matrix}: values is {declared}, but they look like {looks}")

    def _scaled_counts(
        self, block: Block, positions: np.ndarray, reading: Reading, evidence: ScaledEvidence
    ) -> tuple[np.ndarray, np.ndarray]:
        """Counts of scaled cells, and which of the cells are proved."""
        from vcc_fm.sources.scaled import fit

        self._check(block, positions)
        totals = None if self._totals is None else self._totals[positions]
        cells = fit(block.data, block.indptr, reading, totals)
        evidence.add(cells, totals)
        return cells.counts, cells.code == PROVED

    def _check(self, block: Block, positions: np.ndarray) -> None:
        """Refuse what is an expression value on no scale."""
        try:
            check(block.data)
        except NotCountsError as error:
            raise self._refusal(error, block, positions) from None

    def _too_few(self, evidence: ScaledEvidence, which: str, mix: str | None = None) -> UserError:
        reasons = "; ".join(f"{number}: {reason.partition(': ')[2]}" for reason, number in evidence.unproved.items())
        column = "" if self._config.totals_column else "set totals_column to the depth before normalisation, "
        return UserError(
            f"{self._where}, {self._config.matrix}: {evidence.summary()['found']}, and the counts of only "
            f"{evidence.share:.1%} of {evidence.cells} {which} can be proved ({reasons}).\n"
            f"recovered asks for {self._config.recovered:.1%}: "
            + (f"{mix}; get the raw counts" if mix else f"{column}get the file with counts, or lower recovered")
        )

    def _as_matrix(self, values: np.ndarray, block: Block, positions: np.ndarray) -> sp.csr_matrix:
        """Counts [m, G] of the cells of a block, from one for each of its values."""
        shape = (len(positions), len(self._columns))
        counts = sp.csr_matrix((values, block.indices.astype(np.int32), block.indptr), shape)
        counts.sort_indices()
        if not counts.has_canonical_format:
            raise UserError(
                f"{self._where}, {self._config.matrix}: cut short or damaged (a column comes twice in a cell between "
                f"{self._cell(positions[0])} and {self._cell(positions[-1])})"
            )
        if len(self.genes) < len(self._columns):
            counts = self._summed(counts)
        counts.eliminate_zeros()
        return counts

    def _summed(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Columns of one symbol added up."""
        shape = (counts.shape[0], len(self.genes))
        summed = sp.csr_matrix((counts.data.astype(np.int64), self._columns[counts.indices], counts.indptr), shape)
        summed.sum_duplicates()
        if summed.data.max(initial=0) >= COUNT_LIMIT:
            raise UserError(f"{self._where}: the sum over columns of one gene symbol is too large for a count")
        return summed.astype(np.int32)

    def _refusal(self, error: NotCountsError, block: Block, positions: np.ndarray) -> UserError:
        cell = int(np.searchsorted(block.indptr, error.position, side="right")) - 1
        gene = str(self.genes[self._columns[block.indices[error.position]]])
        found = (
            f"{self._where}, {self._config.matrix}: cell {self._cell(positions[cell])}, gene {gene!r} holds "
            f"{block.data[error.position]:.9g}: {error.reason}"
        )
        if not isinstance(error, AmbiguousError):
            looks = describe(block.data, block.indptr, len(self._columns))
            found += f"; the values look like {looks}"
            if "set values to" in looks:
                return UserError(found)
        others = f"set matrix to one that holds them; the file also has {', '.join(self._others)}"
        return UserError(
            f"{found}.\nOnly counts, scaled per cell or not, and the log1p of either can be read: "
            + (others if self._others else "the file has no other matrix, get it with counts")
        )

    def _cell(self, position: int) -> str:
        return repr(self.labels.barcode(position))


def columns_used(config: SourceConfig) -> set[str]:
    """Columns of obs whose values the recipe asks for."""
    named = [config.perturbation_column, config.context_column, config.batch_column, config.totals_column]
    named.append(config.quality.guides_column)
    return {*config.keep, *(column for column in named if column is not None)}
