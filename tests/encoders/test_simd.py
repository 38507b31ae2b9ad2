"""Registers and matrix products in native code, against numpy."""

import numba
import numpy as np
import pytest

from vcc_fm.encoders.cells.simd import LANES, ROWS, fill, fma, larger, load, product, root, scale, store


@numba.njit
def apply(number, x, y, out):  # type: ignore[no-untyped-def]
    one, other = load(x, 1, 3), load(y, 1, 3)
    store(one + other, out, 0, 0)
    store(one - other, out, 1, 0)
    store(one * other, out, 2, 0)
    store(one / other, out, 3, 0)
    store(fma(one, other, fill(number)), out, 4, 0)
    store(larger(one, other), out, 5, 0)
    store(root(other), out, 6, 0)


def test_each_operation_is_that_of_numpy_on_each_lane() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2, LANES + 5)).astype(np.float32)
    y = np.abs(y)
    out = np.empty((7, LANES), np.float32)
    apply(np.float32(0.7), x, y, out)
    a, b = x[1, 3 : 3 + LANES], y[1, 3 : 3 + LANES]
    fused = a.astype(np.float64) * b + np.float32(0.7)
    np.testing.assert_array_equal(out[[0, 1, 2, 3, 5, 6]], [a + b, a - b, a * b, a / b, np.maximum(a, b), np.sqrt(b)])
    np.testing.assert_allclose(out[4], fused, rtol=1e-6, atol=1e-7)


@numba.njit
def scaled(x, shifted, out):  # type: ignore[no-untyped-def]
    store(scale(load(x, 0, 0), load(shifted, 0, 0)), out, 0, 0)


def test_scale_multiplies_by_powers_of_two_down_to_nothing() -> None:
    powers = np.linspace(-127, 0, LANES).round()
    shifted = (1.5 * 2**23 + 127 + powers).astype(np.float32)[None]
    x, out = np.full((1, LANES), 1.25, np.float32), np.empty((1, LANES), np.float32)
    scaled(x, shifted, out)
    assert out[0, 0] == 0
    np.testing.assert_array_equal(out[0, 1:], 1.25 * 2.0 ** powers[1:])


@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("turned", [False, True])
def test_product_is_the_matrix_product(vectors: int, turned: bool) -> None:
    rng = np.random.default_rng(vectors)
    rows, depth, columns = 3 * ROWS, 11, vectors * LANES
    left = rng.normal(size=(depth, rows) if turned else (rows, depth)).astype(np.float32)
    left = left.T if turned else left
    # Parts of larger arrays, as heads and blocks of tokens are.
    right = rng.normal(size=(depth, columns + 7)).astype(np.float32)[:, 3:-4]
    out = np.full((rows, columns + 5), 9, np.float32)
    before = rng.normal(size=(rows, columns)).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32)
    wanted = left.astype(np.float64) @ right + bias[:, None]
    product(out[:, 2:-3], left, right, bias, False)
    np.testing.assert_allclose(out[:, 2:-3], wanted, rtol=0, atol=5e-6)
    out[:, 2:-3] = before
    product(out[:, 2:-3], left, right, bias, True)
    np.testing.assert_allclose(out[:, 2:-3], wanted + before, rtol=0, atol=5e-6)
    assert (out[:, :2] == 9).all()
    assert (out[:, -3:] == 9).all()


def test_the_tile_changes_no_bit() -> None:
    """A column's numbers are the same among seven registers of columns and in one."""
    rng = np.random.default_rng(1)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((ROWS, 50), (50, 7 * LANES)))
    together, alone = np.empty((2, ROWS, 7 * LANES), np.float32)
    bias = rng.normal(size=ROWS).astype(np.float32)
    product(together[:, :], left[:, :], right[:, :], bias, False)
    for at in range(0, 7 * LANES, LANES):
        product(alone[:, at : at + LANES], left[:, :], right[:, at : at + LANES], bias, False)
    assert together.tobytes() == alone.tobytes()
