"""Batch normalization backward, the last launch: dx from what is known of each channel. The maths is in backward.py.

Traffic  x and dy once, dx once. The rows are visited in the reverse of the order in which the first launch summed them,
         so what that read last comes from L2 (`Split.way_back`); no bit depends on it.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.split import AHEAD, BLOCK, Split, loader
from kernels.launch import Cost, Floats, Int64, Launch, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


def _backward(
    channels: int, affine: bool, training: bool, relu: bool, index: Any, storage: Storage, width: int
) -> Launch:
    """A thread reads what it needs to know of its `width` channels, then walks down its rows: x and dy in, dx out."""
    stored: Any = storage.pointer
    held = held_rows(storage, width)
    kind, places, take, number, store = held.dtype, held.places, held.load, held.number, held.store
    parts = Split(channels, width)
    lanes, depth, group = parts.lanes, parts.depth, AHEAD * parts.depth
    load, loads, size = loader(width), AHEAD * places, storage.bytes
    reads = 2 * size if training or relu else size

    def backward(
        x: stored, dy: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        mean_g: Floats, slope: Floats, dx: stored, rows: Int64, stretch: Int64, groups: Int64,
    ):  # fmt: skip
        values = cuda.local.array(loads, kind)
        gradients = cuda.local.array(loads, kind)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        mean = cuda.local.array(width, float32)
        factor = cuda.local.array(width, float32)
        row = cuda.threadIdx.x // lanes
        channel = (cuda.blockIdx.y * lanes + cuda.threadIdx.x % lanes) * width
        if row < depth and channel < channels:
            load(inv_std, channel, scale, 0)
            for j in range(width):
                offset[j] = float32(0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                if relu:
                    load(beta, channel, offset, 0)
            if training or relu:
                load(shift, channel, near, 0)
                load(delta, channel, rest, 0)
            if training:
                load(mean_g, channel, mean, 0)
                load(slope, channel, factor, 0)
            first = cuda.blockIdx.x * stretch + (cuda.gridDim.z - 1 - cuda.blockIdx.z) * groups * group + row
            end = index(min(rows, (cuda.blockIdx.x + 1) * stretch))
            for k in range(groups):
                at = index(first + (groups - 1 - k) * group)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        take(dy, index((at + i * depth) * channels + channel), gradients, i * places)
                        if training or relu:
                            take(x, index((at + i * depth) * channels + channel), values, i * places)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        for j in range(width):
                            g = number(gradients, i * places, j)
                            if relu:
                                value = number(values, i * places, j)
                                g = passed(g, normalized(value, near[j], rest[j], scale[j], offset[j]))
                            if training:
                                g = (g - mean[j]) - ((number(values, i * places, j) - near[j]) - rest[j]) * factor[j]
                            result[j] = scale[j] * g
                        store(dx, index((at + i * depth) * channels + channel), result)

    return Launch(
        backward,
        BLOCK,
        parts.grid_back,
        lambda rows: Cost(reads * rows * channels + 28 * channels, size * rows * channels, 7 * rows * channels),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta, mean_g, slope -> dx",
    examples=[
        (1, True, True, False, uint32, FLOAT32),
        (17, True, True, True, uint32, FLOAT32),
        (64, False, False, True, uint32, FLOAT32),
        (513, True, False, False, int64, FLOAT32),
        (17, True, True, True, uint32, BFLOAT16),
        (65, True, False, False, uint32, FLOAT16),
    ],
)
def batchnorm_backward_scalar(
    channels: int, affine: bool, training: bool, relu: bool, index: Any, storage: Storage
) -> Launch:
    """dx, from sums over rows where `training`. One channel a thread."""
    return _backward(channels, affine, training, relu, index, storage, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta, mean_g, slope -> dx",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=120,  # eight loads of 16 bytes are under way; in float32 at most 96
    examples=[
        (4, True, True, False, uint32, FLOAT32),
        (64, True, True, True, uint32, FLOAT32),
        (64, True, False, False, uint32, FLOAT32),
        (512, False, True, True, int64, FLOAT32),
        (64, True, True, True, uint32, BFLOAT16),
        (64, True, True, False, uint32, BFLOAT16),
        (512, True, True, True, int64, FLOAT16),
    ],
)
def batchnorm_backward_vector(
    channels: int, affine: bool, training: bool, relu: bool, index: Any, storage: Storage
) -> Launch:
    """The same with as many channels a thread as 16 bytes hold, moved at once. All arrays aligned to 16."""
    return _backward(channels, affine, training, relu, index, storage, storage.wide)
