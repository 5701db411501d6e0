"""Convolutions that normalize as they load and sum as they store, of images in 16 bits, on tensor cores.

These are the kernels of normalized_tensor_core.py for elements of 16 bits. What is worked out on the way in is computed
in float32 and rounded to the storage, as if it had been stored. Statistics are those of the float32 sums, before y is
rounded; gradient sums are those of g as it is stored.
"""

from typing import Any

from numba import int64, uint32

from kernels.conv.direct import EXAMPLE
from kernels.conv.geometry import Geometry
from kernels.conv.normalized_arrival import Kind
from kernels.conv.normalized_tensor_core import (
    FULL,
    IN_CHUNKS,
    PAIRED,
    PLAIN,
    TURNED,
    backward_input_launch,
    backward_weight_launch,
    forward_launch,
)
from kernels.conv.tensor_core import IN_EIGHTS, NARROW_INSTRUCTIONS, POINTS, REGISTERS, STAGE
from kernels.launch import Launch, kernel
from kernels.matmul.tensor_tiles import LARGE, MEDIUM, NARROW, SMALL, WIDE, TensorTile
from kernels.storage import BFLOAT16, FLOAT16, Storage


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta, w -> y, partial",
    registers=REGISTERS,
    instructions=(*NARROW_INSTRUCTIONS, *IN_CHUNKS[1:]),
    examples=[
        (LARGE, STAGE, FULL, True, uint32, FLOAT16, FLOAT16),
        (WIDE, POINTS, FULL, True, uint32, BFLOAT16, BFLOAT16),
        (MEDIUM, STAGE, FULL, True, uint32, FLOAT16, FLOAT16),
        (NARROW, EXAMPLE, FULL, False, uint32, BFLOAT16, BFLOAT16),
        (SMALL, IN_EIGHTS, PLAIN, True, uint32, FLOAT16, FLOAT16),
        (LARGE, STAGE, None, True, uint32, BFLOAT16, BFLOAT16),
        (LARGE, STAGE, FULL, True, int64, FLOAT16, FLOAT16),
    ],
)
def conv2d_normalized_forward_narrow_tensor_core(
    tile: TensorTile,
    geometry: Geometry,
    before: Kind | None,
    statistics: bool,
    index: Any,
    storage: Storage,
    y_storage: Storage,
) -> Launch:
    """`conv2d_normalized_forward_tensor_core` of images in 16 bits; slices are float32."""
    return forward_launch(tile, geometry, before, statistics, index, storage, y_storage)


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta, dy, raw, dy_shift, dy_delta, dy_inv_std, dy_gamma, dy_beta, "
    "mean_g, slope -> dw",
    registers=REGISTERS,
    instructions=(*NARROW_INSTRUCTIONS, *IN_CHUNKS[1:]),
    examples=[
        (PAIRED[0], STAGE, FULL, FULL, uint32, FLOAT16),
        (PAIRED[1], POINTS, FULL, FULL, uint32, BFLOAT16),
        (PAIRED[2], STAGE, FULL, PLAIN, uint32, FLOAT16),
        (PAIRED[3], EXAMPLE, None, FULL, uint32, BFLOAT16),
        (PAIRED[4], IN_EIGHTS, PLAIN, FULL, uint32, FLOAT16),
        (PAIRED[0], STAGE, FULL, FULL, int64, BFLOAT16),
    ],
)
def conv2d_normalized_backward_weight_narrow_tensor_core(
    tile: TensorTile, geometry: Geometry, before: Kind | None, behind: Kind, index: Any, storage: Storage
) -> Launch:
    """`conv2d_normalized_backward_weight_tensor_core` of images in 16 bits; slices are float32."""
    return backward_weight_launch(tile, geometry, before, behind, index, storage)


@kernel(
    traffic="dy, raw, dy_shift, dy_delta, dy_inv_std, dy_gamma, dy_beta, mean_g, slope, w, x, shift, delta, inv_std, "
    "gamma, beta -> dx, partial",
    registers=REGISTERS,
    instructions=(*NARROW_INSTRUCTIONS, *IN_CHUNKS[1:]),
    examples=[
        (TURNED[0], STAGE, FULL, FULL, uint32, FLOAT16, FLOAT16),
        (TURNED[1], POINTS, FULL, FULL, uint32, BFLOAT16, BFLOAT16),
        (TURNED[2], STAGE, PLAIN, FULL, uint32, FLOAT16, FLOAT16),
        (TURNED[3], EXAMPLE, FULL, None, uint32, BFLOAT16, BFLOAT16),
        (TURNED[4], IN_EIGHTS, FULL, PLAIN, uint32, FLOAT16, FLOAT16),
        (TURNED[0], STAGE, FULL, FULL, int64, BFLOAT16, BFLOAT16),
    ],
)
def conv2d_normalized_backward_input_narrow_tensor_core(
    tile: TensorTile,
    geometry: Geometry,
    behind: Kind,
    before: Kind | None,
    index: Any,
    storage: Storage,
    dx_storage: Storage,
) -> Launch:
    """`conv2d_normalized_backward_input_tensor_core` of images in 16 bits; slices are float32."""
    return backward_input_launch(tile, geometry, behind, before, index, storage, dx_storage)
