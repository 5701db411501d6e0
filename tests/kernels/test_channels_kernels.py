import numpy as np
import pytest
from emulated import RUN, Recorder, blank, figures, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.channels import concat, concat_reference, copy_columns_scalar, copy_columns_vector, split
from kernels.errors import ShapeError
from kernels.storage import FLOAT32

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


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    x = placed(rng.standard_normal((70, 36)))
    for factory in (copy_columns_scalar, copy_columns_vector):
        out = blank((70, 8))
        RUN(factory(index, 8, 36, 8, FLOAT32), x, out, out.size)
        assert_array_equal(out, x[:, :8])


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
        assert {kernel.arguments[0] for kernel in recorder.kernels} == {index}


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"concat: parts\[1\] has shape \(3, 2\), but out has \(2, 4\)"):
        concat(RUN, [blank((2, 2)), blank((3, 2))], blank((2, 4)))
    with pytest.raises(ShapeError, match=r"split: the parts have \[1, 2\] channels, but whole has shape \(2, 4\)"):
        split(RUN, blank((2, 4)), [blank((2, 1)), blank((2, 2))])
