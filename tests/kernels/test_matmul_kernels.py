from itertools import product

import numpy as np
import pytest
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.errors import ShapeError
from kernels.matmul import matmul, matmul_plain, matmul_reference, matmul_tiled
from kernels.matmul.tiles import LARGE, MEDIUM, SMALL, TALL, TILES, Tile, slices_of, span_of, tile_for
from kernels.run_emulated import EmulatorRunner

TECHNIQUES = "plain", "tiled"  # which take everything
TURNS = list(product((False, True), repeat=2))


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32)


def factors(rng, m: int, n: int, k: int, a_transposed: bool, b_transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    return whole(rng, *((k, m) if a_transposed else (m, k))), whole(rng, *((n, k) if b_transposed else (k, n)))


def exact(a: np.ndarray, b: np.ndarray, a_transposed: bool, b_transposed: bool) -> np.ndarray:
    return matmul_reference(a.T if a_transposed else a, b.T if b_transposed else b)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1), (2, 3, 5), (15, 17, 16), (16, 16, 17), (33, 1, 7), (33, 16, 15), (33, 17, 16), (33, 32, 33),
        (33, 33, 1), (64, 64, 16), (65, 63, 31), (63, 65, 17), (128, 16, 32), (129, 15, 33), (127, 31, 9),
        (1, 130, 300), (3, 4, 0),
    ],
    ids=str,
)  # fmt: skip
def test_products_of_whole_numbers_are_exact(rng, size, technique: str) -> None:
    m, n, k = size
    a, b = factors(rng, m, n, k, False, False)
    c = np.empty((m, n), np.float32)
    matmul(EmulatorRunner(), a, b, c, technique=technique)
    assert_array_equal(c, matmul_reference(a, b))


@pytest.mark.parametrize("size", [(0, 3, 4), (3, 0, 4)], ids=str)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_an_empty_result_takes_no_launch(rng, size, technique: str) -> None:
    m, n, k = size
    run = EmulatorRunner(counts=True)
    matmul(run, whole(rng, m, k), whole(rng, k, n), np.empty((m, n), np.float32), technique=technique)
    assert not run.launched


@pytest.mark.parametrize(("a_transposed", "b_transposed"), TURNS)
@pytest.mark.parametrize("index", [uint32, int64], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_plain(rng, a_transposed: bool, b_transposed: bool, index, with_bias: bool) -> None:
    m, n, k = 19, 15, 11
    a, b = factors(rng, m, n, k, a_transposed, b_transposed)
    bias = whole(rng, n) if with_bias else whole(rng, 0)
    c = np.empty((m, n), np.float32)
    EmulatorRunner()(matmul_plain(a_transposed, b_transposed, with_bias, index), a, b, bias, c, m, n, k)
    assert_array_equal(c, exact(a, b, a_transposed, b_transposed) + (bias if with_bias else 0))


@pytest.mark.parametrize(("a_transposed", "b_transposed"), TURNS)
@pytest.mark.parametrize("index", [uint32, int64], ids=str)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile_at_its_edges(rng, tile: Tile, a_transposed: bool, b_transposed: bool, index) -> None:
    # One below, at and above the edges of one tile and of two, cut into slices that end in a part of a slab.
    for m, n, k in (
        (tile.rows, tile.columns - 1, tile.depth + 1),
        (2 * tile.rows + 1, tile.columns + 1, 2 * tile.depth),
    ):
        a, b = factors(rng, m, n, k, a_transposed, b_transposed)
        bias = whole(rng, n)
        slices = np.empty((slices_of(k, tile.depth), m, n), np.float32)
        kernel = matmul_tiled(tile, a_transposed, b_transposed, True, index)
        EmulatorRunner()(kernel, a, b, bias, slices, m, n, k, tile.depth)
        left, right = a.T if a_transposed else a, b.T if b_transposed else b
        assert len(slices) == 2
        assert_array_equal(slices[0], left[:, : tile.depth] @ right[: tile.depth] + bias)
        assert_array_equal(slices[1], left[:, tile.depth :] @ right[tile.depth :])


def test_a_deep_product_is_summed_in_slices(rng) -> None:
    a, b, c = whole(rng, 3, 2000), whole(rng, 2000, 5), np.empty((3, 5), np.float32)
    run = EmulatorRunner(counts=True)
    matmul(run, a, b, c)
    assert_array_equal(c, a @ b)
    product, merge = run.launched
    assert product.kernel.name == "matmul_tiled"
    assert product.grid[0] == 14  # of 9 slabs each
    assert merge.kernel.name == "sum_columns_of_chunks"


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_nan_and_an_infinity_go_where_the_sums_go(rng, technique: str) -> None:
    a, b, c = whole(rng, 20, 18), np.ones((18, 17), np.float32), np.empty((20, 17), np.float32)
    a[3, 4], b[17, 16] = np.nan, np.inf
    a[5, 17] = 0
    matmul(EmulatorRunner(), a, b, c, technique=technique)
    assert_array_equal(c, matmul_reference(a, b))
    assert np.isnan(c[3]).all()
    assert np.isnan(c[5, 16])


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (4, 5), (2, 5)), ((2, 3), (3, 5), (2, 4)), ((2, 3), (3, 5), (5, 2)), ((2, 3, 1), (3, 5), (2, 5))],
)
def test_shapes_that_do_not_fit_are_refused(shapes) -> None:
    a, b, c = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ShapeError, match=r"matmul: got a \(2, 3.*, expected a \(m, k\), b \(k, n\) and c \(m, n\)"):
        matmul(EmulatorRunner(), a, b, c)


def test_tiles_are_sound() -> None:
    for tile in TILES:
        assert tile.threads in (128, 256)
        assert not [edge for edge in (tile.rows, tile.columns, tile.depth) if tile.threads % edge]
        assert tile.rows * tile.columns == tile.threads * tile.thread_rows * tile.thread_columns


def test_tiles_fit_what_they_are_for() -> None:
    assert [tile_for(columns) for columns in (1, 16, 17, 32, 33, 1000)] == [TALL, TALL, MEDIUM, MEDIUM, LARGE, LARGE]
    assert [tile_for(1000, rows) for rows in (1, 32, 33)] == [SMALL, SMALL, LARGE]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_slices_are_few_deep_and_cover_the_depth(tile: Tile) -> None:
    for tiles, depth in product((0, 1, 3, 100, 600), (0, 1, 127, 128, 256, 1000, 65_537, 2**32)):
        span = span_of(depth, tile, tiles)
        slices = slices_of(depth, span)
        assert span % tile.depth == 0
        assert (slices - 1) * span <= depth <= slices * span
        assert slices == 1 or (slices * tiles <= 512 and span >= 128)
