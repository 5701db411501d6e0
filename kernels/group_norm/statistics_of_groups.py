"""Group normalization: statistics by groups, one or more threads having a group of a sample, as layout.py says.

That serves layer normalization of a matrix, where a group is a row, and samples of few rows. One launch.

Shapes   x (n, rows, c) float32, C-contiguous; statistics (n, groups).
Traffic  x once.
Edges    A constant group has variance 0 exactly. A NaN or an infinity poisons its own group and no other.
"""

import math
from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batchnorm.merging import block_merger, finite, merged
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, loader
from kernels.device import WARP, inlined
from kernels.group_norm.layout import placer
from kernels.launch import Cost, Float, Floats, Int64, Launch, blocks_for, kernel


@inlined
def joined(n1, shift1, sum1, square1, n2, shift2, sum2, square2):
    """`merged`, of which the first set may be empty; the second is not."""
    if n1 == float32(0):
        return n2, shift2, sum2, square2
    return merged(n1, shift1, sum1, square1, n2, shift2, sum2, square2)


@inlined
def finished(n, total, square, eps):
    """(delta, var, inv_std) of n elements from their sums about a shift near the mean."""
    rest = total / n
    variance = (square - total * rest) / n
    variance = float32(0) if variance < float32(0) else variance  # NaN passes
    return rest, variance, float32(1) / math.sqrt(variance + eps)


def set_merger(threads: int) -> Any:
    """A device function: of `threads` neighbouring threads that each know (n, shift, sum, square).

    `threads` is a power of two, and a warp at most, or else all of a block.

    What they found together is left with the first. Only threads behind the last that found anything may have n = 0.
    """
    merge_block = block_merger(1, 1, threads)

    @inlined
    def merge_lanes(n, shift, total, square):
        stride = threads // 2
        while stride > 0:
            n2 = cuda.shfl_xor_sync(0xFFFFFFFF, n, stride)
            k2 = cuda.shfl_xor_sync(0xFFFFFFFF, shift, stride)
            s2 = cuda.shfl_xor_sync(0xFFFFFFFF, total, stride)
            q2 = cuda.shfl_xor_sync(0xFFFFFFFF, square, stride)
            if n > float32(0) and n2 > float32(0):
                n, shift, total, square = merged(n, shift, total, square, n2, k2, s2, q2)
            stride //= 2
        return n, shift, total, square

    @inlined
    def merge_threads(n, shift, total, square):
        counts = cuda.shared.array(threads, float32)
        shifts = cuda.shared.array(threads, float32)
        sums = cuda.shared.array(threads, float32)
        squares = cuda.shared.array(threads, float32)
        rests = cuda.shared.array(threads, float32)
        thread = cuda.threadIdx.x
        counts[thread] = n
        shifts[thread] = shift
        sums[thread] = total
        squares[thread] = square
        rests[thread] = float32(0)
        merge_block(thread, thread, counts, shifts, sums, squares, rests)
        return counts[thread], shifts[thread], sums[thread], squares[thread] + rests[thread]

    return merge_lanes if threads <= WARP else merge_threads


def _statistics(channels: int, groups: int, threads: int, single: bool, index: Any, width: int) -> Launch:
    """`threads` threads sum a group of a sample, chunk by chunk, each about a shift of its own; then they merge.

    Each sample is a `single` row, or there are several.
    """
    size = channels // groups
    block = max(threads, BLOCK)
    teams, step, loads = block // threads, threads * width, AHEAD * width
    load, merge, place = loader(width), set_merger(threads), placer(channels, groups, single)

    def statistics_of_groups(
        x: Floats, shift: Floats, delta: Floats, var: Floats, inv_std: Floats, sets: Int64, rows: Int64, eps: Float
    ):
        values = cuda.local.array(loads, float32)
        member = cuda.threadIdx.x % threads
        which = cuda.blockIdx.x * teams + cuda.threadIdx.x // threads
        elements = rows * size if which < sets else 0
        n1 = k1 = s1 = q1 = float32(0)
        at = index(member * width)
        while at < elements:
            stop = index(min(elements, at + CHUNK * threads))
            n = k = s = q = float32(0)
            while at < stop:
                for i in range(AHEAD):
                    if at + i * step < stop:
                        load(x, index(place(which, index(at + i * step), rows)), values, i * width)
                if n == float32(0):
                    for i in range(AHEAD):
                        if at + i * step < stop:
                            n += float32(width)
                            for j in range(width):
                                k += values[i * width + j] - values[0]
                    k = values[0] + k / n
                    k = k if finite(k) else float32(0)
                    n = float32(0)
                for i in range(AHEAD):
                    if at + i * step < stop:
                        n += float32(width)
                        for j in range(width):
                            difference = values[i * width + j] - k
                            s += difference
                            q += difference * difference
                at = index(at + AHEAD * step)
            n1, k1, s1, q1 = joined(n1, k1, s1, q1, n, k, s, q)
        n1, k1, s1, q1 = merge(n1, k1, s1, q1)
        if member == 0 and which < sets:
            rest, variance, inverse = finished(n1, s1, q1, eps)
            shift[which] = k1
            delta[which] = rest
            var[which] = variance
            inv_std[which] = inverse

    return Launch(
        statistics_of_groups,
        block,
        lambda sets: blocks_for(sets, teams),
        lambda sets, rows: Cost(4 * sets * rows * size, 16 * sets, 4 * sets * rows * size),
    )


@kernel(
    traffic="x -> shift, delta, var, inv_std",
    examples=[
        (17, 1, 8, True, uint32),
        (12, 4, 2, False, uint32),
        (513, 1, 32, True, int64),
        (9000, 1, 256, True, uint32),
    ],
)
def group_norm_statistics_of_groups_scalar(
    channels: int, groups: int, threads: int, single: bool, index: Any
) -> Launch:
    """Of each group, by `threads` threads; one element a load."""
    return _statistics(channels, groups, threads, single, index, 1)


@kernel(
    traffic="x -> shift, delta, var, inv_std",
    instructions=("LDG.E.128",),
    examples=[
        (64, 1, 8, True, uint32),
        (64, 8, 2, False, uint32),
        (768, 1, 32, True, int64),
        (50176, 1, 512, True, uint32),
    ],
)
def group_norm_statistics_of_groups_vector(
    channels: int, groups: int, threads: int, single: bool, index: Any
) -> Launch:
    """The same, four elements a load. Groups of a multiple of four channels, x aligned to 16."""
    return _statistics(channels, groups, threads, single, index, 4)
