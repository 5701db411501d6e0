"""The norm of many arrays and clipping by it: the definitions, and the kernels in the emulator."""

import re

import numpy as np
import pytest
from emulated import RUN, blank, launched, placed
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels.errors import ShapeError
from kernels.gradient_norm import (
    clip_by_norm,
    clip_by_norm_reference,
    global_norm,
    global_norm_reference,
    sum_squares_scalar,
    sum_squares_vector,
)
from kernels.run_emulated import EmulatorRunner
from kernels.updates import CHUNK, chunks_of

SHAPES = ((), (1,), (3, 5), (0, 4), (CHUNK,), (CHUNK + 6,), (2 * CHUNK - 1,))
TECHNIQUES = "scalar", "vector"
LARGEST = float(np.finfo(np.float32).max)


def norm_of(*arrays, technique=None) -> float:
    norm = blank(())
    global_norm(RUN, [placed(array) for array in arrays], norm, technique=technique)
    return float(norm)


def test_by_hand() -> None:
    assert global_norm_reference([np.array([3.0]), np.array([[0.0, -4.0]])]) == 5
    assert_allclose(clip_by_norm_reference(np.array([3.0, -4.0]), 5.0, 2.5), [1.5, -2], rtol=1e-6)
    assert_array_equal(clip_by_norm_reference(np.array([3.0, -4.0]), 5.0, 6.0), [3, -4])


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 2.0, 100.0])
def test_agrees_with_pytorch(torch, rng, max_norm: float) -> None:
    arrays = [rng.standard_normal(shape) for shape in ((3, 4), (), (7,))]
    theirs = [torch.nn.Parameter(torch.tensor(array)) for array in arrays]
    for parameter, array in zip(theirs, arrays, strict=True):
        parameter.grad = torch.tensor(array)
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    ours = global_norm_reference(arrays)
    assert_allclose(ours, norm.numpy(), rtol=1e-14)
    for parameter, array in zip(theirs, arrays, strict=True):
        assert_allclose(clip_by_norm_reference(array, ours, max_norm), parameter.grad.numpy(), rtol=1e-13)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_norm_of_many_tensors(rng, technique: str) -> None:
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in map(tuple, SHAPES[1:])]
    exact = global_norm_reference([array.astype(np.float64) for array in arrays])
    assert_allclose(norm_of(*arrays, technique=technique), exact, rtol=1e-6)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, technique: str, index) -> None:
    x = placed(rng.standard_normal(CHUNK + 5))
    partial, factory = blank((6,)), {"scalar": sum_squares_scalar, "vector": sum_squares_vector}[technique]
    RUN(factory(index), RUN.addresses([x]), chunks_of(RUN, (x.size,)), partial, 2, x.size)
    assert_allclose(partial[2:4], [np.square(x[:CHUNK]).sum(), np.square(x[CHUNK:]).sum()], rtol=1e-5)
    assert not partial[[0, 1, 4, 5]].any()


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(
    "value", [2.0**-149, 3e-45, 1e-40, 1e-30, 1e-19, 1.0, 3e13, 1e18, 2e19, 1e25, LARGEST], ids=str
)
def test_squares_neither_overflow_nor_underflow(technique: str, value: float) -> None:
    close = {"rtol": 2e-7, "atol": 2.0**-149}  # the next denormal number
    assert_allclose(norm_of([value], technique=technique), np.float32(value), **close)
    assert_allclose(norm_of([0, -value / 4] * 8, technique=technique), np.sqrt(8) * np.float32(value / 4), **close)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("border", [2.0**-60, 2.0**46])
def test_numbers_on_both_sides_of_a_border_are_added(technique: str, border: float) -> None:
    values = np.array([1, np.nextafter(1, 2), np.nextafter(1, 0), 0.7, 1.6] * 3, np.float32) * border
    exact = np.sqrt(np.square(values.astype(np.float64)).sum())
    assert_allclose(norm_of(values, technique=technique), exact, rtol=2e-7)


def test_of_all_three_sizes_the_largest_count(rng) -> None:
    values = np.array([1e-30, 1.0, 2.0, 1e20, 3e-41], np.float32)
    assert_allclose(norm_of(values), np.float32(1e20), rtol=2e-7)
    assert_allclose(norm_of(values[[0, 1, 2, 4]]), np.sqrt(5), rtol=2e-7)
    assert_allclose(norm_of(values[[0, 4]]), np.float32(1e-30), rtol=2e-7)
    several = rng.standard_normal((3, CHUNK)) * [[1e13], [3e13], [2e14]]  # the last of them above the border
    assert_allclose(norm_of(*several), np.sqrt(np.square(several).sum()), rtol=1e-6)


def test_a_norm_beyond_float32_is_infinite() -> None:
    assert norm_of([LARGEST, LARGEST]) == np.inf


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, np.nan), np.nan),
        ((np.inf, 1), np.inf),
        ((-np.inf, 1e30, np.inf), np.inf),
        ((np.nan, np.inf), np.nan),
        ((np.nan, 1e30), np.nan),
        ((np.nan, 1e-40), np.nan),
    ],
)
def test_what_is_not_finite_shows(technique: str, values, expected) -> None:
    assert_array_equal(norm_of(values, np.ones(CHUNK + 1), technique=technique), expected)


def test_of_nothing_the_norm_is_0() -> None:
    assert norm_of() == norm_of(np.zeros((0, 3))) == norm_of(np.zeros(5)) == 0


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("norm", "max_norm"), [(4.0, 1.0), (1.0, 4.0), (0.0, 1.0), (3.0, 0.0), (1e30, 1e-3)])
def test_clipping(rng, technique: str, norm: float, max_norm: float) -> None:
    arrays = [placed(rng.standard_normal(shape)) for shape in SHAPES]
    before = [array.astype(np.float64) for array in arrays]
    clip_by_norm(RUN, arrays, placed(norm), max_norm, technique=technique)
    for array, old in zip(arrays, before, strict=True):
        assert_allclose(array, clip_by_norm_reference(old, norm, max_norm), rtol=4e-7, atol=1e-45)
        if norm < max_norm:
            assert_array_equal(array, old)


def test_clipping_by_a_norm_that_is_not_finite() -> None:
    array = placed([1, np.inf, np.nan])
    clip_by_norm(RUN, [array], placed(np.inf), 1.0)
    assert_array_equal(array, [0, np.nan, np.nan])
    array = placed([1, 2, 3])
    clip_by_norm(RUN, [array], placed(np.nan), 1.0)
    assert np.isnan(array).all()


def test_an_array_that_is_not_aligned_makes_it_scalar() -> None:
    for offset, wanted in ((0, "vector"), (1, "scalar")):
        run, arrays = EmulatorRunner(counts=True), [placed(np.ones(8)), placed(np.ones(8), offset)]
        norm = blank(())
        global_norm(run, arrays, norm)
        clip_by_norm(run, arrays, norm, 1.0)
        names = [launched.kernel.name for launched in run.launched]
        assert names == [f"sum_squares_{wanted}", "norm_of_squares", "clip_factor", f"update_tensors_{wanted}"]
    assert launched(clip_by_norm, [], blank(()), 1.0) == ["clip_factor"]


def test_what_does_not_fit_is_refused() -> None:
    array = placed(np.ones(3))
    with pytest.raises(ShapeError, match=re.escape("global_norm: norm has shape (1,), expected ()")):
        global_norm(RUN, [array], blank((1,)))
    with pytest.raises(ShapeError, match=re.escape("clip_by_norm: norm has shape (3,), expected ()")):
        clip_by_norm(RUN, [array], array, 1.0)
    for max_norm in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"clip_by_norm: max_norm is .*, expected a number of at least 0"):
            clip_by_norm(RUN, [array], placed(5.0), max_norm)
    assert_array_equal(array, 1)
