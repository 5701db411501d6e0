from itertools import product
from typing import Any

import numpy as np
import pytest
from emulated import RUN, blank, placed
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels import batchnorm
from kernels.batchnorm import BatchStatistics
from kernels.batchnorm.gradient_sums import batchnorm_sum_gradients_scalar, batchnorm_sum_gradients_vector
from kernels.batchnorm.partial_gradients import batchnorm_finish_gradients
from kernels.batchnorm.partial_statistics import batchnorm_finish_statistics
from kernels.batchnorm.statistics import batchnorm_sum_shifted_scalar, batchnorm_sum_shifted_vector
from kernels.errors import ShapeError
from kernels.launch import blocks_for
from kernels.storage import FLOAT32
from minidl.lab.budget import TINY, U
from minidl.lab.inputs import FAMILIES
from minidl.lab.operations.batchnorm_bounds import GIVEN, backward_bounds, elements

Array = np.ndarray
EPS = 1e-5
TECHNIQUES = ["scalar", None]  # None: four channels at once, where the arrays allow it
# Channels of one lane and of many, of several blocks side by side; rows with every kind of tail.
SHAPES = [
    (2, 1), (3, 3), (5, 4), (1, 7, 11, 5), (130, 17), (9, 64), (261, 64), (17, 260), (6, 512), (5, 513), (8193, 1),
    (4099, 8),
]  # fmt: skip


def tensors(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 2.0) -> tuple[Array, ...]:
    """x, dy, gamma, beta, residual."""
    c = shape[-1]
    arrays = (
        mean + 3 * rng.standard_normal(shape),
        rng.standard_normal(shape),
        rng.uniform(0.5, 2, c) * rng.choice([-1, 1], c),
        rng.standard_normal(c),
        rng.standard_normal(shape),
    )
    return tuple(array.astype(np.float32) for array in arrays)


def outputs(c: int, offset: int = 0) -> BatchStatistics:
    return BatchStatistics(*(blank((c,), offset) for _ in range(4)))


def statistics_of(x: Array, technique: str | None = None, offset: int = 0, eps: float = EPS) -> BatchStatistics:
    out = outputs(x.shape[-1], offset)
    batchnorm.batchnorm_statistics(RUN, placed(x, offset), eps, out, technique=technique)
    return out


def assert_right(out: BatchStatistics, x: Array, units: float = 8, eps: float = EPS) -> None:
    """Within some units of rounding of a deviation, and of the variance."""
    right = batchnorm.batchnorm_statistics_reference(x.astype(np.float64), eps)
    error = np.abs((out.shift.astype(np.float64) - right.shift) + out.delta)
    assert (error <= units * U * np.sqrt(right.var)).all()
    assert_allclose(out.var, right.var, rtol=units * U)
    assert_allclose(out.inv_std, right.inv_std, rtol=(units / 2 + 4) * U)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", TECHNIQUES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics(rng, shape, technique, offset: int) -> None:
    x = tensors(rng, shape)[0]
    assert_right(statistics_of(x, technique, offset), x)


@pytest.mark.parametrize("family", ["mean-1e4-std-1e-2", "mean-1e6-std-1", "two-outliers", "scattered-outliers"])
@pytest.mark.parametrize("shape", [(130, 3), (20001, 4)], ids=str)
def test_statistics_of_hostile_numbers_are_as_good(rng, shape, family: str) -> None:
    x = FAMILIES[family](rng, shape)
    out = statistics_of(x)
    assert_right(out, x)
    if family.startswith("mean"):  # y up to 5 would be off by 5e-2 with a single float32 mean
        y = blank(shape)
        batchnorm.batchnorm_apply(RUN, placed(x), out, None, None, y, relu=False)
        right = batchnorm.batchnorm_statistics_reference(x.astype(np.float64), EPS)
        expected = batchnorm.batchnorm_apply_reference(x.astype(np.float64), right, None, None, relu=False)
        assert np.abs(y - expected).max() < 8e-7


@pytest.mark.parametrize("outliers", [4, 32])
def test_outliers_where_a_thread_takes_its_shift_from(rng, outliers: int) -> None:
    x = rng.standard_normal((20000, 3)).astype(np.float32)
    x[:outliers] = 1e4
    assert_right(statistics_of(x), x)


@pytest.mark.parametrize("rows", [3, 129, 20001])
def test_a_constant_channel_is_its_own_mean_and_has_variance_0(rng, rows: int) -> None:
    x = FAMILIES["constant"](rng, (rows, 6))
    out = statistics_of(x)
    assert_array_equal(out.shift, x[0])
    assert_array_equal([out.delta, out.var], 0)


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@pytest.mark.parametrize("special", [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf)], ids=str)
def test_what_is_not_finite_poisons_its_channel_and_no_other(rng, special, technique: str) -> None:
    x = rng.standard_normal((5000, 4)).astype(np.float32)
    clean = statistics_of(x, technique)
    x[4000 : 4000 + len(special), 1] = special
    out = statistics_of(x, technique)
    others = [0, 2, 3]
    for got, alone in zip(out, clean, strict=True):
        assert_array_equal(got[others], alone[others])
    assert_array_equal((out.shift + out.delta)[1], np.float32(sum(special)))
    assert np.isnan(out.var[1])


@pytest.mark.parametrize("index", [uint32, int64])
@pytest.mark.parametrize("factory", [batchnorm_sum_shifted_scalar, batchnorm_sum_shifted_vector])
@pytest.mark.parametrize("span", [300, 1000, 5000])
def test_statistics_of_threads_with_many_chunks(rng, factory, index, span: int) -> None:
    x = placed(FAMILIES["mean-1e4-std-1"](rng, (2003, 8)))
    x[:4] = 0  # outliers
    blocks = blocks_for(len(x), span)
    partial, out = blank((3, blocks, 8)), outputs(8)
    RUN(factory(8, index, FLOAT32), x, partial, len(x), span)
    RUN(batchnorm_finish_statistics(), partial, *out, blocks, 8, len(x), span, EPS)
    assert_right(out, x)


@pytest.mark.parametrize("shape", [(300, 1), (70000, 1), (9000, 8)], ids=str)
def test_more_blocks_than_the_last_launch_has_rows(rng, shape) -> None:
    x = tensors(rng, shape)[0]
    span = 16 if shape[-1] == 1 else 64
    blocks = blocks_for(len(x), span)
    partial, out = blank((3, blocks, shape[-1])), outputs(shape[-1])
    RUN(batchnorm_sum_shifted_scalar(shape[-1], uint32, FLOAT32), placed(x), partial, len(x), span)
    RUN(batchnorm_finish_statistics(), partial, *out, blocks, shape[-1], len(x), span, EPS)
    assert_right(out, x)


def test_running_estimates(rng) -> None:
    batch = BatchStatistics(*(placed(rng.uniform(0.5, 2, 300)) for _ in range(4)))
    mean, var = placed(rng.standard_normal(300)), placed(rng.uniform(0.5, 2, 300))
    wide = BatchStatistics(*(part.astype(np.float64) for part in batch))
    right = batchnorm.batchnorm_update_running_reference(wide, 3, 0.3, mean.astype(float), var.astype(float))
    batchnorm.batchnorm_update_running(RUN, batch, 3, 0.3, mean, var)
    assert_allclose(mean, right[0], rtol=0, atol=8 * U)
    assert_allclose(var, right[1], rtol=8 * U)

    out = outputs(300)
    batchnorm.batchnorm_running_statistics(RUN, mean, var, EPS, out)
    assert_array_equal(out.shift, mean)
    assert_array_equal(out.delta, 0)
    assert_array_equal(out.var, var)
    assert_allclose(out.inv_std, 1 / np.sqrt(var.astype(np.float64) + EPS), rtol=3 * U)


def far_statistics(x: Array) -> BatchStatistics:
    """With an element as shift, so that much is left for delta."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    mean, var = rows.mean(axis=0), rows.var(axis=0)
    return BatchStatistics(*map(placed, (rows[0], mean - rows[0], var, 1 / np.sqrt(var + EPS))))


def given(statistics: BatchStatistics, *parameters: Array) -> tuple[BatchStatistics, list[Any]]:
    """The same in float64."""
    return BatchStatistics(*(part.astype(np.float64) for part in statistics)), [p.astype(float) for p in parameters]


@pytest.mark.parametrize("technique", TECHNIQUES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(rng, shape, technique) -> None:
    x, dy, gamma, beta, _ = tensors(rng, shape)
    c, offset = shape[-1], int(rng.integers(2))
    statistics = far_statistics(x)
    x_, dy_ = placed(x, offset), placed(dy, offset)
    for affine, relu, training in product((True, False), (True, False), (True, False)):
        g, b = (placed(gamma, offset), placed(beta, offset)) if affine else (None, None)
        y, dx = blank(shape, offset), blank(shape, offset)
        dgamma, dbeta = (blank((c,)), blank((c,))) if affine else (None, None)
        batchnorm.batchnorm_apply(RUN, x_, statistics, g, b, y, relu, technique=technique)
        batchnorm.batchnorm_backward(
            RUN, x_, dy_, statistics, g, b, dx, dgamma, dbeta, training, relu, technique=technique
        )

        exact, (gx, gdy) = given(statistics, x, dy)
        g64, b64 = (g.astype(float), b.astype(float)) if affine else (None, None)
        e = elements(x, exact, g, b, GIVEN)
        right = batchnorm.batchnorm_backward_reference(gx, gdy, exact, g64, b64, training, relu)
        bounds = backward_bounds(e, dy, exact.inv_std, GIVEN, training, relu)
        expected_y = batchnorm.batchnorm_apply_reference(gx, exact, g64, b64, relu)
        assert (np.abs(y - expected_y) <= e.y_error).all()
        assert (np.abs(dx - right[0]) <= bounds["dx"]).all()
        if affine:
            assert (np.abs(dgamma - right[1]) <= bounds["dgamma"]).all()
            assert (np.abs(dbeta - right[2]) <= bounds["dbeta"]).all()
        if relu and not training:  # backward sees the sign that forward saw, to the last bit
            assert_array_equal(dx == 0, (y == 0) | (dy == 0))


def test_the_sign_of_y_near_0_is_the_same_in_forward_and_backward(rng) -> None:
    statistics = BatchStatistics(*(placed(np.full(4, value)) for value in (1.0, 1 / 3, 1.0, 0.7)))
    gamma, beta = placed(np.full(4, 0.3)), placed(rng.uniform(-0.3, 0.3, 4))
    root = 4 / 3 - beta / np.float32(0.21)
    x = placed(root + rng.integers(-8, 9, (4000, 4)) * 2.0**-25)
    y, dx = blank(x.shape), blank(x.shape)
    batchnorm.batchnorm_apply(RUN, x, statistics, gamma, beta, y, relu=True)
    batchnorm.batchnorm_backward(
        RUN, x, placed(np.ones(x.shape)), statistics, gamma, beta, dx, None, None, training=False, relu=True
    )
    assert 0.1 < (y > 0).mean() < 0.9
    assert_array_equal(dx > 0, y > 0)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_end_of_a_residual_block(rng, shape, technique) -> None:
    x, dy, gamma, beta, residual = tensors(rng, shape)
    c, offset = shape[-1], int(rng.integers(2))
    statistics = far_statistics(x)
    x_, dy_, residual_ = (placed(array, offset) for array in (x, dy, residual))
    for affine, training in product((True, False), (True, False)):
        g, b = (placed(gamma), placed(beta)) if affine else (None, None)
        y, dx, dresidual = (blank(shape, offset) for _ in range(3))
        dgamma, dbeta = (blank((c,)), blank((c,))) if affine else (None, None)
        batchnorm.batchnorm_add_relu_apply(RUN, x_, residual_, statistics, g, b, y, technique=technique)
        batchnorm.batchnorm_add_relu_backward(
            RUN, x_, y, dy_, statistics, g, dx, dresidual, dgamma, dbeta, training, technique=technique
        )

        exact, (gx, gdy, gresidual) = given(statistics, x, dy, residual)
        g64, b64 = (g.astype(float), b.astype(float)) if affine else (None, None)
        e = elements(x, exact, g, b, GIVEN)
        expected_y = batchnorm.batchnorm_add_relu_apply_reference(gx, gresidual, exact, g64, b64)
        assert (np.abs(y - expected_y) <= e.y_error + U * np.abs(expected_y) + TINY).all()
        right = batchnorm.batchnorm_add_relu_backward_reference(gx, y, gdy, exact, g64, training)
        bounds = backward_bounds(e, np.where(y > 0, dy, 0), exact.inv_std, GIVEN, training, relu=False)
        assert (np.abs(dx - right[0]) <= bounds["dx"]).all()
        assert_array_equal(dresidual, right[1])
        if affine:
            assert (np.abs(dgamma - right[2]) <= bounds["dgamma"]).all()
            assert (np.abs(dbeta - right[3]) <= bounds["dbeta"]).all()


@pytest.mark.parametrize("index", [uint32, int64])
@pytest.mark.parametrize("factory", [batchnorm_sum_gradients_scalar, batchnorm_sum_gradients_vector])
@pytest.mark.parametrize("span", [300, 5000])
def test_sums_of_threads_with_many_chunks(rng, factory, index, span: int) -> None:
    x, dy = (placed(rng.integers(-3, 4, (2003, 8))) for _ in range(2))  # their sums are exact
    zeros, ones = placed(np.zeros(8)), placed(np.ones(8))
    blocks = blocks_for(len(x), span)
    partial = blank((2, blocks, 8))
    dgamma, dbeta, mean_g, slope = (blank((8,)) for _ in range(4))
    RUN(factory(8, True, False, index, FLOAT32), x, dy, zeros, zeros, ones, ones, zeros, partial, len(x), span)
    RUN(batchnorm_finish_gradients(), partial, ones, dgamma, dbeta, mean_g, slope, blocks, 8, len(x))
    assert_array_equal(dbeta, dy.sum(axis=0))
    assert_array_equal(dgamma, (dy * x).sum(axis=0))
    assert_array_equal(mean_g, dbeta / np.float32(len(x)))
    assert_array_equal(slope, dgamma / np.float32(len(x)))


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_not_finite_in_dy_stays_in_its_channel(rng, special: float) -> None:
    x, dy, gamma, beta, _ = tensors(rng, (3000, 4))
    dy[2000, 1] = special
    dx, dgamma, dbeta = blank(x.shape), blank((4,)), blank((4,))
    arrays = statistics_of(x), placed(gamma), placed(beta), dx, dgamma, dbeta
    batchnorm.batchnorm_backward(RUN, placed(x), placed(dy), *arrays, training=True, relu=False)
    assert_array_equal(np.isfinite([dgamma, dbeta, *dx[:3]]), np.tile([True, False, True, True], (5, 1)))


@pytest.mark.parametrize("training", [True, False])
def test_no_rows(training: bool) -> None:
    x, ones = placed(np.zeros((0, 2, 2, 4))), placed(np.ones(4))
    statistics = BatchStatistics(ones, ones, ones, ones)
    batchnorm.batchnorm_apply(RUN, x, statistics, ones, ones, blank(x.shape), relu=True)
    dgamma, dbeta = blank((4,)), blank((4,))
    batchnorm.batchnorm_backward(
        RUN, x, x, statistics, ones, ones, blank(x.shape), dgamma, dbeta, training=training, relu=True
    )
    assert_array_equal([dgamma, dbeta], 0)
    with pytest.raises(ShapeError, match=r"batchnorm_statistics: x has shape \(0, 2, 2, 4\), expected at least one"):
        batchnorm.batchnorm_statistics(RUN, x, EPS, outputs(4))
