"""Blocks of a matrix product in registers: exact on integers, for every size, and nothing beside them is touched."""

import ctypes
import itertools

import numpy as np
import pytest

from minidl.backends.cpu import blocks
from minidl.backends.cpu.blocks import LANES, SUMS, VECTORS, block_table

SIZES = [(vectors, pixels) for vectors in range(1, VECTORS + 1) for pixels in range(1, SUMS // vectors + 1)]
GUARD = np.float32(-12345)
SPACE = 37  # guards before and after y
# x: pixel, image, row, step; w: image, row, step; images, rows, depth.
WALKS = {
    "one step": ((1, 0, 0, 0), (0, 0, 0), (1, 1, 1)),
    "forward": ((5, 0, 90, 1), (0, 7 * 2 * LANES, 2 * LANES), (1, 3, 7)),
    "forward with stride": ((10, 0, 61, 1), (0, 300, 2 * LANES), (1, 2, 5)),
    "gradient of weights": ((1, 400, 100, 10), (700, 200, 50), (2, 3, 4)),
    "overlapping": ((3, 2, 5, 1), (1, 2, 3), (3, 2, 2)),
    "backwards": ((-2, -100, 30, -1), (-500, 100, -40), (2, 3, 4)),
    "deep": ((1, 0, 0, 17), (0, 0, 33), (1, 1, 301)),
}


def call(
    vectors: int, pixels: int, x: np.ndarray, w: np.ndarray, y: np.ndarray, walk: str, pitch: int, adds: int
) -> None:
    """With x, w and y beginning at their middles."""
    kinds = [ctypes.c_void_p if name in "xwy" else ctypes.c_int64 for name in blocks._ARGUMENTS]
    function = ctypes.CFUNCTYPE(None, *kinds)(int(block_table()[vectors, pixels]))
    of_x, of_w, times = WALKS[walk]
    x_at, w_at = (array.ctypes.data + 4 * (array.size // 2) for array in (x, w))
    function(x_at, 0, *of_x, w_at, 0, *of_w, 1, *times, y.ctypes.data + 4 * SPACE, 0, pitch, adds)


def expected(vectors: int, pixels: int, x: np.ndarray, w: np.ndarray, walk: str) -> np.ndarray:
    (x_pixel, *of_x), of_w, times = WALKS[walk]
    y = np.zeros((pixels, vectors * LANES), np.float64)
    for place in itertools.product(*map(range, times)):
        x_at = x.size // 2 + np.dot(place, of_x) + x_pixel * np.arange(pixels)
        w_at = w.size // 2 + np.dot(place, of_w) + np.arange(vectors * LANES)
        y += np.outer(x[x_at], w[w_at])
    return y


def whole(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(-3, 4, size).astype(np.float32)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(("vectors", "pixels"), SIZES)
def test_every_block_is_exact_and_writes_nothing_else(vectors: int, pixels: int, walk: str) -> None:
    rng = np.random.default_rng(pixels)
    x, w = whole(rng, 30_000), whole(rng, 30_000)
    product = expected(vectors, pixels, x, w, walk)
    pitch = vectors * LANES + 5
    for adds in (0, 1):
        y = np.full(2 * SPACE + pixels * pitch, GUARD)
        cells = np.lib.stride_tricks.as_strided(y[SPACE:], product.shape, (4 * pitch, 4))
        before = whole(rng, product.size).reshape(product.shape) if adds else np.float32(np.nan)
        cells[...] = before
        guards = y.copy()
        np.lib.stride_tricks.as_strided(guards[SPACE:], product.shape, (4 * pitch, 4))[...] = (
            product + before if adds else product
        )
        call(vectors, pixels, x, w, y, walk, pitch, adds)
        np.testing.assert_array_equal(y, guards)


@pytest.mark.parametrize(("vectors", "pixels"), SIZES)
def test_what_is_not_a_number_stays_in_its_pixel_and_its_lane(vectors: int, pixels: int) -> None:
    rng, walk = np.random.default_rng(0), "forward with stride"  # whose pixels share nothing
    x, w = whole(rng, 3000), whole(rng, 3000)
    x[x.size // 2 + WALKS[walk][0][0] * (pixels - 1)] = np.nan
    w[w.size // 2 + vectors * LANES - 1] = np.inf
    y = np.full(2 * SPACE + pixels * vectors * LANES, GUARD)
    call(vectors, pixels, x, w, y, walk, vectors * LANES, 0)
    got = y[SPACE:-SPACE].reshape(pixels, vectors * LANES)
    assert np.isnan(got[-1]).all()
    assert np.isfinite(got[:-1, :-1]).all()
    assert not np.isfinite(got[:, -1]).any()


@pytest.mark.parametrize("adds", [0, 1])
@pytest.mark.parametrize(("vectors", "pixels"), SIZES)
def test_positions_have_an_x_a_w_and_a_y_of_their_own(vectors: int, pixels: int, adds: int) -> None:
    rng, (positions, depth), wide = np.random.default_rng(pixels), (5, 3), vectors * LANES
    x, w = whole(rng, positions * 90).reshape(positions, -1), whole(rng, positions * (depth * wide + 7))
    w = w.reshape(positions, -1)
    y = whole(rng, 2 * SPACE + positions * (pixels * wide + 9))
    wanted = y.copy()
    cells = wanted[SPACE:-SPACE].reshape(positions, -1)[:, : pixels * wide].reshape(positions, pixels, wide)
    made = np.einsum(
        "qpk,qkv->qpv", *(x[:, : pixels * depth].reshape(-1, pixels, depth), w[:, :-7].reshape(-1, depth, wide))
    )
    cells[...] = made + adds * cells
    kinds = [ctypes.c_void_p if name in "xwy" else ctypes.c_int64 for name in blocks._ARGUMENTS]
    function = ctypes.CFUNCTYPE(None, *kinds)(int(block_table()[vectors, pixels]))
    of_x, of_w = (x.ctypes.data, x.shape[1], depth, 0, 0, 1), (w.ctypes.data, w.shape[1], 0, 0, wide)
    place = y.ctypes.data + 4 * SPACE, pixels * wide + 9, wide
    function(*of_x, *of_w, positions, 1, 1, depth, *place, adds)
    np.testing.assert_array_equal(y, wanted)


def test_products_are_not_rounded_before_they_are_added() -> None:
    """(1 + e)(1 - e) - 1 = -e²: of two roundings nothing would be left."""
    x, w = np.zeros(2, np.float32), np.zeros(4 * LANES, np.float32)
    x[:] = 1, 1 - 2.0**-13
    w[:LANES], w[LANES : 2 * LANES] = -1, 1 + 2.0**-13
    y = np.empty(LANES, np.float32)
    kinds = [ctypes.c_void_p if name in "xwy" else ctypes.c_int64 for name in blocks._ARGUMENTS]
    function = ctypes.CFUNCTYPE(None, *kinds)(int(block_table()[1, 1]))
    function(x.ctypes.data, 0, 0, 0, 0, 1, w.ctypes.data, 0, 0, 0, LANES, 1, 1, 1, 2, y.ctypes.data, 0, LANES, 0)
    np.testing.assert_array_equal(y, np.full(LANES, np.float32(-(2.0**-26))))


def test_the_table_has_what_loops_ask_for_and_no_more() -> None:
    table = block_table()
    assert {(vectors, pixels) for vectors, pixels in zip(*np.nonzero(table), strict=True)} == set(SIZES)
    assert len(np.unique(table[table != 0])) == len(SIZES)
    assert block_table() is table
