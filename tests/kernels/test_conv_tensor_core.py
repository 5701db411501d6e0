"""Convolution on tensor cores. Numbers are whole and small, so that every sum is exact, in TF32 too."""

import numpy as np
import pytest
from convolutions import Case, whole
from emulated import launched, placed
from numba import int64
from numpy.testing import assert_array_equal

from kernels.conv import (
    conv2d_backward_input,
    conv2d_backward_input_reference,
    conv2d_backward_weight,
    conv2d_backward_weight_reference,
    conv2d_forward,
    conv2d_forward_reference,
)
from kernels.conv.tensor_core import (
    conv2d_backward_input_tensor_core,
    conv2d_backward_weight_tensor_core,
    conv2d_forward_tensor_core,
)
from kernels.errors import TechniqueError
from kernels.matmul.tensor_tiles import DEPTH, TILES, TensorTile
from kernels.matmul.tiles import slices_of
from kernels.run_emulated import EmulatorRunner

TENSOR_CORE = "tensor_core"


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile_with_indices_of_64_bits_and_in_slices(rng, tile: TensorTile) -> None:
    """Two tiles each way, of which the second is one row and four columns; slices of two slabs, the last of a part."""
    across = tile.columns + 4
    forward = Case((1, 1, tile.rows + 1, 36), (1, 2), across, padding=(0, 1))
    x, w, bias = (whole(rng, shape) for shape in (forward.x, forward.w, (across,)))
    run, span = EmulatorRunner(), 2 * DEPTH
    y = np.empty((slices_of(72, span), *forward.y), np.float32)
    run(conv2d_forward_tensor_core(tile, forward.geometry, True, int64), x, w, bias, y, 1, span)
    first = conv2d_forward_reference(x[..., :32], w[:, :, :32], bias, *forward.window)
    assert_array_equal(y.sum(axis=0), conv2d_forward_reference(x, w, bias, *forward.window))
    assert not (y[0] == first).all()  # there is more in it than a slab

    backward = Case((1, 1, tile.rows + 1, across), (1, 2), 36, padding=(0, 1))
    w, dy = (whole(rng, shape) for shape in (backward.w, backward.y))
    dx = np.empty((slices_of(72, span), *backward.x), np.float32)
    run(conv2d_backward_input_tensor_core(tile, backward.geometry, int64), dy, w, dx, 1, span)
    assert_array_equal(dx.sum(axis=0), conv2d_backward_input_reference(dy, w, backward.x, *backward.window))

    weight = Case((1, 5, 13, tile.rows + 4), (1, 1), across, padding=(0, 1))
    x, dy = (whole(rng, shape) for shape in (weight.x, weight.y))
    dw = np.empty((slices_of(75, span), *weight.w), np.float32)
    run(conv2d_backward_weight_tensor_core(tile, weight.geometry, int64), x, dy, dw, 1, span)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, weight.w, *weight.window))


@pytest.mark.parametrize("offset", ["x", "w", "y"])
def test_arrays_that_are_not_aligned(rng, offset: str) -> None:
    case = Case((1, 4, 4, 8), (3, 3), 8)
    shapes = {"x": case.x, "w": case.w, "y": case.y}
    x, w, y = (placed(np.zeros(shape), 1 if key == offset else 0) for key, shape in shapes.items())
    with pytest.raises(TechniqueError, match=f": {offset} starts at no multiple of 16 bytes; implicit_gemm or direct"):
        conv2d_forward(EmulatorRunner(), x, w, None, y, *case.window, technique=TENSOR_CORE)
    assert not any("tensor" in kernel for kernel in launched(conv2d_forward, x, w, None, y, *case.window))


def test_tensor_cores_are_taken_where_tf32_is_asked_for() -> None:
    case = Case((1, 4, 4, 8), (3, 3), 8)
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    for precision, kernel in (("tf32", "tensor_core"), ("fp32", "implicit_gemm")):
        options = {"precision": precision}
        assert launched(conv2d_forward, x, w, None, y, *case.window, **options) == [f"conv2d_forward_{kernel}"]
        assert launched(conv2d_backward_input, y, w, x, *case.window, **options) == [f"conv2d_backward_input_{kernel}"]
        assert launched(conv2d_backward_weight, x, y, w, *case.window, **options) == [
            f"conv2d_backward_weight_{kernel}"
        ]
    assert launched(conv2d_forward, x, w, None, y, *case.window) == ["conv2d_forward_implicit_gemm"]
    with pytest.raises(ValueError, match="precision 'half' is given, expected fp32, tf32, bf16 or fp16"):
        conv2d_forward(EmulatorRunner(), x, w, None, y, *case.window, precision="half")
