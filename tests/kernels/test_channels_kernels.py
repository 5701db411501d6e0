import numpy as np
import pytest
from emulated import RUN, Recorder, blank, figures, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.channels import (
    channels_first,
    channels_first_reference,
    channels_last,
    channels_last_reference,
    concat,
    concat_reference,
    copy_columns_scalar,
    copy_columns_vector,
    split,
    transpose_plain,
    transpose_tiled,
)
from kernels.errors import ShapeError

CHANNELS = [(1,), (3, 5), (4, 8), (1, 1, 1), (16, 17, 2, 64), (4, 3, 5), (0, 3), (4, 0, 4)]
LEADING = [(0, 3, 3), (1,), (2, 5, 7), (127,), (3, 100)]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "scalar", "vector"])
@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("channels", CHANNELS)
def test_concat_and_split(rng, channels, leading, technique, offset: int) -> None:
    parts = [placed(rng.standard_normal((*leading, c)), offset) for c in channels]
    whole = blank((*leading, sum(channels)), offset)
    fits = (offset == 0 or whole.size == 0) and not any(c % 4 for c in channels)
    run_by(technique, fits, concat, RUN, parts, whole)
    assert_array_equal(whole, concat_reference(parts))

    again = [blank(part.shape, offset) for part in parts]
    run_by(technique, fits, split, RUN, whole, again)
    for part, back in zip(parts, again, strict=True):
        assert_array_equal(part, back)


def test_parts_are_moved_in_vectors_where_they_can_be() -> None:
    def kernels(*channels: int, offset: int = 0, technique: str | None = None) -> list[str]:
        parts = [blank((5, c), offset) for c in channels]
        names = launched(concat, parts, blank((5, sum(channels))), technique=technique)
        assert launched(split, blank((5, sum(channels))), parts, technique=technique) == names
        return [name.removeprefix("copy_columns_") for name in names]

    assert kernels(4, 8) == ["vector", "vector"]
    assert kernels(4, 8, technique="scalar") == ["scalar", "scalar"]
    assert kernels(4, 8, technique="vector") == ["vector", "vector"]
    assert kernels(4, 8, offset=1) == ["scalar", "scalar"]
    assert kernels(4, 3, 1) == ["vector", "scalar", "scalar"]
    assert kernels(4, 3) == ["scalar", "scalar"]  # rows of 7 elements start anywhere
    assert kernels(3, 5) == ["scalar", "scalar"]
    assert kernels(2, 4, 2) == ["scalar", "scalar", "scalar"]  # the second part starts at half a vector


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
def test_both_index_types(rng, index) -> None:
    x = placed(rng.standard_normal((2, 35, 36)))
    for kernel, number in ((transpose_plain(index, 35, 36), x.size), (transpose_tiled(index, 35, 36), 2)):
        y = blank((2, 36, 35))
        RUN(kernel, x, y, number)
        assert_array_equal(y, x.transpose(0, 2, 1))
    for factory in (copy_columns_scalar, copy_columns_vector):
        out = blank((70, 8))
        RUN(factory(index, 8, 36, 8), x, out, out.size)
        assert_array_equal(out, x.reshape(70, 36)[:, :8])


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


def test_vectors_take_a_quarter_of_the_requests() -> None:
    parts, whole = [blank((300, 64))], blank((300, 64))
    scalar, vector = (figures(concat, parts, whole, technique=technique) for technique in ("scalar", "vector"))
    assert 4 * vector.load_requests == 4 * vector.store_requests == scalar.load_requests == scalar.store_requests
    assert vector.load_sectors == vector.store_sectors == whole.nbytes // 32


def test_indices_are_32_bits_wide_where_that_is_enough() -> None:
    # Memory that is never touched costs nothing.
    for n, index in ((2**31, uint32), (2**31 + 4, int64)):
        recorder = Recorder()
        whole, part = np.empty((n // 4, 4), np.float32), np.empty((n // 4, 2), np.float32)
        split(recorder, whole, [part, part])
        channels_first(recorder, whole.reshape(n // 4, 2, 1, 2), whole)
        assert {kernel.arguments[0] for kernel in recorder.kernels} == {index}


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"concat: parts\[1\] has shape \(3, 2\), but out has \(2, 4\)"):
        concat(RUN, [blank((2, 2)), blank((3, 2))], blank((2, 4)))
    with pytest.raises(ShapeError, match=r"split: the parts have \[1, 2\] channels, but whole has shape \(2, 4\)"):
        split(RUN, blank((2, 4)), [blank((2, 1)), blank((2, 2))])
    with pytest.raises(ShapeError, match=r"channels_first: y has shape \(2, 17\), expected \(2, 18\)"):
        channels_first(RUN, blank((2, 3, 3, 2)), blank((2, 17)))
    with pytest.raises(ShapeError, match=r"channels_first: x has shape \(2, 9\), expected \(n, h, w, c\)"):
        channels_first(RUN, blank((2, 9)), blank((2, 9)))
    with pytest.raises(ShapeError, match=r"channels_last: x has shape \(1, 18\), expected \(2, 18\)"):
        channels_last(RUN, blank((1, 18)), blank((2, 3, 3, 2)))
