"""Tiles for tensor cores: their sizes, slices, and what they need of a GPU."""

from itertools import product

import pytest

from kernels.matmul.tensor_tiles import (
    DEEPEST,
    DEPTH,
    ENOUGH,
    LARGE,
    LEAST,
    MEDIUM,
    NARROW,
    SMALL,
    TILES,
    WIDE,
    TensorTile,
    in_order,
    span_of,
    tile_for,
)
from kernels.matmul.tiles import slices_of

STATIC_LIMIT, HOPPER, AMPERE = 48 << 10, 227 << 10, 163 << 10


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_tiles_are_sound(tile: TensorTile) -> None:
    assert tile.threads in (128, 256)
    assert not tile.rows % tile.warp_rows
    assert not tile.columns % tile.warp_columns
    assert not tile.warp_rows % 16  # whole products
    assert not tile.warp_columns % 16  # in pairs, for ldmatrix
    for lines in (tile.rows, tile.columns):
        assert lines % (tile.threads // 8) == 0  # a thread has the same chunk of all its lines
        assert DEPTH % (tile.threads // (lines // 4)) == 0  # and of all its steps
        assert tile.threads // 8 % 8 == 0  # and the same swizzle
    for a, b in product((False, True), repeat=2):
        assert 2 * (tile.shared_bytes(a, b) + 1024) <= HOPPER  # two blocks on a multiprocessor
        assert tile.shared_bytes(a, b) <= AMPERE


def test_tiles_fit_what_they_are_for() -> None:
    assert [tile_for(1000, columns) for columns in (1, 32, 33, 64, 65, 512)] == [
        NARROW, NARROW, WIDE, WIDE, LARGE, LARGE,
    ]  # fmt: skip
    assert [tile_for(64, columns) for columns in (8, 32, 33, 512)] == [SMALL, SMALL, MEDIUM, MEDIUM]


def test_slices_are_few_deep_and_cover_the_depth() -> None:
    for tiles, depth in product((0, 1, 3, 100, 600), (0, 1, 31, 32, 255, 256, 1000, 65_537, 2**32)):
        span = span_of(depth, tiles)
        slices = slices_of(depth, span)
        assert span % DEPTH == 0
        assert span <= DEEPEST
        assert (slices - 1) * span <= depth <= slices * span
        if span < DEEPEST:
            assert slices == 1 or (slices * tiles <= ENOUGH and span >= LEAST)


def test_the_precision_says_what_comes_first() -> None:
    own, exact = ("tensor_core", True, ""), ("tiled", True, "")
    assert in_order("tf32", own, exact) == (own, exact)
    assert in_order("fp32", own, exact) == (exact, own)
    assert in_order("bf16", own, exact) == in_order("fp16", own, exact) == (own, exact)
    with pytest.raises(ValueError, match="precision 'int8' is given, expected fp32, tf32, bf16 or fp16"):
        in_order("int8", own, exact)
