"""The native code of SE's tokenizer; what it computes is described in ``state_se_tokens``.

A slot is a matched column's rank by gene id: whatever goes through the slots in order knows no order of columns. A
number's word is its bits as a float32: words of positive numbers sort as the numbers do.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

NOT_A_VALUE, NOT_A_COUNT, TWICE = range(3)

BLOCK = 64
"""Slots are looked through so many at a time."""

_LARGEST_TOTAL = 5_000_000.0

_MOST_DIGIT_BITS = 12
# Whole numbers from here on are no int32.
_WHOLE = np.float32(1 << 31)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_1, _30, _27, _31, _32 = np.uint64(1), np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_ZERO = np.float32(0)


@intrinsic
def _below(typing: Any, array: Any, start: Any, bound: Any) -> Any:
    """Which of ``array[start : start + BLOCK]``, unsigned, are below ``bound``: bit i tells of ``start + i``.

    One comparison of vectors: a loop that sets the bits one by one is not made into one.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = context.make_array(array)(context, builder, arguments[0]).data
        block = ir.VectorType(ir.IntType(array.dtype.bitwidth), BLOCK)
        first = builder.bitcast(builder.gep(numbers, [arguments[1]]), block.as_pointer())
        one = builder.insert_element(ir.Constant(block, ir.Undefined), arguments[2], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), None)
        bounds = builder.shuffle_vector(one, ir.Constant(block, ir.Undefined), everywhere)
        below = builder.icmp_unsigned("<", builder.load(first, align=array.dtype.bitwidth // 8), bounds)
        return builder.bitcast(below, ir.IntType(BLOCK))

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def _lowest(typing: Any, word: Any) -> Any:
    """Number of the lowest bit that is set of a uint64 other than 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def _word(typing: Any, x: Any) -> Any:
    """The word of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _number(typing: Any, word: Any) -> Any:
    """The float32 of a word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@numba.njit(cache=True, nogil=True)
def _mix(z):  # type: ignore[no-untyped-def]
    """The output function of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    z = (z ^ (z >> _30)) * _FIRST_FACTOR
    z = (z ^ (z >> _27)) * _SECOND_FACTOR
    return z ^ (z >> _31)


@numba.njit(cache=True, nogil=True)
def _draw(key, start, draws):  # type: ignore[no-untyped-def]
    """Write the 32-bit random numbers of the stream ``key`` from number ``start`` on into ``draws`` [BLOCK]."""
    for j in range(BLOCK):
        draws[j] = _mix(key + _GOLDEN * np.uint64(start + j + 1)) >> _32


# ------------------------------------------------------------------------------------------------------- reading a row


@numba.njit(cache=True, nogil=True)
def first_spare(slots):  # type: ignore[no-untyped-def]
    """The first of BLOCK slots that take what belongs to no gene: a multiple of BLOCK behind the genes' ``slots``."""
    return (slots + BLOCK - 1) // BLOCK * BLOCK


@numba.njit(cache=True, nogil=True)
def _read(row, words):  # type: ignore[no-untyped-def]
    """Write a row's words; returns whether all are values, whether all are whole, and the largest word."""
    values, whole, largest = True, True, np.uint32(0)
    # No way out of the loop: such are done for many numbers at once.
    for k in range(row.shape[0]):
        x = np.float32(row[k])
        values &= (x >= 0) & (x < np.inf)
        whole &= x == np.floor(x)
        # Adding 0 takes the sign from -0.
        words[k] = _word(x + _ZERO)
        largest = max(largest, words[k])
    return values, whole, largest


@numba.njit(cache=True, nogil=True)
def _scatter(indices, words, slot_of_column, word_of_slot):  # type: ignore[no-untyped-def]
    """Write a row's words into ``word_of_slot``, which holds zeros; returns how many entries are expressed genes."""
    slots = word_of_slot.shape[0] - BLOCK
    n = 0
    for k in range(indices.shape[0]):
        word, slot = words[k], slot_of_column[indices[k]]
        word_of_slot[slot] |= word
        n += (word != 0) & (slot < slots)
    return n


@numba.njit(cache=True, nogil=True)
def _gather(word_of_slot, expressed, words):  # type: ignore[no-untyped-def]
    """Move what is not 0 out of ``word_of_slot``, in order, into slots and words; returns how many."""
    n = 0
    for start in range(0, word_of_slot.shape[0] - BLOCK, BLOCK):
        left = ~_below(word_of_slot, start, np.uint32(1))
        while left:
            slot = np.uint32(start + _lowest(left))
            expressed[n], words[n] = slot, word_of_slot[slot]
            word_of_slot[slot] = 0
            left &= left - _1
            n += 1
    return n


@numba.njit(cache=True, nogil=True)
def what_is_wrong(indices, data, slot_of_column, slots, counts_only):  # type: ignore[no-untyped-def]
    """Of a row with which something is wrong: what it is, and the first entry of which that is true."""
    seen = np.zeros(slots, np.bool_)
    for k in range(data.shape[0]):
        x, slot = np.float32(data[k]), slot_of_column[indices[k]]
        if not (x >= 0 and x < np.inf):
            return NOT_A_VALUE, k
        if counts_only and x != np.floor(x):
            return NOT_A_COUNT, k
        if slot < slots and x > 0:
            if seen[slot]:
                break
            seen[slot] = True
    return TWICE, k


@numba.njit(cache=True, nogil=True)
def _looks_raw(row, largest):  # type: ignore[no-untyped-def]
    """SE's guess whether a row holds counts and not their logarithms.

    Its other test, a value above 35, is contained in the sum: expm1(35) alone exceeds the limit.
    """
    if np.expm1(np.float64(largest)) > _LARGEST_TOTAL:
        return True
    if np.expm1(np.float64(largest)) * row.shape[0] <= _LARGEST_TOTAL:
        return False
    total = 0.0
    for k in range(row.shape[0]):
        total += np.expm1(np.float64(row[k]))
    return total > _LARGEST_TOTAL


@numba.njit(cache=True, nogil=True)
def _depth(row):  # type: ignore[no-untyped-def]
    depth = 0.0
    for k in range(row.shape[0]):
        depth += row[k]
    return depth


# ------------------------------------------------------------------------------------------------------------- sorting


@numba.njit(cache=True, nogil=True)
def _cell_key(expressed, words, n, gene_of_slot, seed):  # type: ignore[no-untyped-def]
    """A 64-bit number from what the cell expresses; a sum, hence without an order."""
    key = np.uint64(0)
    for i in range(n):
        key += _mix(((np.uint64(gene_of_slot[expressed[i]]) << _32) | np.uint64(words[i])) + _GOLDEN)
    return _mix(key ^ _mix(seed + _GOLDEN))


@numba.njit(cache=True, nogil=True)
def _ranks(words, n, whole):  # type: ignore[no-untyped-def]
    """Replace words by what sorts as they do: where all numbers are ``whole`` the number, which has few digits.

    Returns: the largest.
    """
    largest = np.uint32(0)
    for i in range(n):
        if whole:
            words[i] = np.uint32(np.int32(_number(words[i])))
        largest = max(largest, words[i])
    return largest


@numba.njit(cache=True, nogil=True)
def _items(expressed, ranks, n, largest, gene_of_slot, items):  # type: ignore[no-untyped-def]
    """Write (how far below the largest rank, gene) into ``items``; returns all bits that occur in the former."""
    bits = np.uint64(0)
    for i in range(n):
        below = np.uint64(largest - ranks[i])
        bits |= below
        items[i] = (below << _32) | np.uint64(gene_of_slot[expressed[i]])
    return bits


@numba.njit(cache=True, nogil=True)
def _sort(items, spare, n, bits, tally):  # type: ignore[no-untyped-def]
    """Sort ``items[:n]`` by their upper half, equal ones as they are; returns the sorted array, one of the two.

    A radix sort, from the last digit. The items are counted in two halves, so that what is done for one need not wait
    for the other: most numbers of a cell are equal.
    """
    if bits == 0:
        return items
    shift = _lowest(bits)
    width = 0
    while bits >> np.uint64(shift + width):
        width += 1
    passes = (width + _MOST_DIGIT_BITS - 1) // _MOST_DIGIT_BITS
    digit_bits = (width + passes - 1) // passes
    digits = 1 << digit_bits
    mask = np.uint64(digits - 1)
    half = n // 2
    first, second = tally[0, :digits], tally[1, :digits]
    for p in range(passes):
        at = np.uint64(32 + shift + p * digit_bits)
        first[:], second[:] = 0, 0
        for i in range(half):
            first[(items[i] >> at) & mask] += 1
            second[(items[i + half] >> at) & mask] += 1
        if n % 2:
            second[(items[n - 1] >> at) & mask] += 1
        place = 0
        for digit in range(digits):
            one, other = first[digit], second[digit]
            first[digit] = place
            second[digit] = place + one
            place += one + other
        for i in range(half):
            item, other = items[i], items[i + half]
            digit, other_digit = (item >> at) & mask, (other >> at) & mask
            spare[first[digit]] = item
            first[digit] += 1
            spare[second[other_digit]] = other
            second[other_digit] += 1
        if n % 2:
            item = items[n - 1]
            spare[second[(item >> at) & mask]] = item
        items, spare = spare, items
    return items


@numba.njit(cache=True, nogil=True)
def _runs(items, n, largest, ranks, ends):  # type: ignore[no-untyped-def]
    """Write the distinct ranks of the sorted items and where each one's items end; returns how many."""
    runs = 0
    for i in range(n):
        ranks[runs] = np.uint32(np.uint64(largest) - (items[i] >> _32))
        ends[runs] = i + 1
        runs += (i + 1 < n) and (items[i] >> _32) != (items[i + 1] >> _32)
    return runs + 1


# ------------------------------------------------------------------------------------------------------------ choosing


@numba.njit(cache=True, nogil=True)
def _choose(count, wanted, key, chosen, draws):  # type: ignore[no-untyped-def]
    """Choose ``wanted`` of the numbers below ``count``, each set equally likely, rising, into ``chosen``.

    Each is taken with probability wanted / remaining (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S);
    in integers, so that exactly ``wanted`` are taken.
    """
    at, limit = 0, np.uint64(wanted) << _32
    for start in range(0, count, BLOCK):
        if limit == 0:
            break
        _draw(key, start, draws)
        for j in range(BLOCK):
            draws[j] *= np.uint64(count - start - j)
        # The limit only falls, and is 0 at ``count``: what is not below it here never will be.
        left = _below(draws, 0, limit)
        while left:
            j = _lowest(left)
            left &= left - _1
            if draws[j] < limit:
                chosen[at] = start + j
                at += 1
                limit -= _1 << _32


@numba.njit(cache=True, nogil=True)
def _silent_genes(numbers, n_numbers, expressed, n, gene_of_slot, genes):  # type: ignore[no-untyped-def]
    """Write the genes of the silent slots with the rising ``numbers`` into ``genes``."""
    before = 0
    for i in range(n_numbers):
        while before < n and expressed[before] <= numbers[i] + before:
            before += 1
        genes[i] = gene_of_slot[numbers[i] + before]


@numba.njit(cache=True, nogil=True)
def _fill_up(expressed, n, gene_of_slot, key, genes, times, chosen, draws):  # type: ignore[no-untyped-def]
    """Write silent genes from ``n`` on into ``genes``, how often each occurs into ``times``; returns the length."""
    silent, most = gene_of_slot.shape[0] - n, genes.shape[0]
    if n + silent >= most:
        _choose(silent, most - n, key, chosen, draws)
        _silent_genes(chosen, most - n, expressed, n, gene_of_slot, genes[n:])
        return most
    if silent == 0:
        return n
    times[n : n + silent] = 0
    for start in range(0, most - n, BLOCK):
        _draw(key, start, draws)
        for j in range(min(BLOCK, most - n - start)):
            times[n + ((draws[j] * np.uint64(silent)) >> _32)] += 1
    found = 0
    for i in range(silent):
        if times[n + i] > 0:
            chosen[found], times[n + found] = i, times[n + i]
            found += 1
    _silent_genes(chosen, found, expressed, n, gene_of_slot, genes[n:])
    return n + found


# ------------------------------------------------------------------------------------------------------------ all rows


@numba.njit(cache=True, nogil=True)
def _log(x, raw, target, depth):  # type: ignore[no-untyped-def]
    return np.log1p(x * target / depth) if raw else np.float64(x)


@numba.njit(cache=True, nogil=True)
def tokenize(  # type: ignore[no-untyped-def]
    indptr, indices, data, slot_of_column, gene_of_slot, cls_slot, exact, target_sum, seed,
    ids, shares, multiplicity, length, cls_value,
):  # fmt: skip
    """Tokenise all rows; returns the number of the first row with which something is wrong, -1 for none.

    ``slot_of_column`` is uint32; columns without a gene have a slot among the BLOCK ones from :func:`first_spare` on.
    ``target_sum`` 0 means none.
    """
    room, most, longest = first_spare(gene_of_slot.shape[0]), ids.shape[1], 0
    for number in range(indptr.shape[0] - 1):
        longest = max(longest, indptr[number + 1] - indptr[number])
    word_of_slot, words = np.zeros(room + BLOCK, np.uint32), np.empty(longest, np.uint32)
    ranks = np.empty(room, np.uint32)
    expressed, ends = np.empty(room, np.uint32), np.empty(room, np.int32)
    items, spare = np.empty(room, np.uint64), np.empty(room, np.uint64)
    logs = np.empty(room, np.float64)
    tally = np.empty((2, 1 << _MOST_DIGIT_BITS), np.int32)
    chosen = np.empty(most, np.int32)
    draws = np.empty(BLOCK, np.uint64)
    for number in range(indptr.shape[0] - 1):
        row = data[indptr[number] : indptr[number + 1]]
        columns = indices[indptr[number] : indptr[number + 1]]
        genes, values, times = ids[number], shares[number], multiplicity[number]

        fine, whole, largest = _read(row, words)
        if not fine or (exact and not whole):
            return number
        positive = _scatter(columns, words, slot_of_column, word_of_slot)
        cls_x = _number(word_of_slot[cls_slot]) if cls_slot >= 0 else _ZERO
        n = _gather(word_of_slot, expressed, ranks)
        if n != positive:
            return number
        if n == 0:
            genes[:], values[:], times[:] = 0, 0, 0
            continue

        key = _cell_key(expressed, ranks, n, gene_of_slot, seed)
        whole &= _number(largest) < _WHOLE
        top = _ranks(ranks, n, whole)
        bits = _items(expressed, ranks, n, top, gene_of_slot, items)
        order = _sort(items, spare, n, bits, tally)
        runs = _runs(order, n, top, ranks, ends)

        raw = exact or _looks_raw(row, _number(largest))
        target, depth = 1.0, 1.0
        if target_sum > 0:
            target, depth = target_sum, _depth(row)
        # Each distinct number once, from the largest: the sum depends on the numbers alone, and counts have few.
        total, start = 0.0, 0
        for run in range(runs):
            x = np.float32(ranks[run]) if whole else _number(ranks[run])
            logs[run] = _log(x, raw, target, depth)
            total += (ends[run] - start) * logs[run]
            start = ends[run]

        kept = min(n, most)
        start = 0
        for run in range(runs):
            end = min(ends[run], kept)
            share = np.float32(100.0 * logs[run] / total)
            for i in range(start, end):
                values[i] = share
            if ends[run] >= kept:
                break
            start = end
        values[kept:] = 0
        for i in range(kept):
            genes[i] = np.int32(order[i])
        times[:] = 1
        used = kept
        if n > most:
            # The last number's run began at ``start``: of those equal to it some have no place.
            _choose(ends[run] - start, most - start, key, chosen, draws)
            for i in range(start, most):
                genes[i] = np.int32(order[start + chosen[i - start]])
        elif n < most:
            used = _fill_up(expressed, n, gene_of_slot, key, genes, times, chosen, draws)
            genes[used:], times[used:] = 0, 0
        length[number] = used
        if cls_x > 0:
            cls_value[number] = 100.0 * _log(cls_x, raw, target, depth) / total
    return -1
