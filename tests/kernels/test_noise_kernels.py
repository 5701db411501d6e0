"""What `verify` does not look at: which kernels are launched, arguments that do not fit, both index types."""

import numpy as np
import pytest
from emulated import RUN, blank, launched, number, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.errors import ShapeError
from kernels.noise import (
    noise_backward,
    noise_factors,
    noise_forward,
    noise_scalar,
    noise_terms,
    noise_vector,
)
from kernels.random import seed_words

PAPER = 0.5, 1.25, 0.1
NUMBERS = 2**40 + 17, 2**32 - 4, 2**32 - 1  # seed, stream, call: the last of each that there are
GIVEN = *NUMBERS[:2], number(NUMBERS[2])
UNIT = 2.0**-24


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "scalar", "vector"])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3,), (8,), (5, 3), (5, 8), (67, 5), (2, 9, 7, 12), (513, 4)])
def test_numbers_are_the_references(shape, technique, offset: int) -> None:
    """Of x = 0 there is m alone, of dy = 1 there is s; both within the few roundings that make them."""
    ones, zeros = placed(np.ones(shape), offset), placed(np.zeros(shape), offset)
    y, dx = blank(shape, offset), blank(shape, offset)
    fits = (offset == 0 or y.size == 0) and shape[-1] % 4 == 0
    run_by(technique, fits, noise_forward, RUN, zeros, y, *PAPER, *GIVEN)
    run_by(technique, fits, noise_backward, RUN, ones, dx, *PAPER[1:], *GIVEN)
    m = noise_terms(shape, PAPER[0], PAPER[2], *NUMBERS)
    s = noise_factors(shape, *PAPER[1:], *NUMBERS)
    assert np.abs(y - m).max(initial=0) <= 4 * UNIT * 0.6
    assert np.abs(dx - s).max(initial=0) <= 5 * UNIT * 1.35


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_in_place(rng, technique: str) -> None:
    x = rng.standard_normal((33, 8)).astype(np.float32)
    y, in_place = blank(x.shape), placed(x)
    noise_forward(RUN, placed(x), y, *PAPER, *GIVEN, technique=technique)
    noise_forward(RUN, in_place, in_place, *PAPER, *GIVEN, technique=technique)
    assert_array_equal(in_place, y)


@pytest.mark.parametrize("shape", [(77, 8), (5, 1028), (300, 4), (2049, 20)], ids=str)
def test_both_techniques_have_the_same_bits(rng, shape: tuple[int, int]) -> None:
    """Over several rows of a thread, and channels of several blocks."""
    x, y, other = placed(rng.standard_normal(shape)), blank(shape), blank(shape)
    noise_forward(RUN, x, y, *PAPER, *GIVEN, technique="scalar")
    noise_forward(RUN, x, other, *PAPER, *GIVEN, technique="vector")
    assert_array_equal(y, other)
    noise_backward(RUN, x, y, *PAPER[1:], *GIVEN, technique="scalar")
    noise_backward(RUN, x, other, *PAPER[1:], *GIVEN, technique="vector")
    assert_array_equal(y, other)


@pytest.mark.parametrize("forward", [True, False])
def test_both_index_types_have_the_same_bits(rng, forward: bool) -> None:
    x, factors, terms = placed(rng.standard_normal((77, 8))), placed(rng.uniform(1, 2, 8)), placed(rng.uniform(size=8))
    scalar, vector = ([blank(x.shape), blank(x.shape)] for _ in range(2))
    for i, index in enumerate((uint32, int64)):
        given = factors, terms, scalar[i], x.size, 0.1, 2, *seed_words(1)
        RUN(noise_scalar(8, forward, index), x, number(3), *given)
        RUN(noise_vector(8, forward, index), x, number(3), vector[i], 77, 31, 0.1, 0.2, 0.3, 2, *seed_words(1))
    assert_array_equal(*scalar)
    assert_array_equal(*vector)


def test_vectors_where_channels_come_by_fours_and_arrays_are_aligned() -> None:
    fours, threes, shifted = blank((3, 8)), blank((8, 3)), blank((3, 8), offset=1)
    scalar = ["noise_of_channels", "noise_scalar"]
    assert launched(noise_forward, fours, fours, *PAPER, *GIVEN) == ["noise_vector"]
    assert launched(noise_forward, fours, fours, *PAPER, *GIVEN, technique="scalar") == scalar
    assert launched(noise_forward, threes, threes, *PAPER, *GIVEN) == scalar
    assert launched(noise_forward, shifted, fours, *PAPER, *GIVEN) == scalar
    assert launched(noise_backward, fours, shifted, *PAPER[1:], *GIVEN) == scalar


def test_arguments_that_do_not_fit() -> None:
    x = blank((2, 3))
    with pytest.raises(ShapeError, match=r"noise_forward: y has shape \(3, 2\), expected \(2, 3\)"):
        noise_forward(RUN, x, blank((3, 2)), *PAPER, 0, 0, number(0))
    with pytest.raises(ShapeError, match=r"noise_backward: an array has shape \(2, 0\), expected \(\.\.\., c\)"):
        noise_backward(RUN, blank((2, 0)), blank((2, 0)), *PAPER[1:], 0, 0, number(0))
    with pytest.raises(ValueError, match=r"noise: scale = 0\.5, expected a number of at least 1"):
        noise_backward(RUN, x, x, 0.5, 0.1, 0, 0, number(0))
    assert (x == 77).all()
