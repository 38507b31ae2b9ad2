"""The tokens of SE: for each cell its most expressed genes, filled up with genes that it does not express.

What is computed follows the published behaviour of Arc Institute's State Embedding, in two modes that differ in the
scale of values and in the value at the CLS position (:class:`Tokenizer`). One thing differs in both: SE draws ties at
the cut and the silent genes from a stream that all cells of a run share, so that a cell's tokens depend on its
neighbours. Here the draw depends on the cell alone: equal in distribution, and the same for any batch, order of
cells, or order of columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from vcc_fm.encoders.cells import state_se_native as native
from vcc_fm.ground.errors import UserError

CLS_POSITION = 3
"""Which of the matched columns, from 0, lends its value to the CLS position in SE."""

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")

# ------------------------------------------------------------------------------------------------------- genes, tokens


@dataclass(frozen=True)
class GeneMap:
    """Which column of a matrix is which gene of a checkpoint.

    Attributes:
        where: the matrix, as messages name it.
        columns: [G] column names.
        ids: [G] int32 gene ids, -1 where the checkpoint does not know the name.
    """

    where: str
    columns: list[str]
    ids: np.ndarray

    @property
    def matched(self) -> int:
        """Number of columns with a gene id."""
        return int((self.ids >= 0).sum())

    @property
    def share(self) -> float:
        """Share of the columns with a gene id."""
        return self.matched / len(self.columns)

    @property
    def present(self) -> np.ndarray:
        """[g] int32 gene ids that occur, rising, each once: no other id can become a token."""
        return np.unique(self.ids[self.ids >= 0])


def match_genes(columns: Sequence[str], vocabulary: Sequence[str], where: str, minimum_share: float = 0.2) -> GeneMap:
    """Match column names with a checkpoint's gene symbols, exactly and by case, as SE does.

    Args:
        columns: [G] column names of the matrix.
        vocabulary: gene symbols, each once; a gene's position is its id.
        where: the matrix, as messages name it.
        minimum_share: smallest share of the columns that must match. Whole transcriptomes lie between 0.3 (with all
            non-coding genes of GENCODE) and 1.

    Raises:
        UserError: Fewer columns match than that, or none.
    """
    id_of = {name: number for number, name in enumerate(vocabulary)}
    genes = GeneMap(where, list(columns), np.array([id_of.get(name, -1) for name in columns], np.int32))
    if genes.matched and genes.share >= minimum_share:
        return genes
    raise UserError(
        f"{where}: {genes.matched} of {len(columns)} gene names are among the checkpoint's {len(vocabulary)} symbols "
        f"(smallest share {minimum_share:g}); {_advice(genes, vocabulary)}"
    )


def _advice(genes: GeneMap, vocabulary: Sequence[str]) -> str:
    unmatched = [name for name, number in zip(genes.columns, genes.ids, strict=True) if number < 0]
    ensembl = [name for name in unmatched if _ENSEMBL.fullmatch(name)]
    if 2 * len(ensembl) > len(unmatched):
        return f"they are Ensembl ids ({ensembl[0]!r}): set the source key `symbols: <var column with gene symbols>`"
    folded = {name.casefold(): name for name in vocabulary}
    other_case = [name for name in unmatched if name.casefold() in folded]
    if len(other_case) > genes.matched:
        return (
            f"{len(other_case)} more differ only in case ({other_case[0]!r}, known is "
            f"{folded[other_case[0].casefold()]!r}), as mouse symbols do: give the symbols of the human orthologues"
        )
    return (
        f"unknown are {', '.join(map(repr, unmatched[:3]))} …: set the source key `symbols: <var column with gene "
        "symbols>`, or accept a smaller share"
    )


@dataclass(frozen=True)
class Tokens:
    """The tokens of n cells, T slots each; slots from ``length`` on hold zeros.

    A cell's tokens stand in one order: expressed genes by falling value, those of one value by gene id, then silent
    genes by gene id.

    Attributes:
        ids: [n, T] int32 gene ids.
        values: [n, T] float32, 100 x share of the cell's total log expression; 0 for silent genes.
        multiplicity: [n, T] int32, how often the token stands in SE's sequence.
        length: [n] int64 slots in use.
        cls_value: [n] float32, value at the CLS position.
        empty: [n] bool, cells that express no gene of the checkpoint; they have no tokens.
    """

    ids: np.ndarray
    values: np.ndarray
    multiplicity: np.ndarray
    length: np.ndarray
    cls_value: np.ndarray
    empty: np.ndarray


class Tokenizer:
    """Turns rows of a matrix into tokens. One may serve several threads at once; it holds no state between calls.

    * ``exact`` reads counts and takes log1p(counts), or log1p(counts * target_sum / depth) with the depth over all
      columns. The CLS position has the value of a silent gene, 0, so that the order of columns cannot matter.
    * ``compat`` does as ``state emb transform`` does: a row that looks like counts (largest value above 35, or sum of
      expm1 above 5,000,000, over all columns) becomes log1p of itself, any other is taken as logarithms; the CLS
      position has the value of the fourth matched column. SE reads negative values as 0; here they are refused.

    Up to ``pad_length - 1`` genes become tokens: the expressed ones by falling value, ties at the cut at random, then
    silent ones at random. Where the matrix has fewer matched columns than that, silent genes are drawn with
    replacement and kept once, with their multiplicity; where it has no silent gene either, the sequence is shorter
    (SE stops with an error).
    """

    def __init__(
        self,
        genes: GeneMap,
        pad_length: int = 2048,
        mode: Literal["exact", "compat"] = "exact",
        target_sum: float | None = None,
        seed: int = 0,
    ):
        """Prepare for matrices with the columns of ``genes``.

        Args:
            genes: what the columns are.
            pad_length: length of SE's sequence, the CLS token included.
            mode: see the class.
            target_sum: depth to which cells are scaled, UMI; None for no scaling. Of mode ``exact`` only.
            seed: at least 0; another seed gives other draws.

        Raises:
            UserError: A column name repeats (``exact``), fewer than four columns match or a target sum is given
                (``compat``), or ``pad_length`` leaves no room for a gene.
        """
        if pad_length < 2:
            raise UserError(f"pad_length={pad_length}: one token is CLS; give 2 or more")
        if mode == "compat" and target_sum is not None:
            raise UserError(
                f"target_sum={target_sum:g}: mode compat takes values as they are; use mode exact, or no sum"
            )
        if mode == "compat" and genes.matched <= CLS_POSITION:
            raise UserError(
                f"{genes.where}: {genes.matched} matched genes, mode compat needs {CLS_POSITION + 1} (SE reads the "
                "fourth for its CLS token); use mode exact"
            )
        self.genes = genes
        self.pad_length = pad_length
        self.mode = mode
        self.target_sum = target_sum
        self.seed = seed
        matched = np.flatnonzero(genes.ids >= 0)
        by_gene = matched[np.argsort(genes.ids[matched], kind="stable")]
        self._gene_of_slot = genes.ids[by_gene]
        repeated = by_gene[1:][self._gene_of_slot[1:] == self._gene_of_slot[:-1]]
        if mode == "exact" and len(repeated):
            raise UserError(
                f"{genes.where}: {len(repeated)} gene names repeat, the first is {genes.columns[repeated[0]]!r}; add "
                "up their columns (source key `duplicate_genes: sum`) or remove them"
            )
        self._slot_of_column = np.full(len(genes.columns), -1, np.int32)
        self._slot_of_column[by_gene] = np.arange(len(by_gene))
        self._cls_slot = int(self._slot_of_column[matched[CLS_POSITION]]) if mode == "compat" else -1

    def tokenize(self, rows: sp.csr_matrix, first_row: int = 0) -> Tokens:
        """The tokens of ``rows`` [n, G], a CSR matrix of any number type; the GIL is released meanwhile.

        Args:
            rows: cells.
            first_row: number of the first of them, as messages count rows.

        Raises:
            UserError: A value is negative or not finite, no integer (``exact``), or a row names a gene twice.
        """
        # The native code looks up what it is told to, wherever that lies.
        assert rows.shape[1] == len(self.genes.columns)
        rows.check_format()
        n, most = rows.shape[0], self.pad_length - 1
        tokens = Tokens(
            np.zeros((n, most), np.int32),
            np.zeros((n, most), np.float32),
            np.zeros((n, most), np.int32),
            np.zeros(n, np.int64),
            np.zeros(n, np.float32),
            np.zeros(n, bool),
        )
        wrong, row, entry = native.tokenize(
            rows.indptr, rows.indices, rows.data, self._slot_of_column, self._gene_of_slot, self._cls_slot,
            self.mode == "exact", self.target_sum or 0.0, np.uint64(self.seed),
            tokens.ids, tokens.values, tokens.multiplicity, tokens.length, tokens.cls_value,
        )  # fmt: skip
        if wrong != native.FINE:
            entry += rows.indptr[row]
            self._refuse(wrong, first_row + row, self.genes.columns[rows.indices[entry]], rows.data[entry])
        np.equal(tokens.length, 0, out=tokens.empty)
        return tokens

    def _refuse(self, wrong: int, row: int, gene: str, value: float) -> None:
        place = f"{self.genes.where}: row {row}, gene {gene!r}"
        if wrong == native.TWICE:
            raise UserError(
                f"{place}: two entries for one cell and gene; add them up (sum_duplicates) and write again"
            )
        if wrong == native.NOT_A_COUNT:
            raise UserError(
                f"{place}: {value:g} is no count; mode exact needs raw counts, mode compat takes log1p too"
            )
        need = "raw counts" if self.mode == "exact" else "raw counts or their log1p, not scaled or corrected values"
        raise UserError(f"{place}: {value:g} is negative or not finite; give {need}")
