import numpy as np
import pytest
from emulated import RUN, Recorder, blank, figures, launched, placed
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.channel_order import (
    channels_first,
    channels_first_reference,
    channels_last,
    channels_last_reference,
    transpose_plain,
    transpose_tiled,
)
from kernels.errors import ShapeError
from kernels.storage import FLOAT32

IMAGES = [
    (0, 2, 3, 5), (1, 1, 1, 1), (2, 3, 5, 1), (1, 1, 4, 17), (2, 1, 1, 33), (3, 7, 11, 16), (2, 28, 28, 3),
    (2, 33, 31, 33), (3, 2, 2, 300), (1, 32, 32, 32), (2, 16, 16, 32), (5, 4, 4, 8), (1, 341, 1, 3), (1, 342, 1, 3),
]  # fmt: skip


@pytest.mark.parametrize("technique", [None, "plain", "tiled"])
@pytest.mark.parametrize("shape", IMAGES)
def test_channels_first_and_last(rng, shape, technique) -> None:
    n, h, w, c = shape
    x, y, back = placed(rng.standard_normal(shape)), blank((n, c * h * w)), blank(shape)
    channels_first(RUN, x, y, technique=technique)
    assert_array_equal(y, channels_first_reference(x))
    channels_last(RUN, y, back, technique=technique)
    assert_array_equal(back, x)
    assert_array_equal(back, channels_last_reference(y, shape))


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types_of_transposes(rng, index) -> None:
    x = placed(rng.standard_normal((2, 35, 36)))
    options = index, 35, 36, FLOAT32, FLOAT32
    for kernel, number in ((transpose_plain(*options), x.size), (transpose_tiled(*options), 2)):
        y = blank((2, 36, 35))
        RUN(kernel, x, y, number)
        assert_array_equal(y, x.transpose(0, 2, 1))


def test_images_of_some_size_go_through_tiles() -> None:
    def kernel(*shape: int) -> str:
        n, h, w, c = shape
        x, y = blank(shape), blank((n, c * h * w))
        (name,) = launched(channels_first, x, y)
        assert launched(channels_last, y, x) == [name]
        return name.removeprefix("transpose_")

    assert kernel(2, 16, 16, 3) == "tiled"
    assert kernel(2, 7, 7, 512) == "tiled"
    assert kernel(2, 4, 4, 8) == "plain"
    assert kernel(2, 64, 64, 1) == "plain"  # nothing changes its place
    assert kernel(2, 1, 1, 512) == "plain"


@pytest.mark.parametrize("shape", [(2, 16, 16, 32), (1, 8, 8, 128)])
def test_tiles_move_each_sector_once_and_meet_no_bank_conflict(shape) -> None:
    n, h, w, c = shape
    x, y = blank(shape), blank((n, c * h * w))
    sectors = x.nbytes // 32
    for host, arrays in ((channels_first, (x, y)), (channels_last, (y, x))):
        tiled, plain = (figures(host, *arrays, technique=technique) for technique in ("tiled", "plain"))
        assert (tiled.load_sectors, tiled.store_sectors, tiled.bank_conflicts) == (sectors, sectors, 0)
        assert (plain.load_sectors, plain.store_sectors) == (8 * sectors, sectors)


def test_indices_of_transposes_are_32_bits_wide_where_that_is_enough() -> None:
    # Memory that is never touched costs nothing.
    for n, index in ((2**31, uint32), (2**31 + 4, int64)):
        recorder = Recorder()
        whole = np.empty((n // 4, 4), np.float32)
        channels_first(recorder, whole.reshape(n // 4, 2, 1, 2), whole)
        assert {kernel.arguments[0] for kernel in recorder.kernels} == {index}


def test_images_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"channels_first: y has shape \(2, 17\), expected \(2, 18\)"):
        channels_first(RUN, blank((2, 3, 3, 2)), blank((2, 17)))
    with pytest.raises(ShapeError, match=r"channels_first: x has shape \(2, 9\), expected \(n, h, w, c\)"):
        channels_first(RUN, blank((2, 9)), blank((2, 9)))
    with pytest.raises(ShapeError, match=r"channels_last: x has shape \(1, 18\), expected \(2, 18\)"):
        channels_last(RUN, blank((1, 18)), blank((2, 3, 3, 2)))
