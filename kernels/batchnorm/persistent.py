"""Batch normalization forward in one launch, which reads x once: statistics and their use with x on the chip.

Each block loads its share of the rows (residency.py), as many loads under way as a thread has rows: the first into
registers, the others by cp.async into shared memory. It sums them as statistics.py does (a thread about a shift of its
own, the threads as a tree) and stores what it found. After a barrier of the grid every block
merges what all have found of its channels, in the same order as all others, and normalizes what it holds.

Shapes   x, residual, y (..., c) of one storage (kernels/storage.py), C-contiguous, taken as (rows, c); all others (c,)
         float32. What is on the chip is as it is stored: in 16 bits twice as much.
Traffic  x (and residual) once, y once; and partial sums: three numbers a channel for each block, read by each block of
         that channel. Two tensor passes where statistics and apply take three.
Order    Of the sums: by the shape and the number of multiprocessors. Same GPU, same bits.
Edges    As statistics.py and apply.py: a constant channel has variance 0 exactly; what is not finite stays in its
         channel.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batchnorm.apply import normalized
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.merging import blocks_merger, finite, first_shift, partial_merger, two_sum
from kernels.batchnorm.residency import HELD, kept_bytes, line_split, room, rows_at_once, sharer
from kernels.batchnorm.split import AHEAD, BLOCK, loader
from kernels.device import inlined, positive
from kernels.grid_barrier import grid_barrier
from kernels.intrinsics import cp_async_commit, cp_async_wait, fma
from kernels.launch import Cost, Float, Floats, Int64, Launch, UInt32s, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage

IN_REGISTERS = HELD[1]


def _forward(
    channels: int, affine: bool, relu: bool, add: bool, kept: int, index: Any, storage: Storage, width: int
) -> Launch:
    stored: Any = storage.pointer
    form = held_rows(storage, width)
    kind, places, take, number = form.dtype, form.places, form.load, form.number
    parts = line_split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, store, copy, kept_memory, share = loader(width), form.store, form.copy, room(kept, storage), sharer(parts)
    merge_and_store = partial_merger(parts, index)
    line = lanes * width  # channels of a block
    merge_blocks = blocks_merger(line, BLOCK // line)
    size, slots, ahead = width * BLOCK, IN_REGISTERS * places, AHEAD * places
    once, step = rows_at_once(IN_REGISTERS, width), depth * channels
    groups, several = once // AHEAD, once < IN_REGISTERS
    bytes_each = storage.bytes
    reads = 2 * bytes_each if add else bytes_each

    @inlined
    def sum_group(first, mine, held, slot, near, rest, scale, offset, group_sum, group_square):
        for j in range(width):
            group_sum[j] = float32(0)
            group_square[j] = float32(0)
        for i in range(AHEAD):
            if first + i < mine:
                for j in range(width):
                    difference = number(held, (slot + i) * places, j) - near[j]
                    group_sum[j] += difference
                    group_square[j] = fma(difference, difference, group_square[j])
        for j in range(width):
            rest[j] += group_sum[j]
            square, lost = two_sum(scale[j], group_square[j])
            scale[j] = square
            offset[j] += lost

    @inlined
    def sum_held(first, mine, held, near, rest, scale, offset, group_sum, group_square):
        for k in range(groups):
            slot = first + k * AHEAD
            sum_group(slot, mine, held, slot, near, rest, scale, offset, group_sum, group_square)

    @inlined
    def use_row(held, slot, values, i, y, at, near, rest, scale, offset, result):
        for j in range(width):
            value = normalized(number(held, slot * places, j), near[j], rest[j], scale[j], offset[j])
            if add:
                value += number(values, i * places, j)
            result[j] = positive(value) if relu else value
        store(y, index(at), result)

    @inlined
    def use_held(first, mine, at, residual, y, held, values, near, rest, scale, offset, result):
        for k in range(groups):
            if add:
                for i in range(AHEAD):
                    if first + k * AHEAD + i < mine:
                        take(residual, index(at + (first + k * AHEAD + i) * step), values, i * places)
            for i in range(AHEAD):
                slot = first + k * AHEAD + i
                if slot < mine:
                    use_row(held, slot, values, i, y, at + slot * step, near, rest, scale, offset, result)

    def forward(
        x: stored, residual: stored, gamma: Floats, beta: Floats, shift: Floats, delta: Floats, var: Floats,
        inv_std: Floats, y: stored, partial: Floats, state: UInt32s, rows: Int64, span: Int64, eps: Float,
    ):  # fmt: skip
        counts = cuda.shared.array(BLOCK, float32)
        shifts = cuda.shared.array(size, float32)
        sums = cuda.shared.array(size, float32)
        squares = cuda.shared.array(size, float32)
        rests = cuda.shared.array(size, float32)
        beyond = kept_memory(shifts)
        held = cuda.local.array(slots, kind)
        values = cuda.local.array(ahead, kind)
        one = cuda.local.array(places, kind)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        group_sum = cuda.local.array(width, float32)
        group_square = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row, channel, mine, at = share(rows, span)

        for i in range(IN_REGISTERS):
            if i < mine:
                take(x, index(at + i * step), held, i * places)
        for k in range(IN_REGISTERS, mine):
            copy(beyond, (k - IN_REGISTERS) * size + thread * width, x, index(at + k * step))
        cp_async_commit()

        for j in range(width):
            near[j] = float32(0)
            rest[j] = float32(0)
            scale[j] = float32(0)
            offset[j] = float32(0)
        if mine > 0:
            for j in range(width):
                a = number(held, 0, j)
                near[j] = a if finite(a) else float32(0)
                if mine >= AHEAD:
                    b, c, d = number(held, places, j), number(held, 2 * places, j), number(held, 3 * places, j)
                    near[j] = first_shift(a, b, c, d)
            sum_held(0, mine, held, near, rest, scale, offset, group_sum, group_square)
            if several:
                sum_held(once, mine, held, near, rest, scale, offset, group_sum, group_square)
                sum_held(2 * once, mine, held, near, rest, scale, offset, group_sum, group_square)
                sum_held(3 * once, mine, held, near, rest, scale, offset, group_sum, group_square)
        cp_async_wait(0)
        for k in range(IN_REGISTERS, mine, AHEAD):
            for i in range(AHEAD):
                if k + i < mine:
                    take(beyond, (k + i - IN_REGISTERS) * size + thread * width, values, i * places)
            sum_group(k, mine, values, 0, near, rest, scale, offset, group_sum, group_square)
        counts[thread] = float32(mine)
        for j in range(width):
            shifts[j * BLOCK + thread] = near[j]
            sums[j * BLOCK + thread] = rest[j]
            squares[j * BLOCK + thread] = scale[j]
            rests[j * BLOCK + thread] = offset[j]
        place, plane = cuda.blockIdx.x * channels + channel, cuda.gridDim.x * channels
        merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, rests, result)

        grid_barrier(state)

        own = cuda.blockIdx.y * line + thread % line  # the channel of which this thread merges what blocks found
        blocks = cuda.gridDim.x
        merge_blocks(
            partial, blocks, channels, rows, span, eps, thread, thread // line, own,
            counts, shifts, sums, squares, rests,
        )  # fmt: skip
        if cuda.blockIdx.x == 0 and thread < line and own < channels:
            shift[own] = shifts[thread]
            delta[own] = sums[thread]
            var[own] = squares[thread]
            inv_std[own] = rests[thread]
        cuda.syncthreads()

        if mine > 0:
            for j in range(width):
                lane = thread % lanes * width + j
                near[j] = shifts[lane]
                rest[j] = sums[lane]
                scale[j] = rests[lane]
                offset[j] = float32(0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                load(beta, channel, offset, 0)
            use_held(0, mine, at, residual, y, held, values, near, rest, scale, offset, result)
            if several:
                use_held(once, mine, at, residual, y, held, values, near, rest, scale, offset, result)
                use_held(2 * once, mine, at, residual, y, held, values, near, rest, scale, offset, result)
                use_held(3 * once, mine, at, residual, y, held, values, near, rest, scale, offset, result)
            for k in range(IN_REGISTERS, mine, AHEAD):
                if add:
                    for i in range(AHEAD):
                        if k + i < mine:
                            take(residual, index(at + (k + i) * step), values, i * places)
                for i in range(AHEAD):
                    if k + i < mine:
                        take(beyond, (k + i - IN_REGISTERS) * size + thread * width, one, 0)
                        use_row(one, 0, values, i, y, at + (k + i) * step, near, rest, scale, offset, result)

    return Launch(
        forward,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            reads * rows * channels + (8 + 12 * blocks_for(rows, span)) * channels,
            bytes_each * rows * channels + (16 + 12 * blocks_for(rows, span)) * channels,
            8 * rows * channels,
        ),
        shared_bytes=kept_bytes(width, kept, 1, storage),
        cooperative=True,
    )


_TRAFFIC = "x, residual, gamma, beta, partial, state -> shift, delta, var, inv_std, y, partial, state"


@kernel(
    traffic=_TRAFFIC,
    registers=128,
    examples=[
        (1, True, False, False, 0, uint32, FLOAT32),
        (17, True, True, True, 8, uint32, FLOAT32),
        (64, False, True, False, 8, uint32, FLOAT32),
        (513, False, False, False, 8, int64, FLOAT32),
        (17, True, True, True, 8, uint32, BFLOAT16),
        (65, False, False, False, 0, uint32, FLOAT16),
    ],
)
def batchnorm_forward_persistent_scalar(
    channels: int, affine: bool, relu: bool, add: bool, kept: int, index: Any, storage: Storage
) -> Launch:
    """One channel a thread; `kept` rows of each thread in shared memory, the others in registers."""
    return _forward(channels, affine, relu, add, kept, index, storage, 1)


@kernel(
    traffic=_TRAFFIC,
    instructions=("LDG.E.128", "STG.E.128", "LDGSTS.E", "LDG.E.STRONG.GPU"),
    registers=255,  # 32 loads of four floats are under way, and stay
    examples=[
        (4, True, False, False, 0, uint32, FLOAT32),
        (64, True, True, False, 32, uint32, FLOAT32),
        (64, True, True, True, 32, uint32, FLOAT32),
        (512, False, True, False, 32, int64, FLOAT32),
        (8, True, False, False, 0, uint32, BFLOAT16),
        (64, True, True, True, 32, uint32, BFLOAT16),
        (512, True, True, True, 32, int64, FLOAT16),
    ],
)
def batchnorm_forward_persistent_vector(
    channels: int, affine: bool, relu: bool, add: bool, kept: int, index: Any, storage: Storage
) -> Launch:
    """The same with as many channels a thread as 16 bytes hold, moved at once. All arrays aligned to 16."""
    return _forward(channels, affine, relu, add, kept, index, storage, storage.wide)
