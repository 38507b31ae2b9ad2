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

import numba
import numpy as np
import scipy.sparse as sp

from vcc_fm.errors import UserError

CLS_POSITION = 3
"""Which of the matched columns, from 0, lends its value to the CLS position in SE."""

_LARGEST_TOTAL = 5_000_000.0

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")

_FINE, _NOT_A_VALUE, _NOT_A_COUNT, _TWICE = range(4)

_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS
_PASSES = 3

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


# -------------------------------------------------------------------------------------------------------- native code
# A slot is a matched column's rank by gene id: whatever goes through the slots in order knows no order of columns.


@numba.njit(cache=True, nogil=True)
def _mix(z):  # type: ignore[no-untyped-def]
    """The output function of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    z = (z ^ (z >> _30)) * _FIRST_FACTOR
    z = (z ^ (z >> _27)) * _SECOND_FACTOR
    return z ^ (z >> _31)


@numba.njit(cache=True, nogil=True)
def _draw(key, number):  # type: ignore[no-untyped-def]
    """The 32-bit random ``number`` of the stream ``key``."""
    return _mix(key + _GOLDEN * np.uint64(number + 1)) >> _32


@numba.njit(cache=True, nogil=True)
def _choose(slots, start, end, wanted, key, out, at):  # type: ignore[no-untyped-def]
    """Choose ``wanted`` of ``slots[start:end]``, each set equally likely, and keep their order.

    Each slot is taken with probability wanted / remaining (Knuth, The Art of Computer Programming 2, 3.4.2,
    algorithm S); in integers, so that exactly ``wanted`` are taken.
    """
    for i in range(start, end):
        if wanted == 0:
            break
        if _draw(key, i - start) * np.uint64(end - i) < np.uint64(wanted) << _32:
            out[at] = slots[i]
            at += 1
            wanted -= 1


@numba.njit(cache=True, nogil=True)
def _scatter(indices, data, start, end, slot_of_column, values, counts_only):  # type: ignore[no-untyped-def]
    """Write a row into ``values`` [slots], which holds zeros.

    Returns: what is wrong, with which entry, the sum of the row and its largest value, both over all columns.
    """
    depth, largest = 0.0, np.float32(0.0)
    for k in range(start, end):
        x = np.float32(data[k])
        if not (x >= 0 and x < np.inf):
            return _NOT_A_VALUE, k, depth, largest
        if counts_only and x != np.floor(x):
            return _NOT_A_COUNT, k, depth, largest
        depth += data[k]
        largest = max(largest, x)
        slot = slot_of_column[indices[k]]
        if slot >= 0 and x > 0:
            if values[slot] > 0:
                return _TWICE, k, depth, largest
            values[slot] = x
    return _FINE, 0, depth, largest


@numba.njit(cache=True, nogil=True)
def _looks_raw(data, start, end, largest):  # type: ignore[no-untyped-def]
    """SE's guess whether a row holds counts and not their logarithms.

    Its other test, a value above 35, is contained in the sum: expm1(35) alone exceeds the limit.
    """
    if np.expm1(np.float64(largest)) > _LARGEST_TOTAL:
        return True
    if np.expm1(np.float64(largest)) * (end - start) <= _LARGEST_TOTAL:
        return False
    total = 0.0
    for k in range(start, end):
        total += np.expm1(np.float64(data[k]))
    return total > _LARGEST_TOTAL


@numba.njit(cache=True, nogil=True)
def _split(values, expressed, silent):  # type: ignore[no-untyped-def]
    """The slots with and without expression, each in order; returns how many are expressed."""
    n = 0
    for slot in range(values.shape[0]):
        # Written to both lists and kept in one: without a branch, which could not be foreseen.
        expressed[n] = slot
        silent[slot - n] = slot
        n += values[slot] > 0
    return n


@numba.njit(cache=True, nogil=True)
def _cell_key(expressed, n, bits, gene_of_slot, seed):  # type: ignore[no-untyped-def]
    """A 64-bit number from what the cell expresses; a sum, hence without an order."""
    key = np.uint64(0)
    for i in range(n):
        slot = expressed[i]
        key += _mix(((np.uint64(gene_of_slot[slot]) << _32) | np.uint64(bits[slot])) + _GOLDEN)
    return _mix(key ^ _mix(seed + _GOLDEN))


@numba.njit(cache=True, nogil=True)
def _sort_falling(slots, spare, n, bits, tally):  # type: ignore[no-untyped-def]
    """Sort ``slots[:n]`` by falling value, slots of one value in order; returns the sorted array, one of the two.

    A radix sort, from the last digit: positive floats sort as their bits do.
    """
    tally[:] = 0
    for i in range(n):
        word = bits[slots[i]]
        for p in range(_PASSES):
            tally[p, (word >> (_DIGIT_BITS * p)) & (_DIGITS - 1)] += 1
    for p in range(_PASSES):
        shift = _DIGIT_BITS * p
        if tally[p, (bits[slots[0]] >> shift) & (_DIGITS - 1)] == n:
            continue
        place = 0
        for digit in range(_DIGITS - 1, -1, -1):
            count = tally[p, digit]
            tally[p, digit] = place
            place += count
        for i in range(n):
            digit = (bits[slots[i]] >> shift) & (_DIGITS - 1)
            spare[tally[p, digit]] = slots[i]
            tally[p, digit] += 1
        slots, spare = spare, slots
    return slots


@numba.njit(cache=True, nogil=True)
def _logarithms(slots, n, values, raw, target, depth, logs):  # type: ignore[no-untyped-def]
    """Write the log values of the sorted ``slots[:n]`` into ``logs`` [slots]; returns their sum.

    Each distinct value once, from the largest: the sum depends on the values alone, and counts have few distinct ones.
    """
    total, start = 0.0, 0
    while start < n:
        x = values[slots[start]]
        log = np.log1p(x * target / depth) if raw else np.float64(x)
        end = start
        while end < n and values[slots[end]] == x:
            logs[slots[end]] = log
            end += 1
        total += (end - start) * log
        start = end
    return total


@numba.njit(cache=True, nogil=True)
def _select(order, n, silent, bits, key, most, chosen, times):  # type: ignore[no-untyped-def]
    """Write the tokens' slots into ``chosen`` [most], how often each occurs into ``times``; returns how many.

    ``order[:n]`` are the expressed slots by falling value; ``times`` holds ones.
    """
    slots = bits.shape[0]
    if n > most:
        low, high = most - 1, most
        while low > 0 and bits[order[low - 1]] == bits[order[most - 1]]:
            low -= 1
        while high < n and bits[order[high]] == bits[order[most - 1]]:
            high += 1
        chosen[:low] = order[:low]
        _choose(order, low, high, most - low, key, chosen, low)
        return most
    chosen[:n] = order[:n]
    if slots >= most:
        _choose(silent, 0, slots - n, most - n, key, chosen, n)
        return most
    if n == slots:
        return n
    times[n:slots] = 0
    for number in range(most - n):
        times[n + ((_draw(key, number) * np.uint64(slots - n)) >> _32)] += 1
    length = n
    for i in range(slots - n):
        if times[n + i] > 0:
            chosen[length], times[length] = silent[i], times[n + i]
            length += 1
    return length


@numba.njit(cache=True, nogil=True)
def _tokenize(  # type: ignore[no-untyped-def]
    indptr, indices, data, slot_of_column, gene_of_slot, cls_slot, exact, target_sum, seed, values, bits,
    ids, shares, multiplicity, length, cls_value,
):  # fmt: skip
    """Tokenise all rows; returns what is wrong, in which row, and with which entry.

    ``values`` [slots] float32 holds zeros and ``bits`` is the same memory as uint32. ``target_sum`` 0 means none.
    A row without expressed genes is left as it is.
    """
    slots, most = gene_of_slot.shape[0], ids.shape[1]
    expressed, spare, silent = np.empty(slots, np.int32), np.empty(slots, np.int32), np.empty(slots, np.int32)
    logs = np.empty(slots, np.float64)
    tally = np.empty((_PASSES, _DIGITS), np.int32)
    chosen, times = np.empty(most, np.int32), np.empty(most, np.int32)
    for row in range(indptr.shape[0] - 1):
        start, end = indptr[row], indptr[row + 1]
        wrong, entry, depth, largest = _scatter(indices, data, start, end, slot_of_column, values, exact)
        if wrong != _FINE:
            return wrong, row, entry
        n = _split(values, expressed, silent)
        if n == 0:
            continue
        raw = exact or _looks_raw(data, start, end, largest)
        key = _cell_key(expressed, n, bits, gene_of_slot, seed)
        order = _sort_falling(expressed, spare, n, bits, tally)
        if target_sum > 0:
            total = _logarithms(order, n, values, raw, target_sum, depth, logs)
        else:
            total = _logarithms(order, n, values, raw, 1.0, 1.0, logs)
        times[:] = 1
        length[row] = _select(order, n, silent, bits, key, most, chosen, times)
        for i in range(length[row]):
            slot = chosen[i]
            ids[row, i] = gene_of_slot[slot]
            if values[slot] > 0:
                shares[row, i] = 100.0 * logs[slot] / total
            multiplicity[row, i] = times[i]
        if cls_slot >= 0 and values[cls_slot] > 0:
            cls_value[row] = 100.0 * logs[cls_slot] / total
        values[:] = 0
    return _FINE, 0, 0


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
        # The native code does not check its indices.
        assert rows.shape[1] == len(self.genes.columns)
        n, most = rows.shape[0], self.pad_length - 1
        tokens = Tokens(
            np.zeros((n, most), np.int32),
            np.zeros((n, most), np.float32),
            np.zeros((n, most), np.int32),
            np.zeros(n, np.int64),
            np.zeros(n, np.float32),
            np.zeros(n, bool),
        )
        values = np.zeros(len(self._gene_of_slot), np.float32)
        wrong, row, entry = _tokenize(
            rows.indptr, rows.indices, rows.data, self._slot_of_column, self._gene_of_slot, self._cls_slot,
            self.mode == "exact", self.target_sum or 0.0, np.uint64(self.seed), values, values.view(np.uint32),
            tokens.ids, tokens.values, tokens.multiplicity, tokens.length, tokens.cls_value,
        )  # fmt: skip
        if wrong != _FINE:
            self._refuse(wrong, first_row + row, self.genes.columns[rows.indices[entry]], rows.data[entry])
        np.equal(tokens.length, 0, out=tokens.empty)
        return tokens

    def _refuse(self, wrong: int, row: int, gene: str, value: float) -> None:
        place = f"{self.genes.where}: row {row}, gene {gene!r}"
        if wrong == _TWICE:
            raise UserError(
                f"{place}: two entries for one cell and gene; add them up (sum_duplicates) and write again"
            )
        if wrong == _NOT_A_COUNT:
            raise UserError(
                f"{place}: {value:g} is no count; mode exact needs raw counts, mode compat takes log1p too"
            )
        need = "raw counts" if self.mode == "exact" else "raw counts or their log1p, not scaled or corrected values"
        raise UserError(f"{place}: {value:g} is negative or not finite; give {need}")
