"""Batch normalization backward in one launch, which reads x and dy once: both stay on the chip.

Each block loads its share of the rows (residency.py), the first rows of a thread into registers, the others by cp.async
into shared memory, and adds up g and g * centred of them (backward.py says what these are). After a barrier of the grid
every block adds what all have found of its channels, in the same order as all others, and computes dx of what it holds.

Shapes   x, dy, dx (..., c) of one storage (kernels/storage.py), C-contiguous, taken as (rows, c); all
         others (c,) float32. What is on the chip is as it is stored: in 16 bits twice as much.
Traffic  x and dy once, dx once; and partial sums: two numbers a channel for each block, read by each block of that
         channel. Three tensor passes where sums and backward take five.
Order    Of the sums: by the shape and the number of multiprocessors. Same GPU, same bits.
Edges    As backward.py.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.residency import kept_bytes, line_split, room, rows_at_once, sharer
from kernels.batchnorm.resident_gradients import IN_REGISTERS, exchanger, fetcher, finisher
from kernels.batchnorm.split import AHEAD, BLOCK
from kernels.device import inlined
from kernels.intrinsics import cp_async_wait
from kernels.launch import Cost, Floats, Int64, Launch, UInt32s, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


def _backward(
    channels: int, affine: bool, training: bool, relu: bool, kept: int, index: Any, storage: Storage, width: int
) -> Launch:
    stored: Any = storage.pointer
    form = held_rows(storage, width)
    kind, places, take, number = form.dtype, form.places, form.load, form.number
    parts = line_split(channels, width)
    across, kept_memory, share = parts.across, room(kept, storage), sharer(parts)
    keep, bytes_each = form.keep, storage.bytes
    fetch, exchange = fetcher(parts, affine, relu, index, storage), exchanger(parts, index)
    finish = finisher(parts, training, relu, index, storage)
    size, slots, ahead = width * BLOCK, IN_REGISTERS * places, AHEAD * places
    pair = 2 * size  # elements of a row of x and of dy in shared memory
    once = rows_at_once(IN_REGISTERS, width)
    several = once < IN_REGISTERS

    @inlined
    def sum_held(first, mine, held, gradients, near, rest, scale, offset, total, product, result):
        for i in range(once):
            if first + i < mine:
                for j in range(width):
                    value, g = number(held, (first + i) * places, j), number(gradients, (first + i) * places, j)
                    if relu:
                        g = passed(g, normalized(value, near[j], rest[j], scale[j], offset[j]))
                        result[j] = g
                    total[j] += g
                    product[j] += g * ((value - near[j]) - rest[j])
                if relu:
                    keep(result, gradients, (first + i) * places)

    def backward(
        x: stored, dy: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        dgamma: Floats, dbeta: Floats, dx: stored, partial: Floats, state: UInt32s, rows: Int64, span: Int64,
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
        offset = cuda.local.array(width, float32)
        total = cuda.local.array(width, float32)
        product = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row, channel, mine, at = share(rows, span)

        fetch(
            x, dy, shift, delta, inv_std, gamma, beta, channel, mine, at, beyond, held, gradients,
            near, rest, scale, offset, total, product,
        )  # fmt: skip
        sum_held(0, mine, held, gradients, near, rest, scale, offset, total, product, result)
        if several:
            sum_held(once, mine, held, gradients, near, rest, scale, offset, total, product, result)
            sum_held(2 * once, mine, held, gradients, near, rest, scale, offset, total, product, result)
            sum_held(3 * once, mine, held, gradients, near, rest, scale, offset, total, product, result)
        cp_async_wait(0)
        for k in range(IN_REGISTERS, mine, AHEAD):
            for i in range(AHEAD):
                if k + i < mine:
                    slot = (k + i - IN_REGISTERS) * pair + thread * width
                    take(beyond, slot, values, i * places)
                    take(beyond, slot + size, others, i * places)
            for i in range(AHEAD):
                if k + i < mine:
                    for j in range(width):
                        value, g = number(values, i * places, j), number(others, i * places, j)
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
            2 * bytes_each * rows * channels + (20 + 8 * blocks_for(rows, span)) * channels,
            bytes_each * rows * channels + (8 + 8 * blocks_for(rows, span)) * channels,
            12 * rows * channels,
        ),
        shared_bytes=kept_bytes(width, kept, 2, storage),
        cooperative=True,
    )


_TRAFFIC = "x, dy, shift, delta, inv_std, gamma, beta, partial, state -> dgamma, dbeta, dx, partial, state"


@kernel(
    traffic=_TRAFFIC,
    registers=128,
    examples=[
        (1, True, True, False, 0, uint32, FLOAT32),
        (17, True, True, True, 8, uint32, FLOAT32),
        (64, False, True, True, 8, uint32, FLOAT32),
        (513, True, False, False, 8, int64, FLOAT32),
        (17, True, True, True, 8, uint32, BFLOAT16),
        (65, True, False, False, 0, uint32, FLOAT16),
    ],
)
def batchnorm_backward_persistent_scalar(
    channels: int, affine: bool, training: bool, relu: bool, kept: int, index: Any, storage: Storage
) -> Launch:
    """dx, dgamma and dbeta. One channel a thread; `kept` rows of each in shared memory, the others in registers."""
    return _backward(channels, affine, training, relu, kept, index, storage, 1)


@kernel(
    traffic=_TRAFFIC,
    instructions=("LDG.E.128", "STG.E.128", "LDGSTS.E", "LDG.E.STRONG.GPU"),
    registers=255,  # 32 loads of four floats are under way, and stay
    examples=[
        (4, True, True, False, 0, uint32, FLOAT32),
        (64, True, True, True, 16, uint32, FLOAT32),
        (64, True, False, True, 16, uint32, FLOAT32),
        (512, False, True, True, 16, int64, FLOAT32),
        (8, True, True, False, 0, uint32, BFLOAT16),
        (64, True, True, True, 16, uint32, BFLOAT16),
        (512, True, True, True, 16, int64, FLOAT16),
    ],
)
def batchnorm_backward_persistent_vector(
    channels: int, affine: bool, training: bool, relu: bool, kept: int, index: Any, storage: Storage
) -> Launch:
    """The same with as many channels a thread as 16 bytes hold, moved at once. All arrays aligned to 16."""
    return _backward(channels, affine, training, relu, kept, index, storage, storage.wide)
