"""Vector registers for numba: a type of LANES float32, its arithmetic, and the inner part of a matrix product.

What numba's optimiser makes of a loop depends on its version and on how arrays lie in memory; here the code says which
numbers are computed beside each other and in which order they are summed, so a result is the same wherever it lies.
LLVM fits the vectors to the processor: a register of AVX-512, two of AVX2, four of NEON.

numba's cache does not see that code compiled into a function has changed: the file that uses this one holds a checksum
of it, and a test compares them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
_FEATURES = get_host_cpu_features() if numba.config.CPU_FEATURES is None else numba.config.CPU_FEATURES
WIDE = "+avx2" in _FEATURES and not numba.config.DISABLE_JIT
"""Whether this is worth while: with registers of four numbers torch is faster; NEON has not been measured."""
ROWS, VECTORS = (8, 3) if "+avx512f" in _FEATURES else (4, 1)
"""A tile of a matrix product: ROWS x VECTORS sums that stay in registers, of which AVX-512 has 32 and AVX2 16."""

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_WORDS = ir.VectorType(_INT, LANES)
# A product and a sum may become one instruction with one rounding; nothing else may be rearranged.
_FUSED = ("contract",)


class _Lanes(types.Type):
    """LANES float32 in a register; never outside of compiled code."""

    def __init__(self) -> None:
        super().__init__("Lanes")


lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, _VECTOR)


# ----------------------------------------------------------------------------------------------------- in LLVM's terms


class _Array:
    """A float32 array with any strides, seen from LLVM."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder = builder
        self.first = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.strides = cgutils.unpack_tuple(builder, array.strides)
        self.shape = cgutils.unpack_tuple(builder, array.shape)

    def _at(self, place: tuple[Any, ...], kind: Any) -> Any:
        pointer = self.first
        for index, stride in zip(place, self.strides, strict=True):
            pointer = self.builder.gep(pointer, [self.builder.mul(index, stride)])
        return self.builder.bitcast(pointer, kind.as_pointer())

    def number(self, *place: Any) -> Any:
        """The number at ``place``, on every lane."""
        return _everywhere(self.builder, self.builder.load(self._at(place, _FLOAT)))

    def load(self, row: Any, column: Any) -> Any:
        """LANES numbers of a row."""
        return self.builder.load(self._at((row, column), _VECTOR), align=4)

    def store(self, value: Any, row: Any, column: Any) -> None:
        """Write LANES numbers of a row."""
        self.builder.store(value, self._at((row, column), _VECTOR), align=4)


def _everywhere(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(nothing, number, ir.Constant(_INT, 0)), nothing, ir.Constant(_WORDS, None)
    )


def _times_plus(builder: Any, one: Any, other: Any, more: Any) -> Any:
    return builder.fadd(builder.fmul(one, other, flags=_FUSED), more, flags=_FUSED)


# ---------------------------------------------------------------------------------------------------- in numba's terms


@intrinsic
def load(typing: Any, matrix: Any, row: Any, column: Any) -> Any:
    """``matrix[row, column : column + LANES]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _Array(context, builder, matrix, arguments[0]).load(*arguments[1:])

    return lanes(matrix, types.intp, types.intp), generate


@intrinsic
def store(typing: Any, value: Any, matrix: Any, row: Any, column: Any) -> Any:
    """``matrix[row, column : column + LANES] = value``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Array(context, builder, matrix, arguments[1]).store(arguments[0], *arguments[2:])
        return context.get_dummy_value()

    return types.void(lanes, matrix, types.intp, types.intp), generate


@intrinsic
def fill(typing: Any, number: Any) -> Any:
    """``number`` on every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _everywhere(builder, arguments[0])

    return lanes(types.float32), generate


@intrinsic
def fma(typing: Any, one: Any, other: Any, more: Any) -> Any:
    """``one * other + more``, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _times_plus(builder, *arguments)

    return lanes(lanes, lanes, lanes), generate


@intrinsic
def larger(typing: Any, one: Any, other: Any) -> Any:
    """The larger on each lane; ``one`` where that is no number, so that it is not hidden."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second = arguments
        return builder.select(builder.fcmp_ordered(">", second, first), second, first)

    return lanes(lanes, lanes), generate


@intrinsic
def root(typing: Any, value: Any) -> Any:
    """The square root on each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_VECTOR, [_VECTOR])
        called = cgutils.get_or_insert_function(builder.module, function, f"llvm.sqrt.v{LANES}f32")
        return builder.call(called, arguments)

    return lanes(lanes), generate


@intrinsic
def scale(typing: Any, value: Any, shifted: Any) -> Any:
    """``value * 2 ** n`` for the whole number n >= -127 that is in the lowest bits of ``shifted``: see :func:`exp2`.

    n + 127, moved to where a float32 has its exponent, is 2 ** n, and 0 for n = -127.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = ir.Constant(_WORDS, [23] * LANES)
        power = builder.shl(builder.bitcast(arguments[1], _WORDS), place)
        return builder.fmul(arguments[0], builder.bitcast(power, _VECTOR))

    return lanes(lanes, lanes), generate


def _operator(function: Callable[..., Any], instruction: Callable[..., Any]) -> None:
    @intrinsic
    def compute(typing: Any, one: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return instruction(builder, *arguments)

        return lanes(lanes, lanes), generate

    @overload(function, strict=False)
    def between_lanes(one: Any, other: Any) -> Any:
        if one is lanes and other is lanes:
            return lambda one, other: compute(one, other)
        return None


_operator(operator.add, ir.IRBuilder.fadd)
_operator(operator.sub, ir.IRBuilder.fsub)
_operator(operator.mul, ir.IRBuilder.fmul)
_operator(operator.truediv, ir.IRBuilder.fdiv)


# ----------------------------------------------------------------------------------------------------- matrix products


def _tile(vectors: int) -> Any:
    """ROWS x (``vectors`` * LANES) numbers of :func:`product`, from ``row`` and ``column`` on."""

    @intrinsic
    def compute(typing: Any, out: Any, left: Any, right: Any, bias: Any, onto: Any, row: Any, column: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            result, factors, columns, biases = (
                _Array(context, builder, kind, value)
                for kind, value in zip(signature.args[:4], arguments[:4], strict=True)
            )
            adds, first_row, first_column = arguments[4:]
            rows = [builder.add(first_row, ir.Constant(_LONG, i)) for i in range(ROWS)]
            places = [builder.add(first_column, ir.Constant(_LONG, j * LANES)) for j in range(vectors)]
            # Variables in memory until LLVM finds that registers will do.
            sums = {(i, j): cgutils.alloca_once(builder, _VECTOR) for i in range(ROWS) for j in range(vectors)}
            for (i, _), total in sums.items():
                builder.store(biases.number(rows[i]), total)
            with builder.if_then(adds):
                for (i, j), total in sums.items():
                    builder.store(builder.fadd(builder.load(total), result.load(rows[i], places[j])), total)
            with cgutils.for_range(builder, columns.shape[0]) as loop:
                loaded = [columns.load(loop.index, place) for place in places]
                for i in range(ROWS):
                    factor = factors.number(rows[i], loop.index)
                    for j in range(vectors):
                        total = sums[i, j]
                        builder.store(_times_plus(builder, factor, loaded[j], builder.load(total)), total)
            for (i, j), total in sums.items():
                result.store(builder.load(total), rows[i], places[j])
            return context.get_dummy_value()

        return types.void(out, left, right, bias, types.boolean, types.intp, types.intp), generate

    return compute


_one, _two, _three = (_tile(vectors) for vectors in (1, 2, 3))


@numba.njit(cache=True, nogil=True)
def product(out, left, right, bias, onto):  # type: ignore[no-untyped-def]
    """``out = left @ right + bias[:, None]``, or, ``onto`` what ``out`` is, ``out += ...``.

    Each number is a chain of multiply-adds, first the bias, then in the order of the rows of ``right``, whichever tile
    it is in.

    Args:
        out: [m, n] float32, m a multiple of ROWS, n of LANES; a row's numbers beside each other in memory.
        left: [m, k] float32, with any strides.
        right: [k, n] float32; a row's numbers beside each other.
        bias: [m] float32.
        onto: bool.
    """
    columns, at = right.shape[1], 0
    while VECTORS == 3 and columns - at >= 3 * LANES:
        for row in range(0, left.shape[0], ROWS):
            _three(out, left, right, bias, onto, row, at)
        at += 3 * LANES
    if VECTORS == 3 and columns - at == 2 * LANES:
        for row in range(0, left.shape[0], ROWS):
            _two(out, left, right, bias, onto, row, at)
        at += 2 * LANES
    while at < columns:
        for row in range(0, left.shape[0], ROWS):
            _one(out, left, right, bias, onto, row, at)
        at += LANES
