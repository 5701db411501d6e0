"""Activations of more than 2^32 elements, of which a launch touches a few pages: they lie in a sparse file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import int64
from numpy.testing import assert_allclose, assert_array_equal

from kernels.batchnorm.apply import batchnorm_add_relu_apply_vector, batchnorm_apply_vector
from kernels.batchnorm.gradient_sums import batchnorm_sum_gradients_vector
from kernels.batchnorm.input_gradient import batchnorm_backward_vector
from kernels.batchnorm.masked_sums import batchnorm_mask_and_sum_gradients_vector
from kernels.batchnorm.statistics import batchnorm_sum_shifted_scalar, batchnorm_sum_shifted_vector
from kernels.emulator import emulate
from kernels.launch import Kernel
from kernels.storage import FLOAT32

ROWS, CHANNELS = 9, 2**29  # row 8 starts at element 2^32
SEEN = 64  # channels that the first block computes, at the least

Array = np.ndarray


@pytest.fixture
def sparse(tmp_path: Path) -> Any:
    """Makes zeros of any size."""
    made = iter(range(99))

    def make(*shape: int) -> Array:
        path = tmp_path / str(next(made))
        try:
            memory = np.memmap(path, np.float32, "w+", shape=shape)
        except OSError as error:
            pytest.skip(f"no sparse file of {4 * np.prod(shape, dtype=float):.0f} bytes here: {error}")
        path.unlink()
        return np.asarray(memory)

    return make


def first_block(kernel: Kernel, *values: object) -> None:
    """Run one block of what would be many. The shadow memory of the checks would fill the machine."""
    emulate(kernel.function, 1, kernel.block, *values, checks=False)


def ordinary(rng: np.random.Generator, *arrays: Array) -> None:
    for array in arrays:
        array[..., : 4 * SEEN] = rng.standard_normal((*array.shape[:-1], 4 * SEEN))


def seen(*arrays: Array) -> list[Array]:
    """In float64. (No arithmetic on the arrays themselves: they are too large.)"""
    return [array[..., :SEEN].astype(np.float64) for array in arrays]


@pytest.mark.parametrize("factory", [batchnorm_sum_shifted_scalar, batchnorm_sum_shifted_vector])
def test_statistics(rng, sparse, factory) -> None:
    x, partial = sparse(ROWS, CHANNELS), sparse(3, CHANNELS)
    ordinary(rng, x)
    first_block(factory(CHANNELS, int64, FLOAT32), x, partial, ROWS, 16)
    (rows,), ((shift, total, square),) = seen(x), seen(partial)
    assert_allclose(shift + total / ROWS, rows.mean(axis=0), atol=1e-6)
    assert_allclose((square - total**2 / ROWS) / ROWS, rows.var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_apply(rng, sparse, residual: bool) -> None:
    x, other, y = (sparse(ROWS, CHANNELS) for _ in range(3))
    shift, delta, inv_std = (sparse(CHANNELS) for _ in range(3))
    ordinary(rng, x, other, shift, delta, inv_std)
    parameters = shift, delta, inv_std, inv_std, inv_std
    if residual:
        kernel = batchnorm_add_relu_apply_vector(CHANNELS, False, int64, FLOAT32)
        first_block(kernel, x, other, *parameters, y, ROWS, 16, 1)
    else:
        first_block(batchnorm_apply_vector(CHANNELS, False, False, int64, FLOAT32), x, *parameters, y, ROWS, 16, 1)
    a, b, got, k, d, scale = seen(x, other, y, shift, delta, inv_std)
    expected = ((a - k) - d) * scale
    expected = np.maximum(expected + b, 0) if residual else expected
    assert np.abs(expected[-1]).max() > 0.1
    assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_backward(rng, sparse, residual: bool) -> None:
    x, y, dy, dresidual, dx = (sparse(ROWS, CHANNELS) for _ in range(5))
    shift, delta, inv_std, mean_g, slope = (sparse(CHANNELS) for _ in range(5))
    partial = sparse(2, CHANNELS)
    ordinary(rng, x, y, dy, shift, delta, inv_std, mean_g, slope)
    if residual:
        kernel = batchnorm_mask_and_sum_gradients_vector(CHANNELS, int64, FLOAT32)
        first_block(kernel, x, y, dy, shift, delta, dresidual, partial, ROWS, 16)
    else:
        kernel = batchnorm_sum_gradients_vector(CHANNELS, False, False, int64, FLOAT32)
        first_block(kernel, x, dy, shift, delta, inv_std, inv_std, inv_std, partial, ROWS, 16)
    kernel = batchnorm_backward_vector(CHANNELS, False, True, False, int64, FLOAT32)
    first_block(kernel, x, dy, shift, delta, inv_std, inv_std, inv_std, mean_g, slope, dx, ROWS, 16, 1)

    a, b, g, k, d, scale, mean, factor = seen(x, y, dy, shift, delta, inv_std, mean_g, slope)
    centred = (a - k) - d
    (got_dx,) = seen(dx)
    assert_allclose(got_dx, scale * ((g - mean) - centred * factor), rtol=1e-6, atol=1e-5)
    if residual:
        g = np.where(b > 0, g, 0)
        assert_array_equal(seen(dresidual), [g])
    ((total, product),) = seen(partial)
    assert_allclose(total, g.sum(axis=0), atol=1e-5)
    assert_allclose(product, (g * centred).sum(axis=0), atol=1e-5)
