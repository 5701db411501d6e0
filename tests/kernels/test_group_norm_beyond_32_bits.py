"""Samples of more than 2^32 elements, of which a launch touches a few pages: they lie in a sparse file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import int64
from numpy.testing import assert_allclose

from kernels.emulator import emulate
from kernels.group_norm.apply import group_norm_apply_vector
from kernels.group_norm.backward import group_norm_backward_vector
from kernels.group_norm.backward_of_groups import group_norm_backward_of_groups_vector
from kernels.group_norm.gradient_sums import group_norm_sum_gradients_vector
from kernels.group_norm.statistics import group_norm_sum_shifted_vector
from kernels.group_norm.statistics_of_groups import group_norm_statistics_of_groups_vector
from kernels.launch import Kernel

ROWS, CHANNELS, SIZE = 9, 2**29, 4  # row 8 starts at element 2^32; a group has four channels
GROUPS = CHANNELS // SIZE
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


def of_channels(*tables: Array) -> list[Array]:
    """What tables (groups,) have for each channel that is seen."""
    return [np.repeat(table[: SEEN // SIZE].astype(np.float64), SIZE) for table in tables]


def test_statistics(rng, sparse) -> None:
    x, partial = sparse(ROWS, CHANNELS), sparse(3, CHANNELS)
    ordinary(rng, x)
    first_block(group_norm_sum_shifted_vector(CHANNELS, int64), x, partial, 1, ROWS, 1, 16)
    (rows,), ((shift, total, square),) = seen(x), seen(partial)
    assert_allclose(shift + total / ROWS, rows.mean(axis=0), atol=1e-6)
    assert_allclose((square - total**2 / ROWS) / ROWS, rows.var(axis=0), rtol=1e-6)

    out = [sparse(GROUPS) for _ in range(4)]
    kernel = group_norm_statistics_of_groups_vector(CHANNELS, GROUPS, 4, False, int64)
    first_block(kernel, x, *out, GROUPS, ROWS, 1e-5)
    sets = rows.reshape(ROWS, -1, SIZE)
    near, rest, var = (table[: SEEN // SIZE].astype(np.float64) for table in out[:3])
    assert_allclose(near + rest, sets.mean(axis=(0, 2)), atol=1e-6)
    assert_allclose(var, sets.var(axis=(0, 2)), rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_apply(rng, sparse, rows: int) -> None:
    """With `rows` 1 each row is a sample."""
    x, y = (sparse(ROWS, CHANNELS) for _ in range(2))
    tables = [sparse(ROWS if rows else 1, GROUPS) for _ in range(3)]
    ordinary(rng, x, *tables)
    kernel = group_norm_apply_vector(CHANNELS, GROUPS, rows, False, False, int64)
    first_block(kernel, x, *(table.reshape(-1) for table in tables), tables[0], tables[0], y, 1, ROWS, 1, 16)
    a, got = seen(x, y)
    k, d, scale = (np.repeat(table[:, : SEEN // SIZE].astype(np.float64), SIZE, axis=1) for table in tables)
    expected = ((a - k) - d) * scale
    assert np.abs(expected[-1]).max() > 0.1
    assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_backward(rng, sparse) -> None:
    x, dy, dx, other = (sparse(ROWS, CHANNELS) for _ in range(4))
    shift, delta, inv_std, mean_g, slope = tables = [sparse(GROUPS) for _ in range(5)]
    partial = sparse(2, CHANNELS)
    ordinary(rng, x, dy, *tables)
    known = shift, delta, inv_std
    pieces = 1, ROWS, 1, 16
    first_block(group_norm_sum_gradients_vector(CHANNELS, GROUPS, 0, int64), x, dy, *known, partial, *pieces)
    kernel = group_norm_backward_vector(CHANNELS, GROUPS, 0, False, int64)
    first_block(kernel, x, dy, *known, inv_std, mean_g, slope, dx, *pieces)
    kernel = group_norm_backward_of_groups_vector(CHANNELS, GROUPS, 4, False, False, int64)
    first_block(kernel, x, dy, *known, inv_std, other, GROUPS, ROWS)

    (a, g, got, of_groups), (k, d, scale, mean, factor) = seen(x, dy, dx, other), of_channels(*tables)
    centred = (a - k) - d
    assert_allclose(got, scale * ((g - mean) - centred * factor), rtol=1e-6, atol=1e-5)
    ((total, product),) = seen(partial)
    assert_allclose(total, g.sum(axis=0), atol=1e-5)
    assert_allclose(product, (g * centred * scale).sum(axis=0), atol=1e-5)
    mean, factor = (
        np.repeat(terms.reshape(ROWS, -1, SIZE).mean(axis=(0, 2)), SIZE) for terms in (g, g * centred * scale**2)
    )
    assert_allclose(of_groups, scale * ((g - mean) - centred * factor), rtol=1e-5, atol=1e-5)
