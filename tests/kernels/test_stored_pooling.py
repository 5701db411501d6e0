"""Pooling of images in 16 bits: what float32 gives, rounded once; by every technique, from tiles and without."""

import numpy as np
import pytest
from emulated import RUN, blank, figures, launched, placed, run_by
from numpy.testing import assert_array_equal

from kernels import pooling
from kernels.noise import noise_forward
from kernels.pooling.geometry import Geometry
from kernels.pooling.tile import SHARED, backward_tile, forward_tile
from kernels.storage import BFLOAT16, FLOAT16, Storage

each_narrow = pytest.mark.parametrize("storage", [BFLOAT16, FLOAT16], ids=repr)
TECHNIQUES = ["scalar", "vector", "tiled"]
WINDOWS = [  # x, kernel, stride, padding
    ((2, 6, 7, 16), (3, 3), (2, 1), (1, 1)),
    ((1, 9, 5, 24), (2, 2), (2, 2), (0, 0)),
    ((1, 11, 37, 72), (3, 3), (2, 2), (1, 1)),  # several tiles
    ((2, 5, 4, 12), (3, 3), (1, 1), (1, 1)),  # channels by fours alone
]


def drawn(rng: np.random.Generator, shape: tuple[int, ...], storage: Storage) -> np.ndarray:
    """Whole numbers, so that all sums are exact; some are equal."""
    return placed(storage.encode(rng.integers(-9, 10, shape).astype(np.float32)), 0, storage.dtype)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), WINDOWS)
@each_narrow
def test_all_techniques(rng, storage: Storage, technique: str, shape, kernel, stride, padding) -> None:
    window, eights = (kernel, stride, padding), shape[3] % 8 == 0
    x = drawn(rng, shape, storage)
    full = storage.decode(x)
    right, place = pooling.max_pool2d_forward_reference(full, *window)
    y, index = blank(right.shape, 0, storage.dtype), blank(right.shape, dtype=np.int32)
    forward = technique == "scalar" or (eights and (technique == "vector" or kernel[0] > stride[0]))
    run_by(technique, forward, pooling.max_pool2d_forward, RUN, x, y, index, *window)
    if forward:
        assert_array_equal(storage.decode(y), right)
        assert_array_equal(index, place)
    dy, dx = drawn(rng, right.shape, storage), blank(shape, 0, storage.dtype)
    given = storage.decode(dy)
    fits = technique == "scalar" or eights
    run_by(technique, fits, pooling.max_pool2d_backward, RUN, dy, place, dx, *window)
    if fits:
        expected = pooling.max_pool2d_backward_reference(given, place, shape, *window)
        assert_array_equal(storage.decode(dx), expected)
    run_by(technique, forward, pooling.avg_pool2d_forward, RUN, x, y, *window, False)
    if forward:
        sums = pooling.avg_pool2d_forward_reference(full.astype(np.float32), *window, False)
        assert_array_equal(storage.decode(y), storage.rounded(sums))
    run_by(technique, fits, pooling.avg_pool2d_backward, RUN, dy, dx, *window, True)
    if fits:
        exact = pooling.avg_pool2d_backward_reference(given.astype(np.float64), shape, *window, True)
        half = np.maximum(np.abs(exact), 2.0**storage.least) * 2.0 ** -(storage.fraction + 1)
        assert (np.abs(storage.decode(dx) - exact) <= half * (1 + 1e-3) + 1e-5).all()


@pytest.mark.parametrize("technique", ["serial", "shared"])
@each_narrow
def test_means_are_float32(rng, storage: Storage, technique: str) -> None:
    x, y = drawn(rng, (3, 5, 7, 11), storage), blank((3, 11))
    pooling.global_avg_pool2d_forward(RUN, x, y, technique=technique)
    assert_array_equal(y, storage.decode(x).sum(axis=(1, 2)) / np.float32(35))


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@each_narrow
def test_gradients_of_means(rng, storage: Storage, technique: str) -> None:
    for c in (8, 12):
        dy, dx = placed(rng.standard_normal((3, c))), blank((3, 4, 5, c), 0, storage.dtype)
        fits = technique == "scalar" or c % 8 == 0
        run_by(technique, fits, pooling.global_avg_pool2d_backward, RUN, dy, dx)
        if fits:
            expected = storage.rounded(dy * np.float32(0.05))[:, None, None]
            assert_array_equal(storage.decode(dx), np.broadcast_to(expected, dx.shape))


def test_half_the_bytes_and_no_bank_conflicts() -> None:
    """Of images that are one tile; the place of a maximum stays an int32."""
    shape, window = (1, 12, 12, 64), ((3, 3), (1, 1), (1, 1))
    x, y, dtype = blank(shape, 0, np.uint16), blank(shape, 0, np.uint16), np.uint16
    index, pixels = blank(shape, dtype=np.int32), 2 * int(np.prod(shape))
    assert dtype == x.dtype
    found = [
        figures(pooling.max_pool2d_forward, x, y, index, *window, technique="tiled"),
        figures(pooling.max_pool2d_backward, y, index, x, *window, technique="tiled"),
        figures(pooling.avg_pool2d_forward, x, y, *window, True, technique="tiled"),
        figures(pooling.avg_pool2d_backward, y, x, *window, True, technique="tiled"),
    ]
    assert [one.bank_conflicts for one in found] == [0] * 4
    assert [one.store_bytes for one in found] == [3 * pixels, pixels, pixels, pixels]
    assert found[2].load_bytes == found[3].load_bytes < 1.6 * pixels  # a halo
    assert found[1].load_bytes < 2 * 3 * pixels


def test_tiles_in_eights_fit_into_shared_memory() -> None:
    for c, taps, stride in ((8, 3, 1), (64, 3, 2), (72, 5, 1), (2048, 3, 2)):
        geometry = Geometry(56, 56, c, (taps, taps), (stride, stride), (1, 1))
        forward, backward = forward_tile(geometry, 8), backward_tile(geometry, 2, 8)
        assert forward is not None
        assert backward is not None
        assert 2 * forward.floats <= SHARED
        assert (2 + 4) * backward.floats <= SHARED
        assert forward.counts(c)[2] * forward.quads * 8 >= c


def test_what_is_refused() -> None:
    x, y, index = blank((1, 4, 4, 8), 0, np.uint16), blank((1, 2, 2, 8)), blank((1, 2, 2, 8), dtype=np.int32)
    window = (2, 2), (2, 2), (0, 0)
    with pytest.raises(TypeError, match="max_pool2d_forward: y is stored as float32, expected bfloat16 as x is"):
        pooling.max_pool2d_forward(RUN, x, y, index, *window)
    with pytest.raises(TypeError, match="avg_pool2d_backward: dx is stored as bfloat16, expected float32 as dy is"):
        pooling.avg_pool2d_backward(RUN, y, x, *window, True)
    with pytest.raises(TypeError, match="global_avg_pool2d_forward: y has dtype uint16, expected float32"):
        pooling.global_avg_pool2d_forward(RUN, x, blank((1, 8), 0, np.uint16))
    call = placed(np.zeros((), np.uint32), 0, np.uint32)
    with pytest.raises(TypeError, match="noise_forward: x has dtype uint16, expected float32"):
        noise_forward(RUN, x, x, 0.5, 1.25, 0.1, 0, 0, call)
    names = launched(pooling.max_pool2d_forward, x, x[:, :2, :2].copy(), index, *window)
    assert names == ["max_pool2d_forward_vector"]
