"""Backward of a residual block's end in one launch, which reads x, y and dy once: x and dresidual stay on the chip.

As persistent_backward.py, but that the ReLU's mask is taken from its output y, which is read and not kept: g, which
takes the place of dy on the chip, is what `dresidual` is, and is written before the barrier of the grid; dx after it.

Shapes   x, y, dy, dresidual, dx (..., c) of one storage (kernels/storage.py), C-contiguous, taken as (rows, c); all
         others (c,) float32. What is on the chip is as it is stored: in 16 bits twice as much.
Traffic  x, y and dy once, dresidual and dx once; and partial sums: two numbers a channel for each block, read by each
         block of that channel. Five tensor passes where the first pass and the second take seven.
Order    Of the sums: by the shape and the number of multiprocessors. Same GPU, same bits.
Edges    As backward.py.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.residency import kept_bytes, line_split, room, rows_at_once, sharer
from kernels.batchnorm.resident_gradients import IN_REGISTERS, exchanger, fetcher, finisher
from kernels.batchnorm.split import AHEAD, BLOCK
from kernels.device import inlined
from kernels.intrinsics import cp_async_wait
from kernels.launch import Cost, Floats, Int64, Launch, UInt32s, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


def _backward(
    channels: int, affine: bool, training: bool, kept: int, index: Any, storage: Storage, width: int
) -> Launch:
    stored: Any = storage.pointer
    form = held_rows(storage, width)
    kind, places, take, number = form.dtype, form.places, form.load, form.number
    parts = line_split(channels, width)
    store, kept_memory, share = form.store, room(kept, storage), sharer(parts)
    keep, bytes_each = form.keep, storage.bytes
    fetch, exchange = fetcher(parts, affine, False, index, storage), exchanger(parts, index)
    finish = finisher(parts, training, False, index, storage)
    size, slots, ahead = width * BLOCK, IN_REGISTERS * places, AHEAD * places
    pair, step = 2 * size, parts.depth * channels  # elements of a row of x and of g in shared memory; to the next row
    across, once = parts.across, rows_at_once(IN_REGISTERS, width)
    groups, several = once // AHEAD, once < IN_REGISTERS

    @inlined
    def sum_held(first, mine, at, y, dresidual, held, gradients, others, near, rest, total, product, result):
        for k in range(groups):
            for i in range(AHEAD):
                if first + k * AHEAD + i < mine:
                    take(y, index(at + (first + k * AHEAD + i) * step), others, i * places)
            for i in range(AHEAD):
                if first + k * AHEAD + i < mine:
                    for j in range(width):
                        slot = (first + k * AHEAD + i) * places
                        g = passed(number(gradients, slot, j), number(others, i * places, j))
                        result[j] = g
                        total[j] += g
                        product[j] += g * ((number(held, slot, j) - near[j]) - rest[j])
                    keep(result, gradients, (first + k * AHEAD + i) * places)
                    store(dresidual, index(at + (first + k * AHEAD + i) * step), result)

    def add_relu_backward(
        x: stored, y: stored, dy: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats,
        dresidual: stored, dgamma: Floats, dbeta: Floats, dx: stored, partial: Floats, state: UInt32s,
        rows: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(size, float32)
        products = cuda.shared.array(size, float32)
        beyond = kept_memory(sums)
        held = cuda.local.array(slots, kind)
        gradients = cuda.local.array(slots, kind)
        values = cuda.local.array(ahead, kind)
        others = cuda.local.array(ahead, kind)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        total = cuda.local.array(width, float32)
        product = cuda.local.array(width, float32)
        row, channel, mine, at = share(rows, span)

        fetch(
            x, dy, shift, delta, inv_std, gamma, gamma, channel, mine, at, beyond, held, gradients,
            near, rest, scale, result, total, product,
        )  # fmt: skip
        sum_held(0, mine, at, y, dresidual, held, gradients, others, near, rest, total, product, result)
        if several:
            sum_held(once, mine, at, y, dresidual, held, gradients, others, near, rest, total, product, result)
            sum_held(2 * once, mine, at, y, dresidual, held, gradients, others, near, rest, total, product, result)
            sum_held(3 * once, mine, at, y, dresidual, held, gradients, others, near, rest, total, product, result)
        cp_async_wait(0)
        for k in range(IN_REGISTERS, mine, AHEAD):
            for i in range(AHEAD):
                if k + i < mine:
                    take(y, index(at + (k + i) * step), others, i * places)
            for i in range(AHEAD):
                if k + i < mine:
                    slot = (k + i - IN_REGISTERS) * pair + cuda.threadIdx.x * width
                    take(beyond, slot, values, 0)
                    take(beyond, slot + size, values, places)
                    for j in range(width):
                        g = passed(number(values, places, j), number(others, i * places, j))
                        result[j] = g
                        total[j] += g
                        product[j] += g * ((number(values, 0, j) - near[j]) - rest[j])
                    store(beyond, slot + size, result)  # only this thread reads it
                    store(dresidual, index(at + (k + i) * step), result)
        exchange(partial, state, inv_std, dgamma, dbeta, rows, row, channel, sums, products, total, product, result)
        finish(dx, mine, at, beyond, held, gradients, values, others, near, rest, scale, scale, total, product, result)

    return Launch(
        add_relu_backward,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            3 * bytes_each * rows * channels + (16 + 8 * blocks_for(rows, span)) * channels,
            2 * bytes_each * rows * channels + (8 + 8 * blocks_for(rows, span)) * channels,
            9 * rows * channels,
        ),
        shared_bytes=kept_bytes(width, kept, 2, storage),
        cooperative=True,
    )


_TRAFFIC = "x, y, dy, shift, delta, inv_std, gamma, partial, state -> dresidual, dgamma, dbeta, dx, partial, state"


@kernel(
    traffic=_TRAFFIC,
    registers=128,
    examples=[
        (1, True, True, 0, uint32, FLOAT32),
        (17, True, True, 8, uint32, FLOAT32),
        (64, False, False, 8, uint32, FLOAT32),
        (17, True, True, 8, uint32, BFLOAT16),
        (65, True, False, 0, uint32, FLOAT16),
    ],
)
def batchnorm_add_relu_backward_persistent_scalar(
    channels: int, affine: bool, training: bool, kept: int, index: Any, storage: Storage
) -> Launch:
    """dx, dresidual, dgamma, dbeta. One channel a thread; `kept` rows of each in shared memory, others in registers."""
    return _backward(channels, affine, training, kept, index, storage, 1)


@kernel(
    traffic=_TRAFFIC,
    instructions=("LDG.E.128", "STG.E.128", "LDGSTS.E", "LDG.E.STRONG.GPU"),
    registers=255,  # 36 loads of four floats are under way, of which 32 stay
    examples=[
        (4, True, True, 0, uint32, FLOAT32),
        (64, True, True, 16, uint32, FLOAT32),
        (512, False, True, 16, int64, FLOAT32),
        (8, True, True, 0, uint32, BFLOAT16),
        (64, True, True, 16, uint32, BFLOAT16),
        (512, True, True, 16, int64, FLOAT16),
    ],
)
def batchnorm_add_relu_backward_persistent_vector(
    channels: int, affine: bool, training: bool, kept: int, index: Any, storage: Storage
) -> Launch:
    """The same with as many channels a thread as 16 bytes hold, moved at once. All arrays aligned to 16."""
    return _backward(channels, affine, training, kept, index, storage, storage.wide)
