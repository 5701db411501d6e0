"""Scaling as kernels, in the emulator."""

import re

import numpy as np
import pytest
from emulated import RUN, blank, figures, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels.errors import ShapeError
from kernels.scale import (
    CHUNK,
    scale_backward,
    scale_backward_reference,
    scale_backward_scalar,
    scale_backward_vector,
    scale_forward,
    scale_forward_scalar,
    scale_forward_vector,
)
from kernels.storage import FLOAT32
from kernels.sums import add_partial_sums

TECHNIQUES = [None, "scalar", "vector"]
SHAPES = [(0,), (1,), (3,), (5, 1), (1023,), (3, 5, 7, 11), (CHUNK,), (CHUNK + 1,), (2 * CHUNK + 7,)]
FACTOR = placed(-0.7)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scale(rng, shape, technique, offset: int) -> None:
    x, dy = placed(rng.standard_normal(shape), offset), placed(rng.standard_normal(shape), offset)
    y, dx, dfactor = blank(shape, offset), blank(shape, offset), blank(())
    run_by(technique, offset == 0 or y.size == 0, scale_forward, RUN, x, FACTOR, y)
    assert_array_equal(y, FACTOR * x)
    run_by(technique, offset == 0 or y.size == 0, scale_backward, RUN, x, dy, FACTOR, dx, dfactor)
    assert_array_equal(dx, FACTOR * dy)
    _, expected = scale_backward_reference(x.astype(np.float64), dy.astype(np.float64), FACTOR)
    assert_allclose(dfactor, expected, rtol=0, atol=1e-7 + 1e-6 * np.abs(x * dy).sum())


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    x, dy = placed(rng.standard_normal(4099)), placed(rng.standard_normal(4099))
    for factory in (scale_forward_scalar, scale_forward_vector):
        y = blank(x.shape)
        RUN(factory(index, FLOAT32), x, FACTOR.reshape(1), y, x.size)
        assert_array_equal(y, FACTOR * x)
    for factory in (scale_backward_scalar, scale_backward_vector):
        dx, partial = blank(x.shape), blank((2,))
        RUN(factory(index, FLOAT32), x, dy, FACTOR.reshape(1), dx, partial, x.size)
        assert_array_equal(dx, FACTOR * dy)
        assert_allclose(partial[1], (x * dy)[CHUNK:].sum(), rtol=1e-5)


def test_in_place(rng) -> None:
    for technique in TECHNIQUES:
        x, dy = placed(rng.standard_normal(4099)), placed(rng.standard_normal(4099))
        before, expected, dfactor = dy.copy(), FACTOR * x, blank(())
        scale_backward(RUN, x, dy, FACTOR, dy, dfactor, technique=technique)
        assert_array_equal(dy, FACTOR * before)
        assert_allclose(dfactor, (x * before).sum(dtype=np.float64), atol=1e-3)
        scale_forward(RUN, x, FACTOR, x, technique=technique)
        assert_array_equal(x, expected)


def test_partial_sums_lose_nothing_however_many_they_are() -> None:
    """1 + 2^-24 + 2^-24 + ... in float32 stays 1."""
    partial, total = np.full(100_003, 2.0**-24, np.float32), blank(())
    partial[0] = 1
    RUN(add_partial_sums(), partial, total.reshape(1), partial.size)
    assert total == np.float32(1 + 100_002 * 2.0**-24)


@pytest.mark.parametrize(
    ("values", "expected"), [((np.inf, 1), np.inf), ((np.inf, -np.inf), np.nan), ((np.nan, np.inf), np.nan), ((), 0)]
)
def test_partial_sums_that_are_not_finite(values, expected) -> None:
    partial, total = placed(values), blank(())
    RUN(add_partial_sums(), partial, total.reshape(1), partial.size)
    assert_array_equal(total, np.float32(expected))


def test_an_array_that_is_not_aligned_makes_it_scalar() -> None:
    even, odd, out = placed(np.ones(8)), placed(np.ones(8), 1), blank((8,))
    assert launched(scale_forward, even, FACTOR, out) == ["scale_forward_vector"]
    assert launched(scale_forward, even, FACTOR, odd) == ["scale_forward_scalar"]
    assert launched(scale_backward, even, out, FACTOR, odd, blank(())) == ["scale_backward_scalar", "add_partial_sums"]


def test_the_vector_techniques_need_a_quarter_of_the_requests() -> None:
    x, y = placed(np.ones(CHUNK)), blank((CHUNK,))
    scalar, vector = (figures(scale_forward, x, FACTOR, y, technique=name) for name in ("scalar", "vector"))
    assert (scalar.store_requests, vector.store_requests) == (CHUNK // 32, CHUNK // 128)
    assert scalar.store_sectors == vector.store_sectors == CHUNK // 8


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, y, other = placed(np.ones(6)), blank((6,)), blank((5,))
    with pytest.raises(ShapeError, match=re.escape("scale_forward: y has shape (5,), expected (6,) as x has")):
        scale_forward(RUN, x, FACTOR, other)
    with pytest.raises(ShapeError, match=re.escape("scale_forward: factor has shape (1,), expected ()")):
        scale_forward(RUN, x, FACTOR.reshape(1), y)
    with pytest.raises(ShapeError, match=re.escape("scale_backward: dy has shape (5,), expected (6,) as x has")):
        scale_backward(RUN, x, other, FACTOR, y, blank(()))
    with pytest.raises(ShapeError, match=re.escape("scale_backward: dfactor has shape (6,), expected ()")):
        scale_backward(RUN, x, x, FACTOR, y, blank((6,)))
    assert (y == 77).all()
