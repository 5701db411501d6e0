"""The sums over rows that batch normalization's backward needs, first stage: sum g and sum g * centred of each block.

g, centred and what the sums are for are in backward.py. A thread adds at most CHUNK rows in one accumulator, then its
chunks, and a block its threads as a tree; partial_gradients.py adds the blocks, some 384 at most, as a tree again.
masked_sums.py has the same of a residual block's end.

Traffic  x and dy once; and partial sums.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.adding import partial_adder
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, Split, loader
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


def _sum_gradients(channels: int, affine: bool, relu: bool, index: Any, storage: Storage, width: int) -> Launch:
    stored: Any = storage.pointer
    held = held_rows(storage, width)
    kind, places, take, number = held.dtype, held.places, held.load, held.number
    parts = Split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, add_and_store = loader(width), partial_adder(parts, index)
    size, loads, bytes_each = width * BLOCK, AHEAD * places, storage.bytes

    def sum_gradients(
        x: stored, dy: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        partial: Floats, rows: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(size, float32)
        products = cuda.shared.array(size, float32)
        values = cuda.local.array(loads, kind)
        gradients = cuda.local.array(loads, kind)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        chunk_sum = cuda.local.array(width, float32)
        chunk_product = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row = thread // lanes
        channel = (cuda.blockIdx.y * lanes + thread % lanes) * width
        for j in range(width):
            sums[j * BLOCK + thread] = float32(0)
            products[j * BLOCK + thread] = float32(0)
        if row < depth and channel < channels:
            load(shift, channel, near, 0)
            load(delta, channel, rest, 0)
            if relu:
                load(inv_std, channel, scale, 0)
                for j in range(width):
                    offset[j] = float32(0)
                if affine:
                    load(gamma, channel, offset, 0)
                    for j in range(width):
                        scale[j] *= offset[j]
                    load(beta, channel, offset, 0)
            at = index(cuda.blockIdx.x * span + row)
            end = index(min(rows, (cuda.blockIdx.x + 1) * span))
            while at < end:
                stop = index(min(end, at + CHUNK * depth))
                for j in range(width):
                    chunk_sum[j] = float32(0)
                    chunk_product[j] = float32(0)
                while at < stop:
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            take(x, index((at + i * depth) * channels + channel), values, i * places)
                            take(dy, index((at + i * depth) * channels + channel), gradients, i * places)
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            for j in range(width):
                                value, g = number(values, i * places, j), number(gradients, i * places, j)
                                if relu:
                                    g = passed(g, normalized(value, near[j], rest[j], scale[j], offset[j]))
                                chunk_sum[j] += g
                                chunk_product[j] += g * ((value - near[j]) - rest[j])
                    at = index(at + AHEAD * depth)
                for j in range(width):
                    sums[j * BLOCK + thread] += chunk_sum[j]
                    products[j * BLOCK + thread] += chunk_product[j]

        add_and_store(partial, row, channel, thread, sums, products, chunk_sum)

    return Launch(
        sum_gradients,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            2 * bytes_each * rows * channels + 20 * channels, 8 * blocks_for(rows, span) * channels, 5 * rows * channels
        ),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta -> partial",
    examples=[
        (1, True, False, uint32, FLOAT32),
        (17, True, True, uint32, FLOAT32),
        (64, False, True, uint32, FLOAT32),
        (513, False, False, int64, FLOAT32),
        (17, True, True, uint32, BFLOAT16),
        (65, False, False, uint32, FLOAT16),
    ],
)
def batchnorm_sum_gradients_scalar(channels: int, affine: bool, relu: bool, index: Any, storage: Storage) -> Launch:
    """Sums of g and g * centred over each block's rows, partial (2, blocks, c); one channel a thread."""
    return _sum_gradients(channels, affine, relu, index, storage, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta -> partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=128,  # eight loads of 16 bytes are under way; in float32 at most 96
    examples=[
        (4, True, False, uint32, FLOAT32),
        (64, True, True, uint32, FLOAT32),
        (512, False, True, int64, FLOAT32),
        (64, True, True, uint32, BFLOAT16),
        (64, True, False, uint32, BFLOAT16),
        (512, True, True, int64, FLOAT16),
    ],
)
def batchnorm_sum_gradients_vector(channels: int, affine: bool, relu: bool, index: Any, storage: Storage) -> Launch:
    """The same with as many channels a thread as 16 bytes hold. All arrays aligned to 16."""
    return _sum_gradients(channels, affine, relu, index, storage, storage.wide)
