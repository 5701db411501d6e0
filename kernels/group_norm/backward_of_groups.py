"""Group normalization backward by groups: one or more threads have a group of a sample, as layout.py says.

One launch: the sums over the group, and dx. Where a group is a row and a thread's part of it fits in registers, that is
read once. The formulas are in backward.py.

Shapes   x, dy, dx (n, rows, c) float32, C-contiguous; statistics (n, groups); gamma (c,).
Traffic  x and dy once, or twice where a group is too large; dx once.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batchnorm.adding import block_adder
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, loader, storer
from kernels.device import WARP, inlined
from kernels.group_norm.layout import placer
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel


def set_adder(threads: int) -> Any:
    """A device function: the sums of two numbers over `threads` neighbouring threads, for each of them.

    `threads` is a power of two, and a warp at most, or else all of a block.
    The same bits in each: both lanes of a pair add the same two numbers.
    """
    add_block = block_adder(1, 1, threads)

    @inlined
    def add_lanes(total, product):
        stride = threads // 2
        while stride > 0:
            total += cuda.shfl_xor_sync(0xFFFFFFFF, total, stride)
            product += cuda.shfl_xor_sync(0xFFFFFFFF, product, stride)
            stride //= 2
        return total, product

    @inlined
    def add_threads(total, product):
        sums = cuda.shared.array(threads, float32)
        products = cuda.shared.array(threads, float32)
        thread = cuda.threadIdx.x
        sums[thread] = total
        products[thread] = product
        add_block(thread, thread, sums, products)
        cuda.syncthreads()
        return sums[0], products[0]

    return add_lanes if threads <= WARP else add_threads


def _backward(channels: int, groups: int, threads: int, single: bool, scaled: bool, index: Any, width: int) -> Launch:
    """`threads` threads add up a group of a sample, chunk by chunk, and then go through it again for dx."""
    size = channels // groups
    block = max(threads, BLOCK)
    teams, step, loads = block // threads, threads * width, AHEAD * width
    load, store, add, place = loader(width), storer(width), set_adder(threads), placer(channels, groups, single)
    resident = single and size <= threads * loads  # then a thread still has all that it read

    @inlined
    def read(x, dy, gamma, which, at, stop, rows, values, gradients, factor):
        for i in range(AHEAD):
            e = at + i * step
            if e < stop:
                load(x, index(place(which, e, rows)), values, i * width)
                load(dy, index(place(which, e, rows)), gradients, i * width)
                if scaled:
                    load(gamma, which % groups * size + e % size, factor, 0)
                    for j in range(width):
                        gradients[i * width + j] *= factor[j]

    def backward_of_groups(
        x: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, dx: Floats,
        sets: Int64, rows: Int64,
    ):  # fmt: skip
        values = cuda.local.array(loads, float32)
        gradients = cuda.local.array(loads, float32)
        factor = cuda.local.array(width, float32)
        member = cuda.threadIdx.x % threads
        which = cuda.blockIdx.x * teams + cuda.threadIdx.x // threads
        near = rest = inverse = total = product = float32(0)
        elements = index(0)
        if which < sets:
            elements = index(rows * size)
            near, rest, inverse = shift[which], delta[which], inv_std[which]
        at = index(member * width)
        while at < elements:
            stop = index(min(elements, at + CHUNK * threads))
            s = p = float32(0)
            while at < stop:
                read(x, dy, gamma, which, at, stop, rows, values, gradients, factor)
                for i in range(AHEAD):
                    if at + i * step < stop:
                        for j in range(width):
                            s += gradients[i * width + j]
                            p += gradients[i * width + j] * ((values[i * width + j] - near) - rest)
                at = index(at + AHEAD * step)
            total += s
            product += p
        total, product = add(total, product)
        n = float32(rows * size)
        mean, slope = total / n, product * inverse / n * inverse
        at = index(member * width)
        while at < elements:
            if not resident:
                read(x, dy, gamma, which, at, elements, rows, values, gradients, factor)
            for i in range(AHEAD):
                if at + i * step < elements:
                    for j in range(width):
                        centred = (values[i * width + j] - near) - rest
                        factor[j] = inverse * ((gradients[i * width + j] - mean) - centred * slope)
                    store(dx, index(place(which, index(at + i * step), rows)), factor)
            at = index(at + AHEAD * step)

    return Launch(
        backward_of_groups,
        block,
        lambda sets: blocks_for(sets, teams),
        lambda sets, rows: Cost(
            8 * sets * rows * size + 12 * sets + 4 * channels, 4 * sets * rows * size, 11 * sets * rows * size
        ),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma -> dx",
    examples=[
        (17, 1, 8, True, True, uint32),
        (12, 4, 2, False, False, uint32),
        (513, 1, 32, True, True, int64),
        (9000, 1, 256, True, True, uint32),
    ],
)
def group_norm_backward_of_groups_scalar(
    channels: int, groups: int, threads: int, single: bool, scaled: bool, index: Any
) -> Launch:
    """The gradient dx of each group, by `threads` threads; one element a load."""
    return _backward(channels, groups, threads, single, scaled, index, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma -> dx",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=80,  # eight loads of four floats are under way
    examples=[
        (64, 1, 8, True, True, uint32),
        (64, 8, 2, False, False, uint32),
        (768, 1, 32, True, True, int64),
        (9000, 1, 256, True, True, uint32),
        (50176, 1, 512, True, False, uint32),
    ],
)
def group_norm_backward_of_groups_vector(
    channels: int, groups: int, threads: int, single: bool, scaled: bool, index: Any
) -> Launch:
    """The same, four elements a load. Groups of a multiple of four channels; x, dy, gamma and dx aligned to 16."""
    return _backward(channels, groups, threads, single, scaled, index, 4)
