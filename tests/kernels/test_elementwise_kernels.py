import numpy as np
import pytest
from emulated import RUN, blank, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.elementwise import add, add_reference, add_scalar, add_vector
from kernels.errors import ShapeError
from kernels.storage import FLOAT32

SHAPES = [(0, 3), (1,), (3,), (4,), (5,), (1023,), (1024,), (1025,), (3, 5, 7, 11), (4099, 1)]
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3e38], np.float32)


def values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL[: x.size]
    return x


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "scalar", "vector"])
@pytest.mark.parametrize("shape", SHAPES)
def test_add(rng, shape, technique, offset: int) -> None:
    a, b, out = values(rng, shape), rng.permutation(values(rng, shape)), blank(shape, offset)
    run_by(technique, offset == 0 or out.size == 0, add, RUN, placed(a, offset), placed(b, offset), out)
    assert_array_equal(out, add_reference(a, b))


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_add_in_place(rng, technique: str) -> None:
    a, b = values(rng, (2051,)), rng.standard_normal(2051).astype(np.float32)
    for target in (0, 1):
        arrays = placed(a), placed(b)
        add(RUN, *arrays, arrays[target], technique=technique)
        assert_array_equal(arrays[target], add_reference(a, b))
        assert_array_equal(arrays[1 - target], (a, b)[1 - target])


def test_add_an_array_to_itself() -> None:
    a = placed(np.arange(1030))
    add(RUN, a, a, a)
    assert_array_equal(a, 2 * np.arange(1030))


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    a, b = placed(values(rng, (2051,))), placed(values(rng, (2051,)))
    for factory in (add_scalar, add_vector):
        out = blank(a.shape)
        RUN(factory(index, FLOAT32), a, b, out, a.size)
        assert_array_equal(out, add_reference(a, b))


def test_vectors_where_all_arrays_are_aligned() -> None:
    aligned, shifted = blank((8,)), blank((8,), offset=1)
    assert launched(add, aligned, aligned, aligned) == ["add_vector"]
    assert launched(add, aligned, aligned, aligned, technique="scalar") == ["add_scalar"]
    for arrays in ((shifted, aligned, aligned), (aligned, shifted, aligned), (aligned, aligned, shifted)):
        assert launched(add, *arrays) == ["add_scalar"]


def test_shapes_that_differ() -> None:
    with pytest.raises(ShapeError, match=r"add: b has shape \(3,\), expected \(2,\)"):
        add(RUN, blank((2,)), blank((3,)), blank((2,)))
