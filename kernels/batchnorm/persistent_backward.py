"""Batch normalization backward in one launch, which reads x and dy once: both stay on the chip.

Each block loads its share of the rows (residency.py), the first rows of a thread into registers, the others by cp.async
into shared memory, and adds up g and g * centred of them (backward.py says what these are). After a barrier of the grid
every block adds what all have found of its channels, in the same order as all others, and computes dx of what it holds.

Shapes   x, dy, dx (..., c) float32, C-contiguous, taken as (rows, c); all others (c,).
Traffic  x and dy once, dx once; and partial sums: two numbers a channel for each block, read by each block of that
         channel. Three tensor passes where sums and backward take five.
Order    Of the sums: by the shape and the number of multiprocessors. Same GPU, same bits.
Edges    As backward.py.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.residency import copier, line_split, room, shared_floats, sharer
from kernels.batchnorm.resident_gradients import IN_REGISTERS, exchanger, finisher
from kernels.batchnorm.split import AHEAD, BLOCK, loader
from kernels.intrinsics import cp_async_commit, cp_async_wait, shared_address
from kernels.launch import Cost, Floats, Int64, Launch, UInt32s, blocks_for, kernel


def _backward(channels: int, affine: bool, training: bool, relu: bool, kept: int, index: Any, width: int) -> Launch:
    parts = line_split(channels, width)
    across, load, copy, kept_memory, share = parts.across, loader(width), copier(width), room(kept), sharer(parts)
    exchange, finish = exchanger(parts, index), finisher(parts, training, relu, index)
    size, slots, ahead = width * BLOCK, IN_REGISTERS * width, AHEAD * width
    pair, step = 2 * size, parts.depth * channels  # floats of a row of x and of dy in shared memory; to the next row

    def backward(
        x: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        dgamma: Floats, dbeta: Floats, dx: Floats, partial: Floats, state: UInt32s, rows: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(size, float32)
        products = cuda.shared.array(size, float32)
        beyond = kept_memory(sums)
        held = cuda.local.array(slots, float32)
        gradients = cuda.local.array(slots, float32)
        values = cuda.local.array(ahead, float32)
        others = cuda.local.array(ahead, float32)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        total = cuda.local.array(width, float32)
        product = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row, channel, mine, at = share(rows, span)

        for i in range(IN_REGISTERS):
            if i < mine:
                load(x, index(at + i * step), held, i * width)
                load(dy, index(at + i * step), gradients, i * width)
        for k in range(IN_REGISTERS, mine):
            slot = (k - IN_REGISTERS) * pair + thread * width
            copy(shared_address(beyond, slot), x, index(at + k * step))
            copy(shared_address(beyond, slot + size), dy, index(at + k * step))
        cp_async_commit()

        for j in range(width):
            total[j] = float32(0)
            product[j] = float32(0)
        if mine > 0:
            load(shift, channel, near, 0)
            load(delta, channel, rest, 0)
            load(inv_std, channel, scale, 0)
            for j in range(width):
                offset[j] = float32(0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                if relu:
                    load(beta, channel, offset, 0)
        for i in range(IN_REGISTERS):
            if i < mine:
                for j in range(width):
                    value, g = held[i * width + j], gradients[i * width + j]
                    if relu:
                        g = passed(g, normalized(value, near[j], rest[j], scale[j], offset[j]))
                        gradients[i * width + j] = g
                    total[j] += g
                    product[j] += g * ((value - near[j]) - rest[j])
        cp_async_wait(0)
        for k in range(IN_REGISTERS, mine, AHEAD):
            for i in range(AHEAD):
                if k + i < mine:
                    slot = (k + i - IN_REGISTERS) * pair + thread * width
                    load(beyond, slot, values, i * width)
                    load(beyond, slot + size, others, i * width)
            for i in range(AHEAD):
                if k + i < mine:
                    for j in range(width):
                        value, g = values[i * width + j], others[i * width + j]
                        if relu:
                            g = passed(g, normalized(value, near[j], rest[j], scale[j], offset[j]))
                        total[j] += g
                        product[j] += g * ((value - near[j]) - rest[j])
        exchange(partial, state, inv_std, dgamma, dbeta, rows, row, channel, sums, products, total, product, result)
        finish(dx, mine, at, beyond, held, gradients, values, others, near, rest, scale, offset, total, product, result)

    return Launch(
        backward,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            8 * rows * channels + (20 + 8 * blocks_for(rows, span)) * channels,
            4 * rows * channels + (8 + 8 * blocks_for(rows, span)) * channels,
            12 * rows * channels,
        ),
        shared_bytes=4 * shared_floats(width, kept, 2),
        cooperative=True,
    )


_TRAFFIC = "x, dy, shift, delta, inv_std, gamma, beta, partial, state -> dgamma, dbeta, dx, partial, state"


@kernel(
    traffic=_TRAFFIC,
    registers=128,
    examples=[
        (1, True, True, False, 0, uint32),
        (17, True, True, True, 8, uint32),
        (64, False, True, True, 8, uint32),
        (513, True, False, False, 8, int64),
    ],
)
def batchnorm_backward_persistent_scalar(
    channels: int, affine: bool, training: bool, relu: bool, kept: int, index: Any
) -> Launch:
    """dx, dgamma and dbeta. One channel a thread; `kept` rows of each in shared memory, the others in registers."""
    return _backward(channels, affine, training, relu, kept, index, 1)


@kernel(
    traffic=_TRAFFIC,
    instructions=("LDG.E.128", "STG.E.128", "LDGSTS.E", "LDG.E.STRONG.GPU"),
    registers=255,  # 32 loads of four floats are under way, and stay
    examples=[
        (4, True, True, False, 0, uint32),
        (64, True, True, True, 16, uint32),
        (64, True, False, True, 16, uint32),
        (512, False, True, True, 16, int64),
    ],
)
def batchnorm_backward_persistent_vector(
    channels: int, affine: bool, training: bool, relu: bool, kept: int, index: Any
) -> Launch:
    """The same with four channels a thread, moved as 16 bytes. All arrays aligned to 16."""
    return _backward(channels, affine, training, relu, kept, index, 4)
