import itertools
from typing import NamedTuple

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, figures, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels import pooling
from kernels.errors import ShapeError, TechniqueError
from kernels.pooling.geometry import Geometry
from kernels.pooling.tile import ITEMS, SHARED, backward_tile, forward_tile
from kernels.run_dry import DryRunner
from kernels.storage import FLOAT32
from kernels.window import output_size

U = 2.0**-24


class Pool(NamedTuple):
    x: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def y(self) -> tuple[int, int, int, int]:
        ho, wo = (output_size(*axis, self.ceil_mode) for axis in zip(self.x[1:3], *self[1:5], strict=True))
        return self.x[0], ho, wo, self.x[3]

    @property
    def averaged(self) -> tuple:
        return self.kernel, self.stride, self.padding

    def fits(self, technique: str | None, offset: int = 0) -> tuple[bool, bool]:
        """Whether a technique can take it, forward and backward."""
        fours = (offset == 0 or 0 in self.x) and self.x[3] % 4 == 0
        spans = (d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        overlap = any(span > stride for span, stride in zip(spans, self.stride, strict=True))
        tiled = technique == "tiled"
        return fours and (overlap or not tiled), fours and (self.stride[0] * self.stride[1] <= 9 or not tiled)


POOLS = [
    Pool((1, 1, 1, 1), (1, 1), (1, 1)),
    Pool((0, 4, 4, 3), (2, 2), (2, 2)),
    Pool((2, 8, 8, 16), (2, 2), (2, 2)),
    Pool((3, 7, 9, 5), (3, 3), (2, 2), (1, 1)),
    Pool((2, 7, 11, 4), (3, 3), (1, 1), (1, 1)),  # overlapping windows
    Pool((2, 8, 7, 12), (2, 3), (1, 2), (1, 1)),
    Pool((2, 11, 10, 8), (2, 2), (3, 3)),  # elements in no window
    Pool((2, 5, 6, 4), (2, 3), (1, 1), (0, 1)),
    Pool((2, 6, 5, 3), (3, 2), (2, 1), (1, 0)),
    Pool((1, 9, 9, 2), (5, 5), (1, 1), (2, 2)),
    Pool((2, 6, 6, 4), (4, 4), (1, 3), (2, 2)),
    Pool((2, 5, 3, 17), (5, 3), (5, 3)),  # one window
    Pool((3, 14, 14, 33), (2, 2), (2, 2)),
    Pool((2, 7, 9, 4), (2, 2), (2, 2), ceil_mode=True),  # windows that end beyond the image
    Pool((2, 6, 7, 5), (3, 3), (2, 2), (1, 1), ceil_mode=True),  # beyond the padding
    Pool((2, 9, 11, 8), (3, 2), (2, 3), (1, 1), ceil_mode=True),  # the last across would begin in the padding
    Pool((1, 2, 3, 4), (3, 5), (2, 3), (0, 2), ceil_mode=True),  # down, one that is larger than the image
]
DILATED = [
    Pool((2, 9, 11, 3), (3, 2), (1, 2), (1, 1), (2, 3)),
    Pool((2, 8, 9, 12), (2, 3), (2, 1), (1, 1), (3, 2)),
    Pool((1, 7, 7, 4), (3, 3), (3, 3), (1, 0), (3, 2), ceil_mode=True),
]
TECHNIQUES = [None, "scalar", "vector", "tiled"]
FAMILIES = ["ordinary", "ties", "special", "-inf"]


def values(rng: np.random.Generator, shape: tuple[int, ...], family: str) -> np.ndarray:
    if family == "ties":
        return rng.integers(-2, 2, shape).astype(np.float32)
    if family == "-inf":
        return np.full(shape, -np.inf, np.float32)
    x = rng.standard_normal(shape).astype(np.float32)
    if family == "special":
        places = rng.permutation(x.size)[: x.size // 4]
        x.reshape(-1)[places] = np.resize(np.array([np.nan, np.inf, -np.inf, 1e-45, -0.0], np.float32), len(places))
    return x


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pool", [*POOLS, *DILATED], ids=str)
def test_max(rng, pool: Pool, family: str, technique, offset: int) -> None:
    x = values(rng, pool.x, family)
    y, index = blank(pool.y, offset), blank(pool.y, offset, np.int32)
    fits, fits_back = pool.fits(technique, offset)
    run_by(technique, fits, pooling.max_pool2d_forward, RUN, placed(x, offset), y, index, *pool[1:])
    expected_y, expected_index = pooling.max_pool2d_forward_reference(x, *pool[1:])
    assert_array_equal(y, expected_y)
    assert_array_equal(index, expected_index)

    dy = rng.integers(-9, 10, pool.y).astype(np.float32)  # sums of these are exact
    dx = blank(pool.x, offset)
    run_by(technique, fits_back, pooling.max_pool2d_backward, RUN, placed(dy, offset), index, dx, *pool[1:])
    assert_array_equal(dx, pooling.max_pool2d_backward_reference(dy, expected_index, pool.x, *pool[1:]))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_nan_in_dy_reaches_one_element(rng, technique) -> None:
    pool = POOLS[4]
    index = placed(pooling.max_pool2d_forward_reference(values(rng, pool.x, "ordinary"), *pool[1:])[1], dtype=np.int32)
    dy, dx = placed(np.ones(pool.y)), blank(pool.x)
    dy[1, 3, 5, 2] = np.nan
    run_by(technique, pool.x[3] % 4 == 0, pooling.max_pool2d_backward, RUN, dy, index, dx, *pool[1:])
    assert_array_equal(dx, pooling.max_pool2d_backward_reference(dy, index, pool.x, *pool[1:]))
    assert np.isnan(dx).sum() == 1


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_average(rng, pool: Pool, count_include_pad: bool, technique, offset: int) -> None:
    options = *pool.averaged, count_include_pad, pool.ceil_mode
    x = values(rng, pool.x, "ordinary")
    y = blank(pool.y, offset)
    fits, fits_back = pool.fits(technique, offset)
    run_by(technique, fits, pooling.avg_pool2d_forward, RUN, placed(x, offset), y, *options)
    # A rounding for each addition, and one for the division, each relative to the sum of absolute values.
    steps = pool.kernel[0] * pool.kernel[1]
    absolute = pooling.avg_pool2d_forward_reference(np.abs(x.astype(np.float64)), *options)
    error = y - pooling.avg_pool2d_forward_reference(x.astype(np.float64), *options)
    assert (np.abs(error) <= steps * U * absolute).all()

    dy, dx = values(rng, pool.y, "ordinary"), blank(pool.x, offset)
    run_by(technique, fits_back, pooling.avg_pool2d_backward, RUN, placed(dy, offset), dx, *options)
    # The reciprocal, and a product that is added: one rounding for each window that holds the element.
    overlap = np.prod([-(-kernel // stride) for kernel, stride in zip(pool.kernel, pool.stride, strict=True)])
    absolute = pooling.avg_pool2d_backward_reference(np.abs(dy.astype(np.float64)), pool.x, *options)
    error = dx - pooling.avg_pool2d_backward_reference(dy.astype(np.float64), pool.x, *options)
    assert (np.abs(error) <= (overlap + 1) * U * absolute).all()


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("pool", [POOLS[4], POOLS[5]], ids=str)
def test_averages_of_special_values(rng, pool: Pool, count_include_pad: bool, technique) -> None:
    options = *pool.averaged, count_include_pad, pool.ceil_mode
    x, y = placed(values(rng, pool.x, "special")), blank(pool.y)
    run_by(technique, pool.x[3] % 4 == 0, pooling.avg_pool2d_forward, RUN, x, y, *options)
    expected = pooling.avg_pool2d_forward_reference(x, *options)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)  # where NaN and infinities are; sizes are tested above
    dy, dx = placed(values(rng, pool.y, "special")), blank(pool.x)
    run_by(technique, pool.x[3] % 4 == 0, pooling.avg_pool2d_backward, RUN, dy, dx, *options)
    assert_allclose(dx, pooling.avg_pool2d_backward_reference(dy, pool.x, *options), rtol=1e-5, atol=1e-5)


IMAGES = [
    (1, 1, 1, 1), (0, 3, 3, 2), (2, 1, 5, 3), (3, 7, 11, 17), (2, 4, 4, 64), (2, 31, 29, 5), (3, 8, 8, 33),
    (2, 3, 3, 4),
]  # fmt: skip


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "serial", "shared"])
@pytest.mark.parametrize("shape", IMAGES)
def test_global_average(rng, shape, technique, offset: int) -> None:
    n, h, w, c = shape
    x, y = values(rng, shape, "ordinary"), blank((n, c), offset)
    pooling.global_avg_pool2d_forward(RUN, placed(x, offset), y, technique=technique)
    error = y - x.astype(np.float64).mean(axis=(1, 2))
    assert (np.abs(error) <= h * w * U * np.abs(x.astype(np.float64)).mean(axis=(1, 2))).all()


@pytest.mark.parametrize("technique", ["serial", "shared"])
def test_a_nan_stays_in_its_channel_and_whole_numbers_are_exact(rng, technique: str) -> None:
    x, y = placed(rng.integers(-9, 10, (3, 8, 8, 35))), blank((3, 35))
    x[1, 2, 3, 33] = np.nan
    pooling.global_avg_pool2d_forward(RUN, x, y, technique=technique)
    assert_array_equal(y, pooling.global_avg_pool2d_forward_reference(x))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "scalar", "vector"])
@pytest.mark.parametrize("shape", IMAGES)
def test_global_average_backward(rng, shape, technique, offset: int) -> None:
    n, _, _, c = shape
    dy, dx = values(rng, (n, c), "ordinary"), blank(shape, offset)
    fits = offset == 0 and c % 4 == 0
    run_by(technique, fits, pooling.global_avg_pool2d_backward, RUN, placed(dy, offset), dx)
    expected = pooling.global_avg_pool2d_backward_reference(dy.astype(np.float64), shape)
    assert_allclose(dx, expected, rtol=2 * U, atol=0)  # the reciprocal, and the product


def test_each_sector_is_moved_once_where_windows_do_not_overlap() -> None:
    x, y, window = blank((2, 8, 8, 32)), blank((2, 4, 4, 32)), ((2, 2), (2, 2), (0, 0))
    place = blank(y.shape, dtype=np.int32)
    for technique, loads in (("scalar", 4), ("vector", 1)):
        forward = figures(pooling.max_pool2d_forward, x, y, place, *window, technique=technique)
        assert (forward.load_sectors, forward.store_sectors) == (x.nbytes // 32, 2 * y.nbytes // 32)
        assert forward.load_requests == loads * x.nbytes // 512
        average = figures(pooling.avg_pool2d_forward, x, y, *window, True, technique=technique)
        assert (average.load_sectors, average.store_sectors) == (x.nbytes // 32, y.nbytes // 32)
    mean = figures(pooling.global_avg_pool2d_forward, x, blank((2, 32)))
    assert (mean.load_sectors, mean.bank_conflicts) == (x.nbytes // 32, 0)


def test_indices_are_32_bits_wide_where_that_is_enough() -> None:
    # Memory that is never touched costs nothing.
    for n, index in ((2**31, uint32), (2**31 + 16, int64)):
        recorder = Recorder()
        x, y = np.empty((n // 16, 2, 2, 4), np.float32), np.empty((n // 16, 1, 1, 4), np.float32)
        place, mean = np.empty(y.shape, np.int32), y.reshape(n // 16, 4)
        window = (2, 2), (2, 2), (0, 0)
        pooling.max_pool2d_forward(recorder, x, y, place, *window)
        pooling.max_pool2d_backward(recorder, y, place, x, *window)
        pooling.avg_pool2d_forward(recorder, x, y, *window, True)
        pooling.avg_pool2d_backward(recorder, y, x, *window, True)
        pooling.global_avg_pool2d_forward(recorder, x, mean)
        pooling.global_avg_pool2d_backward(recorder, mean, x)
        assert [kernel.arguments[0] for kernel in recorder.kernels] == [index] * 6


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    pool = POOLS[4]
    x, dy = placed(values(rng, pool.x, "ties")), placed(values(rng, pool.y, "ties"))
    geometry = pooling.geometry.Geometry(*pool.x[1:], *pool[1:])
    y, place, dx = blank(pool.y), blank(pool.y, dtype=np.int32), blank(pool.x)
    for technique in ("scalar", "vector", "tiled"):
        forward = getattr(pooling.maximum, f"max_pool2d_forward_{technique}")(index, geometry, FLOAT32)
        backward = getattr(pooling.maximum, f"max_pool2d_backward_{technique}")(index, geometry, FLOAT32)
        RUN(forward, x, y, place, len(x) if technique == "tiled" else y.size)
        RUN(backward, dy, place, dx, len(x) if technique == "tiled" else dx.size)
        expected_y, expected_place = pooling.max_pool2d_forward_reference(x, *pool[1:])
        assert_array_equal(y, expected_y)
        assert_array_equal(place, expected_place)
        assert_array_equal(dx, pooling.max_pool2d_backward_reference(dy, place, pool.x, *pool[1:]))


def test_vectors_where_channels_come_in_fours_and_all_arrays_are_aligned() -> None:
    def kernels(c: int, offset: int = 0, technique: str | None = None) -> set[str]:
        x, y, dx = blank((1, 4, 4, c)), blank((1, 2, 2, c), offset), blank((1, 4, 4, c))
        place, mean = blank(y.shape, dtype=np.int32), blank((1, c), offset)
        window = (2, 2), (2, 2), (0, 0)
        names = [
            *launched(pooling.max_pool2d_forward, x, y, place, *window, technique=technique),
            *launched(pooling.max_pool2d_backward, y, place, dx, *window, technique=technique),
            *launched(pooling.avg_pool2d_forward, x, y, *window, True, technique=technique),
            *launched(pooling.avg_pool2d_backward, y, dx, *window, True, technique=technique),
            *launched(pooling.global_avg_pool2d_backward, mean, dx, technique=technique),
        ]
        assert len(names) == 5
        return {name.rpartition("_")[2] for name in names}

    assert kernels(8) == {"vector"}  # of images too small for tiles
    assert kernels(8, technique="scalar") == {"scalar"}
    assert kernels(8, technique="vector") == {"vector"}
    assert kernels(6) == {"scalar"}
    assert kernels(8, offset=1) == {"scalar"}


@pytest.mark.parametrize(
    "pool",
    [
        Pool((1, 32, 30, 68), (3, 3), (2, 2), (1, 1)),  # tiles of lines; the last block has few channels
        Pool((2, 7, 201, 36), (3, 3), (2, 2), (1, 1)),  # and of columns
        Pool((1, 23, 21, 32), (5, 4), (1, 1), (2, 2)),
        Pool((1, 40, 41, 16), (3, 3), (2, 2), (1, 0), (2, 3), True),
        Pool((1, 40, 70, 4), (2, 2), (3, 3)),
    ],
    ids=str,
)
def test_several_tiles_of_an_image(rng, pool: Pool) -> None:
    x, y, index, dx = placed(values(rng, pool.x, "ties")), blank(pool.y), blank(pool.y, dtype=np.int32), blank(pool.x)
    forward, backward = pool.fits("tiled")
    run_by("tiled", forward, pooling.max_pool2d_forward, RUN, x, y, index, *pool[1:])
    expected_y, expected_index = pooling.max_pool2d_forward_reference(x, *pool[1:])
    assert_array_equal(y, expected_y)
    assert_array_equal(index, expected_index)
    dy = placed(rng.integers(-9, 10, pool.y))
    run_by("tiled", backward, pooling.max_pool2d_backward, RUN, dy, index, dx, *pool[1:])
    assert_array_equal(dx, pooling.max_pool2d_backward_reference(dy, index, pool.x, *pool[1:]))
    if pool.dilation == (1, 1):
        options = *pool.averaged, False, pool.ceil_mode
        run_by("tiled", forward, pooling.avg_pool2d_forward, RUN, x, y, *options)
        assert_allclose(y, pooling.avg_pool2d_forward_reference(x.astype(float), *options), rtol=2e-6, atol=1e-6)
        run_by("tiled", backward, pooling.avg_pool2d_backward, RUN, dy, dx, *options)
        expected = pooling.avg_pool2d_backward_reference(dy.astype(float), pool.x, *options)
        assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)


def test_tiles_cover_the_image_and_fit_into_shared_memory() -> None:
    seen = set()
    for height, width, c, taps, stride in itertools.product((7, 32, 113), (8, 56), (4, 20, 64, 2048), (3, 5), (1, 2)):
        geometry = Geometry(height, width, c, (taps, taps), (stride, stride), (1, 1))
        for tile, arrays in ((forward_tile(geometry), 1), (backward_tile(geometry, 2), 2)):
            assert tile is not None
            down, across, groups = tile.counts(c)
            seen.add((down > 1, across > 1, groups > 1))
            assert down * tile.own[0] >= tile.down.number
            assert across * tile.own[1] >= tile.across.number
            assert groups * tile.quads * 4 >= c
            assert 4 * tile.floats * arrays <= SHARED
            assert tile.items <= ITEMS
    assert len(seen) > 4
    assert forward_tile(Geometry(900, 900, 32, (401, 401), (1, 1), (0, 0))) is None


def test_what_overlapping_windows_share_passes_once() -> None:
    """Where an image is one tile, exactly; without bank conflicts for 16 channels too, of which a warp has 8 pixels."""
    for c, stride in ((32, 1), (16, 2), (4, 2)):
        pool = Pool((1, 12, 12, c), (3, 3), (stride, stride), (1, 1))
        x, y, index = blank(pool.x), blank(pool.y), blank(pool.y, dtype=np.int32)
        found = [
            figures(pooling.max_pool2d_forward, x, y, index, *pool[1:], technique="tiled"),
            figures(pooling.max_pool2d_backward, y, index, x, *pool[1:], technique="tiled"),
            figures(pooling.avg_pool2d_forward, x, y, *pool.averaged, True, technique="tiled"),
            figures(pooling.avg_pool2d_backward, y, x, *pool.averaged, True, technique="tiled"),
        ]
        moved = [(one.load_bytes, one.store_bytes) for one in found]
        assert moved == [
            (x.nbytes, 2 * y.nbytes), (2 * y.nbytes, x.nbytes), (x.nbytes, y.nbytes), (y.nbytes, x.nbytes)
        ]  # fmt: skip
        if c > 4:
            assert [one.bank_conflicts for one in found] == [0] * 4


def test_tiles_are_chosen_where_windows_overlap_and_say_why() -> None:
    def chosen(c: int, kernel: int, stride: int, pad: int = 0, side: int = 8) -> list[tuple[str, str]]:
        run, pool = DryRunner(), Pool((1, side, side, c), (kernel, kernel), (stride, stride), (pad, pad))
        x, y, index = blank(pool.x), blank(pool.y), blank(pool.y, dtype=np.int32)
        pooling.max_pool2d_forward(run, x, y, index, *pool[1:])
        pooling.max_pool2d_backward(run, y, index, x, *pool[1:])
        return [(one.technique, one.why) for one in run.chosen]

    vector, once = ("vector", "32 channels, all arrays aligned to 16 bytes"), "what they share is read once"
    back = "tiled", f"a window's elements are made together: {once}"
    assert chosen(32, 3, 2, 1) == [("tiled", f"windows overlap: {once}"), back]
    assert chosen(32, 2, 2) == [vector, back]
    assert chosen(32, 3, 4) == [vector, vector]  # 16 elements from one window to the next
    assert chosen(32, 3, 1, side=4) == [vector, back]  # of 4 windows
    assert chosen(32, 2, 1, side=2) == [vector, vector]
    assert chosen(6, 3, 2) == [("scalar", "6 channels are no multiple of 4")] * 2


@pytest.mark.parametrize(
    ("pool", "offset", "forward", "backward"),
    [
        (Pool((1, 8, 8, 4), (2, 2), (2, 2)), 0, "windows do not overlap: x passes once as it is", ""),
        (Pool((1, 8, 8, 4), (4, 4), (3, 4)), 0, "", "12 elements from a window to the next, tiled takes at most 9"),
        (Pool((1, 8, 8, 6), (3, 3), (1, 1)), 0, *["6 channels are no multiple of 4; scalar"] * 2),
        (Pool((1, 8, 8, 4), (3, 3), (1, 1)), 1, "y starts at no", "dy starts at no multiple of 16 bytes; scalar"),
    ],
    ids=str,
)
def test_what_tiles_cannot_take(pool: Pool, offset: int, forward: str, backward: str) -> None:
    x, y, index = blank(pool.x), blank(pool.y, offset), blank(pool.y, dtype=np.int32)
    refused = "^{} cannot be computed by technique 'tiled': {}"
    if forward:
        for name, host, arrays in (
            ("max_pool2d_forward", pooling.max_pool2d_forward, (x, y, index, *pool[1:4])),
            ("avg_pool2d_forward", pooling.avg_pool2d_forward, (x, y, *pool.averaged, True)),
        ):
            with pytest.raises(TechniqueError, match=refused.format(name, forward)):
                host(RUN, *arrays, technique="tiled")
    if backward:
        for name, host, arrays in (
            ("max_pool2d_backward", pooling.max_pool2d_backward, (y, index, x, *pool[1:4])),
            ("avg_pool2d_backward", pooling.avg_pool2d_backward, (y, x, *pool.averaged, True)),
        ):
            with pytest.raises(TechniqueError, match=refused.format(name, backward)):
                host(RUN, *arrays, technique="tiled")
    assert (x == 77).all()


def test_shapes_that_do_not_fit() -> None:
    x, window = blank((2, 6, 6, 3)), ((2, 2), (2, 2), (0, 0))
    right, wrong = blank((2, 3, 3, 3)), blank((2, 3, 2, 3))
    place = right.astype(np.int32)
    calls = {
        "max_pool2d_forward: y": lambda: pooling.max_pool2d_forward(RUN, x, wrong, place, *window),
        "max_pool2d_forward: index": lambda: pooling.max_pool2d_forward(RUN, x, right, place[:1], *window),
        "max_pool2d_backward: dy": lambda: pooling.max_pool2d_backward(RUN, wrong, place, x, *window),
        "max_pool2d_backward: index": lambda: pooling.max_pool2d_backward(RUN, right, place[:1], x, *window),
        "avg_pool2d_forward: y": lambda: pooling.avg_pool2d_forward(RUN, x, wrong, *window, True),
        "avg_pool2d_backward: dy": lambda: pooling.avg_pool2d_backward(RUN, wrong, x, *window, True),
        "global_avg_pool2d_forward: y": lambda: pooling.global_avg_pool2d_forward(RUN, x, blank((3, 2))),
        "global_avg_pool2d_backward: dy": lambda: pooling.global_avg_pool2d_backward(RUN, blank((3, 2)), x),
    }
    for what, call in calls.items():
        with pytest.raises(ShapeError, match=f"{what} has shape .*, expected"):
            call()
    with pytest.raises(ShapeError, match=r"max_pool2d_forward: x has shape \(2, 6\), expected \(n, h, w, c\)"):
        pooling.max_pool2d_forward(RUN, blank((2, 6)), right, place, *window)
    with pytest.raises(ShapeError, match="a kernel of 7 does not fit an axis of 6"):
        pooling.avg_pool2d_forward(RUN, x, right, (7, 7), (1, 1), (0, 0), True)
    with pytest.raises(ShapeError, match=r"max_pool2d_forward: y has shape \(2, 3, 3, 3\), expected \(2, 3, 2, 3\)"):
        pooling.max_pool2d_forward(RUN, blank((2, 5, 4, 3)), right, place, *window, (1, 1), True)
    with pytest.raises(ShapeError, match="a kernel of 2 with dilation 6 does not fit an axis of 6"):
        pooling.max_pool2d_forward(RUN, x, right, place, *window, (6, 1))
    with pytest.raises(ShapeError, match="kernel of 2, stride 2 and padding 0, dilation 0; expected"):
        pooling.max_pool2d_forward(RUN, x, right, place, *window, (0, 1))
    with pytest.raises(ShapeError, match="holds padding alone"):
        pooling.max_pool2d_forward(RUN, blank((2, 6, 1, 3)), right, place, (2, 2), (2, 2), (0, 1), (1, 2))
    with pytest.raises(ShapeError, match="at least one pixel"):
        pooling.global_avg_pool2d_forward(RUN, blank((2, 0, 3, 3)), blank((2, 3)))
