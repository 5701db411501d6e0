"""Batch normalization's backward a pass at a time: the same bits as all of it at once, and what is refused."""

from typing import Any

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, launched, placed
from numpy.testing import assert_allclose, assert_array_equal

from kernels import batchnorm
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.errors import ShapeError, TechniqueError

Array = np.ndarray


def problem(rng: np.random.Generator, shape: tuple[int, ...], affine: bool = True) -> tuple[Any, ...]:
    """x, dy, a residual block's output, statistics, gamma, beta."""
    x, dy, y = (placed(rng.standard_normal(shape)) for _ in range(3))
    statistics = batchnorm.batchnorm_statistics_reference(x.astype(np.float64), 1e-5)
    gamma, beta = (placed(rng.standard_normal(shape[-1:])) if affine else None for _ in range(2))
    return x, dy, np.maximum(y, 0), BatchStatistics(*(placed(part) for part in statistics)), gamma, beta


def empty_sums(c: int) -> GradientSums:
    return GradientSums(*(blank((c,)) for _ in range(4)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(37, 5), (3, 5, 7, 8), (2100, 4)], ids=str)
def test_two_passes_have_the_bits_of_backward(rng, shape, relu: bool, affine: bool) -> None:
    x, dy, _, statistics, gamma, beta = problem(rng, shape, affine)
    sums, dx, normalization = empty_sums(shape[-1]), blank(shape), Normalization(statistics, gamma, beta, relu)
    for technique in (None, "scalar"):
        batchnorm.batchnorm_gradient_sums(RUN, x, dy, normalization, sums, technique=technique)
        pending = PendingGradient(dy, x, normalization, sums)
        batchnorm.batchnorm_pending_gradient(RUN, pending, dx, technique=technique)
        whole = blank(shape), blank(shape[-1:]), blank(shape[-1:])
        chosen = "scalar" if technique or shape[-1] % 4 else "vector"
        batchnorm.batchnorm_backward(RUN, x, dy, statistics, gamma, beta, *whole, True, relu, technique=chosen)
        for one, other in zip((dx, sums.dgamma, sums.dbeta), whole, strict=True):
            assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(37, 5), (3, 5, 7, 8)], ids=str)
def test_two_passes_at_the_end_of_a_residual_block_too(rng, shape) -> None:
    x, dy, y, statistics, gamma, _ = problem(rng, shape)
    sums, dx, dresidual = empty_sums(shape[-1]), blank(shape), blank(shape)
    batchnorm.batchnorm_add_relu_gradient_sums(RUN, x, y, dy, statistics, dresidual, sums)
    pending = PendingGradient(dresidual, x, Normalization(statistics, gamma, gamma, relu=False), sums)
    batchnorm.batchnorm_pending_gradient(RUN, pending, dx)
    whole = blank(shape), blank(shape), blank(shape[-1:]), blank(shape[-1:])
    technique = "scalar" if shape[-1] % 4 else "vector"
    batchnorm.batchnorm_add_relu_backward(RUN, x, y, dy, statistics, gamma, *whole, True, technique=technique)
    for one, other in zip((dx, dresidual, sums.dgamma, sums.dbeta), whole, strict=True):
        assert_array_equal(one, other)


def test_a_gradient_that_is_masked_already_may_be_masked_again(rng) -> None:
    x, dy, _, statistics, gamma, beta = problem(rng, (300, 8))
    normalization = Normalization(statistics, gamma, beta, relu=True)
    y, sums = blank(x.shape), empty_sums(8)
    batchnorm.batchnorm_apply(RUN, x, statistics, gamma, beta, y, True)
    batchnorm.batchnorm_gradient_sums(RUN, x, dy, normalization, sums)
    dx, again = blank(x.shape), blank(x.shape)
    batchnorm.batchnorm_pending_gradient(RUN, PendingGradient(dy, x, normalization, sums), dx)
    masked = placed(np.where(y > 0, dy, 0))
    batchnorm.batchnorm_pending_gradient(RUN, PendingGradient(masked, x, normalization, sums), again)
    assert_array_equal(dx, again)


def test_references_put_together_are_backward(rng) -> None:
    x, dy, _, statistics, gamma, beta = problem(rng, (50, 3))
    wide = [np.asarray(array, np.float64) for array in (x, dy, gamma, beta)]
    given = BatchStatistics(*(part.astype(np.float64) for part in statistics))
    for relu in (False, True):
        normalization = Normalization(given, *wide[2:], relu)
        sums = batchnorm.batchnorm_gradient_sums_reference(*wide[:2], normalization)
        dx = batchnorm.batchnorm_pending_gradient_reference(PendingGradient(wide[1], wide[0], normalization, sums))
        right = batchnorm.batchnorm_backward_reference(*wide[:2], given, *wide[2:], True, relu)
        for got, expected in zip((dx, sums.dgamma, sums.dbeta), right, strict=True):
            assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_launches() -> None:
    x, c = blank((40, 8)), blank((8,))
    statistics, sums = BatchStatistics(c, c, c, c), GradientSums(None, None, c, c)
    normalization = Normalization(statistics, c, c, relu=True)
    pending = PendingGradient(x, x, normalization, sums)
    assert launched(batchnorm.batchnorm_gradient_sums, x, x, normalization, sums) == [
        "batchnorm_sum_gradients_vector", "batchnorm_finish_gradients",
    ]  # fmt: skip
    assert launched(batchnorm.batchnorm_add_relu_gradient_sums, x, x, x, statistics, x, sums) == [
        "batchnorm_mask_and_sum_gradients_vector", "batchnorm_finish_gradients",
    ]  # fmt: skip
    assert launched(batchnorm.batchnorm_pending_gradient, pending, x) == ["batchnorm_backward_vector"]
    off = sums._replace(slope=blank((8,), offset=1))
    assert launched(batchnorm.batchnorm_pending_gradient, pending._replace(sums=off), x) == [
        "batchnorm_backward_scalar"
    ]
    with pytest.raises(TechniqueError, match="slope starts at no multiple of 16 bytes"):
        batchnorm.batchnorm_pending_gradient(Recorder(), pending._replace(sums=off), x, technique="vector")


def test_wrong_arguments_are_refused() -> None:
    run, x, c, short = Recorder(), blank((5, 8)), blank((8,)), blank((7,))
    statistics, sums = BatchStatistics(c, c, c, c), GradientSums(None, None, c, c)
    normalization, other = Normalization(statistics, c, c, relu=True), blank((4, 8))
    first, residual = batchnorm.batchnorm_gradient_sums, batchnorm.batchnorm_add_relu_gradient_sums
    second = batchnorm.batchnorm_pending_gradient
    with pytest.raises(ShapeError, match=r"batchnorm_gradient_sums: dy has shape \(4, 8\), expected \(5, 8\)"):
        first(run, x, other, normalization, sums)
    with pytest.raises(ShapeError, match=r"batchnorm_gradient_sums: mean_g has shape \(7,\), expected \(8,\)"):
        first(run, x, x, normalization, sums._replace(mean_g=short))
    with pytest.raises(TypeError, match="batchnorm_gradient_sums: gamma and beta are given together"):
        first(run, x, x, normalization._replace(beta=None), sums)
    with pytest.raises(ShapeError, match=r"batchnorm_add_relu_gradient_sums: dresidual has shape \(4, 8\)"):
        residual(run, x, x, x, statistics, other, sums)
    with pytest.raises(ShapeError, match=r"batchnorm_pending_gradient: dx has shape \(4, 8\), expected \(5, 8\)"):
        second(run, PendingGradient(x, x, normalization, sums), other)
    with pytest.raises(ShapeError, match=r"batchnorm_pending_gradient: slope has shape \(7,\), expected \(8,\)"):
        second(run, PendingGradient(x, x, normalization, sums._replace(slope=short)), x)
    assert not run.kernels
