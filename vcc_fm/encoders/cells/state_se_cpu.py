"""SE's network on a CPU in float32, in native code: a cell from its tokens to its vectors.

States are kept transposed, [channels, tokens], with a token on a lane of a vector register from the first layer to the
last: so layer norm, softmax and GELU are sums and maxima of whole registers, and all matrix products are the same few
lines of ``simd.product``, whose right factor has tokens for columns. After attention a layer goes through 48 tokens at
a time, which stay in the fastest cache. Nothing knows of another cell: neighbours, threads and the number of cells
change no bit.

Up to rounding this is what ``state_se_model`` describes and computes with torch. Powers are of 2, and queries and
logarithms are scaled accordingly; values are binned by a broken line, see ``state_se_cpu_weights``.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from vcc_fm.encoders.cells.simd import LANES, fill, fma, larger, load, product, root, scale, store
from vcc_fm.encoders.cells.state_se_cpu_weights import MULTIPLE

# Of simd.py and state_se_cpu_weights.py, whose code and numbers are compiled into what is here: numba's cache looks at
# this file alone, and would keep what was compiled from others.
COMPILED_IN = "b08975b172030bcf"

# Tokens whose states go through a layer together, and keys whose scores with these are in memory at a time: 30 KB.
_QUERIES, _KEYS = 3 * LANES, 160
# CLS and data set, which stand before the gene tokens.
_SPECIAL = 2
_NORM_EPS, _UNIT_EPS = np.float32(1e-5), 1e-12

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LOG2E = np.float32(math.log2(math.e))
_LOWEST = np.float32(-127)  # 2 to it is 0 here, see scale
# float32 near 1.5 * 2 ** 23 are whole numbers: adding this rounds, and leaves a number + 127 in the lowest bits.
_ROUND = np.float32(1.5 * 2**23 + 127)
# Polynomials through Chebyshev nodes, the highest power first: 2 ** x for |x| <= 1/2, to 1.1e-7 of itself;
_EXP2 = (0.00133908634, 0.00967603192, 0.0555035711, 0.240221075, 0.693147188, 1.00000008)
# and erfc(x / sqrt(2)) / 2 * exp(x ** 2 / 2) / t in t = 1 / (1 + 0.4 * x), for x >= 0, to 1.4e-7 of itself.
_NEAR = np.float32(0.4)
_TAIL = (
    0.0287808788, -0.159455318, 0.34504184, -0.329816525, 0.0878758434,
    -0.012923906, 0.0876406286, 0.133692323, 0.15958738, 0.15957686,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ of lanes


@numba.njit(cache=True, nogil=True)
def _polynomial(coefficients, x):  # type: ignore[no-untyped-def]
    value = fill(np.float32(coefficients[0]))
    for i in range(1, len(coefficients)):
        value = fma(value, x, fill(np.float32(coefficients[i])))
    return value


@numba.njit(cache=True, nogil=True)
def _exp2(x):  # type: ignore[no-untyped-def]
    """2 ** x, within 3e-7 of itself, for x up to 0; exactly 0 below -126.5."""
    x = larger(x, fill(_LOWEST))
    shifted = x + fill(_ROUND)
    return scale(_polynomial(_EXP2, x - (shifted - fill(_ROUND))), shifted)


@numba.njit(cache=True, nogil=True)
def _gelu(x):  # type: ignore[no-untyped-def]
    """The product of x and P(X < x), X standard normal, to 1e-7 beside |x|: max(x, 0) - |x| * P(X < -|x|)."""
    size = larger(x, fill(_ZERO) - x)
    t = fill(_ONE) / fma(size, fill(_NEAR), fill(_ONE))
    tail = _polynomial(_TAIL, t) * t * _exp2(size * size * fill(-_HALF * _LOG2E))
    return larger(x, fill(_ZERO)) - size * tail


# ------------------------------------------------------------------------------------------------- of states, in place


@numba.njit(cache=True, nogil=True)
def _set(states, number):  # type: ignore[no-untyped-def]
    for channel in range(states.shape[0]):
        for at in range(0, states.shape[1], LANES):
            store(fill(number), states, channel, at)


@numba.njit(cache=True, nogil=True)
def _normalise(states, scale_shift):  # type: ignore[no-untyped-def]
    """Layer norm of [width, n]."""
    width = states.shape[0]
    share = fill(np.float32(1 / width))
    for at in range(0, states.shape[1], LANES):
        total, squares = fill(_ZERO), fill(_ZERO)
        for channel in range(width):
            total = total + load(states, channel, at)
        mean = total * share
        for channel in range(width):
            apart = load(states, channel, at) - mean
            squares = fma(apart, apart, squares)
        factor = fill(_ONE) / root(fma(squares, share, fill(_NORM_EPS)))
        for channel in range(width):
            apart = (load(states, channel, at) - mean) * factor
            store(fma(apart, fill(scale_shift[0, channel]), fill(scale_shift[1, channel])), states, channel, at)


@numba.njit(cache=True, nogil=True)
def _activate(states, gelu):  # type: ignore[no-untyped-def]
    """GELU or ReLU."""
    for channel in range(states.shape[0]):
        for at in range(0, states.shape[1], LANES):
            x = load(states, channel, at)
            store(_gelu(x) if gelu else larger(x, fill(_ZERO)), states, channel, at)


@numba.njit(cache=True, nogil=True)
def _weigh(scores, attended, most, total):  # type: ignore[no-untyped-def]
    """Scores [keys, n] to powers of 2 below the largest so far; what was summed up before is made to fit."""
    for at in range(0, scores.shape[1], LANES):
        before = load(most, 0, at)
        # Two chains, that one need not wait for the other.
        now, other = before, before
        for key in range(0, scores.shape[0], 2):
            now, other = larger(now, load(scores, key, at)), larger(other, load(scores, key + 1, at))
        now = larger(now, other)
        factor = _exp2(before - now)
        summed = load(total, 0, at) * factor
        for key in range(scores.shape[0]):
            power = _exp2(load(scores, key, at) - now)
            summed = summed + power
            store(power, scores, key, at)
        for channel in range(attended.shape[0]):
            store(load(attended, channel, at) * factor, attended, channel, at)
        store(now, most, 0, at)
        store(summed, total, 0, at)


@numba.njit(cache=True, nogil=True)
def _attend(attended, queries, keys, values, key_bias, scores, most, total):  # type: ignore[no-untyped-def]
    """Softmax attention of one head, a block of keys at a time (Milakov and Gimelshein 2018, arXiv 1805.02867).

    ``attended`` and ``queries`` are [channels, n], ``keys`` and ``values`` [channels, keys], scores in powers of 2.
    """
    blocks = (keys.shape[1] + _KEYS - 1) // _KEYS
    step = (keys.shape[1] // MULTIPLE + blocks - 1) // blocks * MULTIPLE
    none = np.zeros(attended.shape[0], np.float32)
    _set(attended, _ZERO)
    _set(most, -np.float32(np.inf))
    _set(total, _ZERO)
    for start in range(0, keys.shape[1], step):
        end = min(start + step, keys.shape[1])
        block = scores[: end - start, : queries.shape[1]]
        product(block, keys[:, start:end].T, queries, key_bias[start:end], False)
        _weigh(block, attended, most, total)
        product(attended, values[:, start:end], block, none, True)
    for at in range(0, attended.shape[1], LANES):
        factor = fill(_ONE) / load(total, 0, at)
        for channel in range(attended.shape[0]):
            store(load(attended, channel, at) * factor, attended, channel, at)


# -------------------------------------------------------------------------------------------------------------- a cell


@numba.njit(cache=True, nogil=True)
def _logits(weights, value, logits):  # type: ignore[no-untyped-def]
    """Write a value's logits of the bins, less the largest, in powers of 2."""
    low, high = 0, weights.bends.shape[0]
    while low < high:
        middle = (low + high) // 2
        if weights.bends[middle] < value:
            low = middle + 1
        else:
            high = middle
    largest = -np.inf
    for i in range(logits.shape[0]):
        largest = max(largest, weights.slopes[low, i] * value + weights.offsets[low, i])
    for i in range(logits.shape[0]):
        logits[i] = (weights.slopes[low, i] * value + weights.offsets[low, i] - largest) * _LOG2E


@numba.njit(cache=True, nogil=True)
def _enter(weights, ids, values, cls_value, states, shares):  # type: ignore[no-untyped-def]
    """Write a cell's tokens with their values' bins into ``states``; ``shares`` [bins, n] is overwritten."""
    _set(states, _ZERO)
    _set(shares, _ZERO)
    _logits(weights, cls_value, shares[:, 0])
    for i in range(ids.shape[0]):
        _logits(weights, values[i], shares[:, _SPECIAL + i])
    # Arrays are not assigned to each other: the check of their shapes takes seconds to compile.
    for channel in range(states.shape[0]):
        for special in range(_SPECIAL):
            states[channel, special] = weights.special_tokens[special, channel]
    for i in range(ids.shape[0]):
        gene = ids[i]
        for channel in range(states.shape[0]):
            states[channel, _SPECIAL + i] = weights.gene_tokens[gene, channel]
    for at in range(0, shares.shape[1], LANES):
        total = fill(_ZERO)
        for i in range(shares.shape[0]):
            power = _exp2(load(shares, i, at))
            total = total + power
            store(power, shares, i, at)
        factor = fill(_ONE) / total
        for i in range(shares.shape[0]):
            store(load(shares, i, at) * factor, shares, i, at)
    # The data set bears no value, not even 0, nor do places without a token.
    shares[:, 1] = 0
    shares[:, _SPECIAL + ids.shape[0] :] = 0
    product(states, weights.bins, shares, np.zeros(states.shape[0], np.float32), True)


@numba.njit(cache=True, nogil=True)
def _layer(weights, number, states, kept, keys, key_bias, qkv, attended, hidden, scores, most, total):  # type: ignore[no-untyped-def]
    """A layer, in place, for the first ``kept`` places of ``states``; the first ``keys`` are attended to."""
    width = states.shape[0]
    channels = width // weights.heads
    weight, bias = weights.qkv[number], weights.qkv_bias[number]
    product(qkv[:width, :kept], weight[:width], states[:, :kept], bias[:width], False)
    product(qkv[width:], weight[width:], states, bias[width:], False)
    for start in range(0, kept, _QUERIES):
        end = min(start + _QUERIES, kept)
        own, found, inner = states[:, start:end], attended[:, : end - start], hidden[:, : end - start]
        for first in range(0, width, channels):
            _attend(
                found[first : first + channels],
                qkv[first : first + channels, start:end],
                qkv[width + first : width + first + channels, :keys],
                qkv[2 * width + first : 2 * width + first + channels, :keys],
                key_bias, scores, most[:, : end - start], total[:, : end - start],
            )  # fmt: skip
        product(own, weights.out[number], found, weights.out_bias[number], True)
        _normalise(own, weights.norm1[number])
        product(inner, weights.up[number], own, weights.up_bias[number], False)
        _activate(inner, True)
        product(own, weights.down[number], inner, weights.down_bias[number], True)
        _normalise(own, weights.norm2[number])


@numba.njit(cache=True, nogil=True)
def _decode(weights, states, cell, dataset):  # type: ignore[no-untyped-def]
    """From the states [width, LANES] of the first tokens to the two vectors."""
    wide = np.empty((weights.wide.shape[0], LANES), np.float32)
    product(wide, weights.wide, states, weights.wide_bias, False)
    _activate(wide, False)
    product(states, weights.narrow, wide, weights.narrow_bias, True)
    _normalise(states, weights.norm)
    decoded = np.empty((weights.cell.shape[0], LANES), np.float32)
    product(decoded, weights.cell, states, weights.cell_bias, False)
    datasets = np.empty((weights.dataset.shape[0], LANES), np.float32)
    product(datasets, weights.dataset, decoded, weights.dataset_bias, False)
    squares = 0.0
    for i in range(cell.shape[0]):
        squares += np.float64(decoded[i, 0]) ** 2
    length = max(np.sqrt(squares), _UNIT_EPS)
    for i in range(cell.shape[0]):
        cell[i] = decoded[i, 0] / length
    for i in range(dataset.shape[0]):
        dataset[i] = datasets[i, 1]


@numba.njit(cache=True, nogil=True)
def embed(weights, ids, values, cls_value, key_bias, cells, datasets):  # type: ignore[no-untyped-def]
    """Compute ``StateSe.forward`` of b cells with t gene tokens each.

    Args:
        weights: ``CpuWeights``.
        ids: [b, t] int64 rows of the gene tokens, which are not checked.
        values: [b, t] float32.
        cls_value: [b] float32.
        key_bias: [b, t] float32, -inf for places without a token.
        cells: [b, output] float32, written.
        datasets: [b, dataset_width] float32, written.
    """
    tokens = _SPECIAL + ids.shape[1]
    width, layers = weights.out.shape[1], weights.out.shape[0]
    keys = (tokens + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    vectors = (tokens + LANES - 1) // LANES
    places = vectors * LANES
    # An odd number of cache lines: rows a power of two apart would all want the same place in the cache.
    room = (vectors | 1) * LANES
    states = np.empty((width, room), np.float32)[:, :places]
    shares = np.empty((weights.bins.shape[1], room), np.float32)[:, :places]
    qkv = np.empty((3 * width, room), np.float32)[:, :places]
    attended = np.empty((width, _QUERIES), np.float32)
    hidden = np.empty((weights.up.shape[1], _QUERIES), np.float32)
    scores = np.empty((_KEYS, _QUERIES), np.float32)
    most, total = np.empty((1, _QUERIES), np.float32), np.empty((1, _QUERIES), np.float32)
    bias = np.full(keys, -np.float32(np.inf))
    bias[:_SPECIAL] = 0
    for cell in range(ids.shape[0]):
        _enter(weights, ids[cell], values[cell], cls_value[cell], states, shares)
        for i in range(ids.shape[1]):
            bias[_SPECIAL + i] = key_bias[cell, i] * _LOG2E
        for number in range(layers):
            kept = places if number + 1 < layers else LANES
            _layer(weights, number, states, kept, keys, bias, qkv, attended, hidden, scores, most, total)
        _decode(weights, states[:, :LANES], cells[cell], datasets[cell])
