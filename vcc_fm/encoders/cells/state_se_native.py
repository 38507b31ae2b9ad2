"""The native code of SE's tokenizer; what it computes is described in ``state_se_tokens``.

A slot is a matched column's rank by gene id: whatever goes through the slots in order knows no order of columns. A
number's word is its bits as a float32: words of positive numbers sort as the numbers do. An item holds, in the halves
of a uint64, how far a word is below the largest possible one, and a slot: sorted, items go from the largest number to
the smallest, equal ones by gene id.
"""

from __future__ import annotations

import numba
import numpy as np

FINE, NOT_A_VALUE, NOT_A_COUNT, TWICE = range(4)

_LARGEST_TOTAL = 5_000_000.0

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_DIGIT_BITS = 11
_DIGIT = np.uint64((1 << _DIGIT_BITS) - 1)
_LOWER_HALF = np.uint64(0xFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def _mix(z):  # type: ignore[no-untyped-def]
    """The output function of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    z = (z ^ (z >> _30)) * _FIRST_FACTOR
    z = (z ^ (z >> _27)) * _SECOND_FACTOR
    return z ^ (z >> _31)


@numba.njit(cache=True, nogil=True)
def _draw(key, number):  # type: ignore[no-untyped-def]
    """The 32-bit random number ``number`` of the stream ``key``."""
    return _mix(key + _GOLDEN * np.uint64(number + 1)) >> _32


@numba.njit(cache=True, nogil=True)
def _read(columns, row, slot_of_column, counts_only, items, expressed):  # type: ignore[no-untyped-def]
    """Write the items of a row, unsorted; of ``expressed`` [slots], all False, those of its slots become True.

    Returns: what is wrong and with which entry, or ``FINE`` and the number of items.
    """
    n = 0
    for k in range(row.shape[0]):
        x, slot = np.float32(row[k]), slot_of_column[columns[k]]
        if not (x >= 0 and x < np.inf):
            return NOT_A_VALUE, k
        if counts_only and x != np.floor(x):
            return NOT_A_COUNT, k
        if slot >= 0 and x > 0:
            if expressed[slot]:
                return TWICE, k
            expressed[slot] = True
            items[n] = ((_LOWER_HALF - np.uint64(x.view(np.uint32))) << _32) | np.uint64(slot)
            n += 1
    return FINE, n


@numba.njit(cache=True, nogil=True)
def _sort(items, spare):  # type: ignore[no-untyped-def]
    """Sort the items; returns the sorted array, one of the two: a radix sort, from the last digit."""
    for shift in range(0, 64, _DIGIT_BITS):
        at = np.uint64(shift)
        tally = np.zeros(1 << _DIGIT_BITS, np.int32)
        for item in items:
            tally[(item >> at) & _DIGIT] += 1
        if tally[(items[0] >> at) & _DIGIT] == items.shape[0]:
            continue
        ends = np.cumsum(tally)
        for item in items[::-1]:
            digit = (item >> at) & _DIGIT
            ends[digit] -= 1
            spare[ends[digit]] = item
        items, spare = spare, items
    return items


@numba.njit(cache=True, nogil=True)
def _key(items, gene_of_slot, seed):  # type: ignore[no-untyped-def]
    """A 64-bit number from what the cell expresses; a sum, hence without an order."""
    key = np.uint64(0)
    for item in items:
        gene = np.uint64(gene_of_slot[item & _LOWER_HALF])
        key += _mix(((gene << _32) | (_LOWER_HALF - (item >> _32))) + _GOLDEN)
    return _mix(key ^ _mix(seed + _GOLDEN))


@numba.njit(cache=True, nogil=True)
def _looks_raw(row):  # type: ignore[no-untyped-def]
    """SE's guess whether a row holds counts and not their logarithms.

    Its other test, a value above 35, is contained in the sum: expm1(35) alone exceeds the limit.
    """
    largest, total = np.float32(0), 0.0
    for k in range(row.shape[0]):
        largest = max(largest, np.float32(row[k]))
    least = np.expm1(np.float64(largest))
    if not least <= _LARGEST_TOTAL < least * row.shape[0]:
        return least > _LARGEST_TOTAL
    for k in range(row.shape[0]):
        total += np.expm1(np.float64(row[k]))
    return total > _LARGEST_TOTAL


@numba.njit(cache=True, nogil=True)
def _logs(items, row, exact, target_sum, logs):  # type: ignore[no-untyped-def]
    """Write the logarithm of each item's number; returns their sum.

    Each distinct number once, from the largest: the sum depends on the numbers alone.
    """
    raw = exact or _looks_raw(row)
    target, depth = 1.0, 1.0
    if target_sum > 0:
        target, depth = target_sum, 0.0
        for k in range(row.shape[0]):
            depth += row[k]
    total, start = 0.0, 0
    for end in range(1, items.shape[0] + 1):
        if end == items.shape[0] or items[end] >> _32 != items[start] >> _32:
            x = np.uint32(_LOWER_HALF - (items[start] >> _32)).view(np.float32)
            logs[start:end] = np.log1p(x * target / depth) if raw else np.float64(x)
            total += (end - start) * logs[start]
            start = end
    return total


@numba.njit(cache=True, nogil=True)
def _choose(count, wanted, key, chosen):  # type: ignore[no-untyped-def]
    """Choose ``wanted`` of the numbers below ``count``, each set equally likely, rising, into ``chosen``.

    Each is taken with probability wanted / remaining (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S);
    in integers, so that exactly ``wanted`` are taken.
    """
    at = 0
    for number in range(count):
        if at == wanted:
            break
        if _draw(key, number) * np.uint64(count - number) < np.uint64(wanted - at) << _32:
            chosen[at] = number
            at += 1


@numba.njit(cache=True, nogil=True)
def _cut(items, gene_of_slot, key, genes, chosen):  # type: ignore[no-untyped-def]
    """Choose among those items that equal the last one that has a place in ``genes``, of which some have none."""
    most = genes.shape[0]
    equal = np.flatnonzero(items >> _32 == items[most - 1] >> _32)
    start = equal[0]
    _choose(equal.shape[0], most - start, key, chosen)
    for i in range(start, most):
        genes[i] = gene_of_slot[items[start + chosen[i - start]] & _LOWER_HALF]


@numba.njit(cache=True, nogil=True)
def _fill_up(n, expressed, gene_of_slot, key, genes, times, chosen):  # type: ignore[no-untyped-def]
    """Write silent genes from ``n`` on into ``genes``, how often each occurs into ``times``; returns the length."""
    silent, most = np.flatnonzero(~expressed), genes.shape[0]
    if gene_of_slot.shape[0] >= most:
        _choose(silent.shape[0], most - n, key, chosen)
        for i in range(n, most):
            genes[i], times[i] = gene_of_slot[silent[chosen[i - n]]], 1
        return most
    if silent.shape[0] > 0:
        for number in range(most - n):
            times[n + ((_draw(key, number) * np.uint64(silent.shape[0])) >> _32)] += 1
    used = n
    for i in range(silent.shape[0]):
        if times[n + i] > 0:
            genes[used], times[used] = gene_of_slot[silent[i]], times[n + i]
            used += 1
    times[used:] = 0
    return used


@numba.njit(cache=True, nogil=True)
def tokenize(  # type: ignore[no-untyped-def]
    indptr, indices, data, slot_of_column, gene_of_slot, cls_slot, exact, target_sum, seed,
    ids, shares, multiplicity, length, cls_value,
):  # fmt: skip
    """Tokenise all rows into arrays that hold zeros.

    ``slot_of_column`` is -1 for columns without a gene, ``cls_slot`` for no value at CLS; ``target_sum`` 0 means none.

    Returns: what is wrong first, in which row, with which of its entries; or ``FINE`` and two numbers without meaning.
    """
    slots, most = gene_of_slot.shape[0], ids.shape[1]
    all_items, spare = np.empty(slots, np.uint64), np.empty(slots, np.uint64)
    logs, expressed = np.empty(slots, np.float64), np.zeros(slots, np.bool_)
    chosen = np.empty(most, np.int32)
    for number in range(indptr.shape[0] - 1):
        entries = slice(indptr[number], indptr[number + 1])
        wrong, n = _read(indices[entries], data[entries], slot_of_column, exact, all_items, expressed)
        if wrong != FINE:
            return wrong, number, n
        if n == 0:
            continue
        items, genes, times = _sort(all_items[:n], spare[:n]), ids[number], multiplicity[number]
        key = _key(items, gene_of_slot, seed)
        total = _logs(items, data[entries], exact, target_sum, logs)
        used = min(n, most)
        for i in range(used):
            genes[i], times[i] = gene_of_slot[items[i] & _LOWER_HALF], 1
            shares[number, i] = 100.0 * logs[i] / total
        if n > most:
            _cut(items, gene_of_slot, key, genes, chosen)
        elif n < most:
            used = _fill_up(n, expressed, gene_of_slot, key, genes, times, chosen)
        length[number] = used
        for i in range(n):
            slot = np.int64(items[i] & _LOWER_HALF)
            expressed[slot] = False
            if slot == cls_slot:
                cls_value[number] = 100.0 * logs[i] / total
    return FINE, 0, 0
