"""Arrays of more than 2^32 elements, of which a launch touches a few pages: they lie in a sparse file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from emulated import placed
from numba import int64
from numpy.testing import assert_array_equal

from kernels.columns import sum_columns_of_chunks
from kernels.conv import conv2d_backward_input, conv2d_backward_weight, conv2d_forward
from kernels.conv.geometry import Geometry
from kernels.conv.implicit_gemm import (
    conv2d_backward_input_implicit_gemm,
    conv2d_backward_weight_implicit_gemm,
    conv2d_forward_implicit_gemm,
)
from kernels.conv.tensor_core import (
    conv2d_backward_input_tensor_core,
    conv2d_backward_weight_tensor_core,
    conv2d_forward_tensor_core,
)
from kernels.emulator import emulate
from kernels.launch import Kernel
from kernels.matmul import matmul_tiled, tensor_tiles
from kernels.matmul.tiles import SMALL
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32

EDGE = 2**16
TECHNIQUES = "direct", "implicit_gemm"  # which take any number of channels
FAR = 2**29  # columns; row 8 of them starts at 2^32
Sparse = Callable[..., np.ndarray]


@pytest.fixture
def sparse(tmp_path: Path) -> Sparse:
    """Makes zeros of any size."""

    def make(*shape: int) -> np.ndarray:
        path = tmp_path / "x".join(map(str, shape))
        try:
            memory = np.memmap(path, np.float32, "w+", shape=shape)
        except OSError as error:
            pytest.skip(f"no sparse file of {4 * np.prod(shape, dtype=float):.0f} bytes here: {error}")
        path.unlink()
        return np.asarray(memory)

    return make


def first_block(kernel: Kernel, *values: object) -> None:
    """Run one block of what would be many. The shadow memory of the checks would fill the machine."""
    emulate(kernel.function, 1, kernel.block, *values, shared_bytes=kernel.shared_bytes, checks=False)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_windows_are_read_from_a_large_input(sparse: Sparse, technique: str) -> None:
    x, w, y = sparse(1, EDGE + 1, EDGE, 1), ramp(1, 1, 1, 1), np.empty((1, 2, 2, 1), np.float32)
    x[0, ::EDGE, :: EDGE - 1] = ramp(2, 2, 1)  # the elements 0, 2^16 - 1, 2^32, 2^32 + 2^16 - 1
    window = (EDGE, EDGE - 1), (0, 0)
    conv2d_forward(EmulatorRunner(), x, w, None, y, *window, technique=technique)
    assert_array_equal(y, ramp(1, 2, 2, 1))
    dw = np.empty((1, 1, 1, 1), np.float32)
    conv2d_backward_weight(EmulatorRunner(), x, ramp(1, 2, 2, 1), dw, *window, technique=technique)
    assert_array_equal(dw.item(), 1 + 4 + 9 + 16)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_an_input_gradient_gathers_from_a_large_one(sparse: Sparse, technique: str) -> None:
    dy, w, dx = sparse(2, EDGE + 1, EDGE + 1, 1), ramp(1, 1, 1, 1), np.empty((2, 1, 1, 1), np.float32)
    dy[:, EDGE // 2, EDGE // 2] = ramp(2, 1)  # all else is what the padding gave
    conv2d_backward_input(EmulatorRunner(), dy, w, dx, (1, 1), (EDGE // 2, EDGE // 2), technique=technique)
    assert_array_equal(dx, ramp(2, 1, 1, 1))


def test_tensor_cores_read_from_large_arrays(sparse: Sparse) -> None:
    """As the two above, of four channels."""
    quarter, four = EDGE // 4, placed(np.eye(4).reshape(1, 1, 4, 4))
    x, y, corners = sparse(1, EDGE + 1, quarter, 4), np.empty((1, 2, 2, 4), np.float32), placed(ramp(1, 2, 2, 4))
    x[0, ::EDGE, :: quarter - 1] = corners[0]
    window = (EDGE, quarter - 1), (0, 0)
    conv2d_forward(EmulatorRunner(), x, four, None, y, *window, technique="tensor_core")
    assert_array_equal(y, corners)
    dw = np.empty((1, 1, 4, 4), np.float32)
    conv2d_backward_weight(EmulatorRunner(), x, corners, dw, *window, technique="tensor_core")
    assert_array_equal(dw[0, 0], corners.reshape(4, 4).T @ corners.reshape(4, 4))
    dy, dx = sparse(2, EDGE + 1, quarter + 1, 4), np.empty((2, 1, 1, 4), np.float32)
    dy[:, EDGE // 2, quarter // 2] = ramp(2, 4)
    padding = EDGE // 2, quarter // 2
    conv2d_backward_input(EmulatorRunner(), dy, four, dx, (1, 1), padding, technique="tensor_core")
    assert_array_equal(dx, ramp(2, 1, 1, 4))


def test_tensor_cores_write_to_large_arrays(sparse: Sparse) -> None:
    tile = tensor_tiles.SMALL
    w, y = sparse(1, 1, 4, FAR), sparse(1, 4, 4, FAR)
    w[0, 0, :, :4] = np.eye(4)
    x = placed(ramp(1, 4, 4, 4))
    forward = conv2d_forward_tensor_core(tile, Geometry(4, 4, 4, 1, 1, FAR, 1, 1, 0, 0), False, int64)
    first_block(forward, x, w, np.empty(0, np.float32), y, 1, 32)
    assert_array_equal(y.reshape(16, FAR)[:, :5], np.pad(x.reshape(16, 4), ((0, 0), (0, 1))))
    w, dx = sparse(1, 1, FAR, 4), sparse(1, 4, 4, FAR)
    w[0, 0, :4] = np.eye(4)
    backward = conv2d_backward_input_tensor_core(tile, Geometry(4, 4, FAR, 1, 1, 4, 1, 1, 0, 0), int64)
    first_block(backward, x, w, dx, 1, 32)
    assert_array_equal(dx.reshape(16, FAR)[:, :5], np.pad(x.reshape(16, 4), ((0, 0), (0, 1))))
    dy, dw = sparse(1, 1, 1, FAR), sparse(4, 1, 4, FAR)
    dy[..., :4] = ramp(4)
    weight = conv2d_backward_weight_tensor_core(tile, Geometry(4, 1, 4, 4, 1, FAR, 1, 1, 0, 0), int64)
    first_block(weight, x[:, :, :1].copy(), dy, dw, 1, 32)
    assert_array_equal(dw.reshape(16, FAR)[:, :5], np.outer(x[0, :, 0].ravel(), [*ramp(4), 0]))


def test_a_tile_is_written_to_a_large_output(sparse: Sparse) -> None:
    w, y = sparse(1, 1, 1, FAR), sparse(1, 4, 4, FAR)
    w[..., :16] = ramp(16)
    geometry = Geometry(4, 4, 1, 1, 1, FAR, 1, 1, 0, 0)
    kernel = conv2d_forward_implicit_gemm(SMALL, geometry, False, int64, FLOAT32, FLOAT32)
    first_block(kernel, ramp(1, 4, 4, 1), w, np.empty(0, np.float32), y, 1, SMALL.depth)
    assert_array_equal(y.reshape(16, FAR)[:, :17], np.outer(ramp(16), [*ramp(16), 0]))


def test_a_tile_of_a_large_input_gradient(sparse: Sparse) -> None:
    w, dx = sparse(1, 1, FAR, 1), sparse(1, 4, 4, FAR)
    w[0, 0, :16, 0] = ramp(16)
    kernel = conv2d_backward_input_implicit_gemm(
        SMALL, Geometry(4, 4, FAR, 1, 1, 1, 1, 1, 0, 0), int64, FLOAT32, FLOAT32
    )
    first_block(kernel, ramp(1, 4, 4, 1), w, dx, 1, SMALL.depth)
    assert_array_equal(dx.reshape(16, FAR)[:, :17], np.outer(ramp(16), [*ramp(16), 0]))


def test_a_tile_of_a_large_weight_gradient(sparse: Sparse) -> None:
    dy, dw = sparse(1, 1, 1, FAR), sparse(4, 4, 1, FAR)
    dy[..., :16] = ramp(16)
    kernel = conv2d_backward_weight_implicit_gemm(
        SMALL, Geometry(4, 4, 1, 4, 4, FAR, 1, 1, 0, 0), int64, FLOAT32, FLOAT32
    )
    first_block(kernel, ramp(1, 4, 4, 1), dy, dw, 1, SMALL.depth)
    assert_array_equal(dw.reshape(16, FAR)[:, :17], np.outer(ramp(16), [*ramp(16), 0]))


@pytest.mark.parametrize("b_transposed", [False, True])
def test_a_tile_of_a_large_product(sparse: Sparse, b_transposed: bool) -> None:
    b, c = sparse(1, FAR), sparse(16, FAR)
    b[0, :16] = ramp(16)
    kernel = matmul_tiled(SMALL, False, b_transposed, False, int64)
    first_block(kernel, ramp(16), b, np.empty(0, np.float32), c, 16, FAR, 1, SMALL.depth)
    assert_array_equal(c[:, :17], np.outer(ramp(16), [*ramp(16), 0]))


@pytest.mark.parametrize("a_transposed", [False, True])
def test_a_tile_of_a_product_of_large_factors(sparse: Sparse, a_transposed: bool) -> None:
    """Rows of a, or steps of b, that lie 2^29 elements apart; of the depth, one slab is taken."""
    a, b = sparse(16, FAR), sparse(16, FAR)
    a[:, :16], b[:, :16] = ramp(16, 16) % 7, ramp(16, 16) % 5
    left = a[:, :16].T if a_transposed else a[:, :16]
    m, n, k = (FAR, FAR, 16) if a_transposed else (16, 16, FAR)
    right = b[:, :16] if a_transposed else b[:, :16].T
    c = sparse(16, FAR) if a_transposed else np.empty((16, 16), np.float32)
    kernel = matmul_tiled(SMALL, a_transposed, not a_transposed, False, int64)
    first_block(kernel, a, b, np.empty(0, np.float32), c, m, n, k, SMALL.depth)
    assert_array_equal(c[:, :16], left @ right)


def test_columns_of_a_large_matrix(sparse: Sparse) -> None:
    x, sums = sparse(16, FAR), sparse(1, FAR)
    x[:, :32] = ramp(16, 32)
    first_block(sum_columns_of_chunks(32, int64, FLOAT32), x, sums, 16, FAR, 16)
    assert_array_equal(sums[0, :33], [*ramp(16, 32).sum(axis=0), 0])
