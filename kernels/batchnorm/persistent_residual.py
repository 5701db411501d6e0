"""Backward of a residual block's end in one launch, which reads x, y and dy once: x and dresidual stay on the chip.

As persistent_backward.py, but that the ReLU's mask is taken from its output y, which is read and not kept: g, which
takes the place of dy on the chip, is what `dresidual` is, and is written before the barrier of the grid; dx after it.

Shapes   x, y, dy, dresidual, dx (..., c) float32, C-contiguous, taken as (rows, c); all others (c,).
Traffic  x, y and dy once, dresidual and dx once; and partial sums: two numbers a channel for each block, read by each
         block of that channel. Five tensor passes where the first pass and the second take seven.
Order    Of the sums: by the shape and the number of multiprocessors. Same GPU, same bits.
Edges    As backward.py.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.residency import copier, line_split, room, shared_floats, sharer
from kernels.batchnorm.resident_gradients import IN_REGISTERS, exchanger, finisher
from kernels.batchnorm.split import AHEAD, BLOCK, loader, storer
from kernels.intrinsics import cp_async_commit, cp_async_wait, shared_address
from kernels.launch import Cost, Floats, Int64, Launch, UInt32s, blocks_for, kernel


def _backward(channels: int, affine: bool, training: bool, kept: int, index: Any, width: int) -> Launch:
    parts = line_split(channels, width)
    load, store, copy, kept_memory, share = loader(width), storer(width), copier(width), room(kept), sharer(parts)
    exchange, finish = exchanger(parts, index), finisher(parts, training, False, index)
    size, slots, ahead = width * BLOCK, IN_REGISTERS * width, AHEAD * width
    pair, step = 2 * size, parts.depth * channels  # floats of a row of x and of g in shared memory; to the next row
    across, groups = parts.across, IN_REGISTERS // AHEAD

    def add_relu_backward(
        x: Floats, y: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats,
        dresidual: Floats, dgamma: Floats, dbeta: Floats, dx: Floats, partial: Floats, state: UInt32s,
        rows: Int64, span: Int64,
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
        total = cuda.local.array(width, float32)
        product = cuda.local.array(width, float32)
        row, channel, mine, at = share(rows, span)

        for i in range(IN_REGISTERS):
            if i < mine:
                load(x, index(at + i * step), held, i * width)
                load(dy, index(at + i * step), gradients, i * width)
        for k in range(IN_REGISTERS, mine):
            slot = (k - IN_REGISTERS) * pair + cuda.threadIdx.x * width
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
            if affine:
                load(gamma, channel, result, 0)
                for j in range(width):
                    scale[j] *= result[j]
        for k in range(groups):
            for i in range(AHEAD):
                if k * AHEAD + i < mine:
                    load(y, index(at + (k * AHEAD + i) * step), others, i * width)
            for i in range(AHEAD):
                if k * AHEAD + i < mine:
                    for j in range(width):
                        slot = (k * AHEAD + i) * width + j
                        g = passed(gradients[slot], others[i * width + j])
                        gradients[slot] = g
                        result[j] = g
                        total[j] += g
                        product[j] += g * ((held[slot] - near[j]) - rest[j])
                    store(dresidual, index(at + (k * AHEAD + i) * step), result)
        cp_async_wait(0)
        for k in range(IN_REGISTERS, mine, AHEAD):
            for i in range(AHEAD):
                if k + i < mine:
                    load(y, index(at + (k + i) * step), others, i * width)
            for i in range(AHEAD):
                if k + i < mine:
                    slot = (k + i - IN_REGISTERS) * pair + cuda.threadIdx.x * width
                    load(beyond, slot, values, 0)
                    load(beyond, slot + size, result, 0)
                    for j in range(width):
                        g = passed(result[j], others[i * width + j])
                        result[j] = g
                        total[j] += g
                        product[j] += g * ((values[j] - near[j]) - rest[j])
                    store(beyond, slot + size, result)  # only this thread reads it
                    store(dresidual, index(at + (k + i) * step), result)
        exchange(partial, state, inv_std, dgamma, dbeta, rows, row, channel, sums, products, total, product, result)
        finish(dx, mine, at, beyond, held, gradients, values, others, near, rest, scale, scale, total, product, result)

    return Launch(
        add_relu_backward,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            12 * rows * channels + (16 + 8 * blocks_for(rows, span)) * channels,
            8 * rows * channels + (8 + 8 * blocks_for(rows, span)) * channels,
            9 * rows * channels,
        ),
        shared_bytes=4 * shared_floats(width, kept, 2),
        cooperative=True,
    )


_TRAFFIC = "x, y, dy, shift, delta, inv_std, gamma, partial, state -> dresidual, dgamma, dbeta, dx, partial, state"


@kernel(
    traffic=_TRAFFIC,
    registers=128,
    examples=[(1, True, True, 0, uint32), (17, True, True, 8, uint32), (64, False, False, 8, uint32)],
)
def batchnorm_add_relu_backward_persistent_scalar(
    channels: int, affine: bool, training: bool, kept: int, index: Any
) -> Launch:
    """dx, dresidual, dgamma, dbeta. One channel a thread; `kept` rows of each in shared memory, others in registers."""
    return _backward(channels, affine, training, kept, index, 1)


@kernel(
    traffic=_TRAFFIC,
    instructions=("LDG.E.128", "STG.E.128", "LDGSTS.E", "LDG.E.STRONG.GPU"),
    registers=255,  # 36 loads of four floats are under way, of which 32 stay
    examples=[(4, True, True, 0, uint32), (64, True, True, 16, uint32), (512, False, True, 16, int64)],
)
def batchnorm_add_relu_backward_persistent_vector(
    channels: int, affine: bool, training: bool, kept: int, index: Any
) -> Launch:
    """The same with four channels a thread, moved as 16 bytes. All arrays aligned to 16."""
    return _backward(channels, affine, training, kept, index, 4)
