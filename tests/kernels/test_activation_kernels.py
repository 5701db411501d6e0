import numpy as np
import pytest
from emulated import RUN, blank, figures, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.activation import (
    relu_backward,
    relu_backward_reference,
    relu_backward_scalar,
    relu_backward_vector,
    relu_forward,
    relu_forward_reference,
    relu_forward_scalar,
    relu_forward_vector,
)
from kernels.errors import ShapeError
from kernels.storage import FLOAT32

SHAPES = [(0,), (0, 3), (1,), (3,), (4,), (5,), (1023,), (1024,), (1025,), (3, 5, 7, 11), (4099, 1)]
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e38], np.float32)


def values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL[: x.size]
    return x


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "scalar", "vector"])
@pytest.mark.parametrize("shape", SHAPES)
def test_relu(rng, shape, technique, offset: int) -> None:
    x = values(rng, shape)
    y = blank(shape, offset)
    run_by(technique, offset == 0 or y.size == 0, relu_forward, RUN, placed(x, offset), y)
    assert_array_equal(y, relu_forward_reference(x))

    dy = rng.permutation(values(rng, shape).reshape(-1)).reshape(shape)
    dx = blank(shape, offset)
    run_by(technique, offset == 0 or y.size == 0, relu_backward, RUN, placed(dy, offset), y, dx)
    assert_array_equal(dx, relu_backward_reference(dy, y))


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    x, dy = placed(values(rng, (2051,))), placed(values(rng, (2051,)))
    for factory in (relu_forward_scalar, relu_forward_vector):
        y = blank(x.shape)
        RUN(factory(index, FLOAT32), x, y, x.size)
        assert_array_equal(y, relu_forward_reference(x))
    for factory in (relu_backward_scalar, relu_backward_vector):
        dx = blank(x.shape)
        RUN(factory(index, FLOAT32), dy, x, dx, x.size)
        assert_array_equal(dx, relu_backward_reference(dy, x))


def test_more_elements_than_32_bits_count_fit_the_grid() -> None:
    for factory in (relu_forward_scalar, relu_forward_vector):
        kernel, n = factory(int64, FLOAT32), 2**36 + 5
        blocks = kernel.grid([None, None, n])[0]
        assert (blocks - 1) * 256 < n <= blocks * 1024


def test_vectors_where_all_arrays_are_aligned() -> None:
    aligned, shifted = blank((8,)), blank((8,), offset=1)
    assert launched(relu_forward, aligned, aligned) == ["relu_forward_vector"]
    assert launched(relu_forward, aligned, aligned, technique="scalar") == ["relu_forward_scalar"]
    assert launched(relu_forward, shifted, aligned) == ["relu_forward_scalar"]
    assert launched(relu_forward, aligned, shifted) == ["relu_forward_scalar"]
    assert launched(relu_backward, aligned, aligned, aligned) == ["relu_backward_vector"]
    for arrays in ((shifted, aligned, aligned), (aligned, shifted, aligned), (aligned, aligned, shifted)):
        assert launched(relu_backward, *arrays) == ["relu_backward_scalar"]


def test_vectors_take_a_quarter_of_the_requests_and_move_each_sector_once() -> None:
    x, y = blank((4096,)), blank((4096,))
    scalar, vector = (figures(relu_forward, x, y, technique=technique) for technique in ("scalar", "vector"))
    assert (scalar.load_requests, vector.load_requests, vector.store_requests) == (128, 32, 32)
    assert {scalar.load_sectors, vector.load_sectors, vector.store_sectors} == {512}


def test_shapes_that_differ() -> None:
    with pytest.raises(ShapeError, match=r"relu_forward: y has shape \(3,\), expected \(2,\)"):
        relu_forward(RUN, blank((2,)), blank((3,)))
    with pytest.raises(ShapeError, match=r"relu_backward: dx has shape \(2, 3\), expected \(3, 2\)"):
        relu_backward(RUN, blank((3, 2)), blank((3, 2)), blank((2, 3)))
