"""Batch normalization: the statistics of a batch. The definition is in reference.py, who does what in split.py.

A sum of squares is exact only near what it is taken about, so every partial sum has a shift of its own: a set of n
elements is known by

    shift, sum = sum of (x - shift), square = sum of (x - shift)²

Two sets become one by moving both to a shift near their common mean, with D = old shift - new shift:

    sum' = sum + n D        square' = square + D (2 sum + n D)

which loses nothing that matters, for the sums of both are small there. (T. Chan, G. Golub, R. LeVeque, "Algorithms for
computing the sample variance", 1983, merge means and squares about them; here the mean stays a float32 number and the
remainder a sum, so it is never rounded to the size of the mean.) A thread's first shift is the mean of the first AHEAD
of its CHUNK rows: wherever outliers are, squares are at most CHUNK / AHEAD times what they would be about the mean.

Shapes   x (..., c) float32, C-contiguous, taken as (rows, c); all others (c,).
Traffic  x once; and partial sums, three numbers a channel for each of at most some 384 blocks.
Edges    A constant channel has variance 0 exactly. A NaN or an infinity poisons its own channel and no other.
"""

import math
from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.split import (
    AHEAD,
    BLOCK,
    CHUNK,
    ENOUGH,
    Split,
    largest_power_below,
    loader,
    require_channels,
    split,
    storer,
)
from kernels.device import index_type, inlined
from kernels.errors import ShapeError
from kernels.launch import Array, Cost, Float, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques

FINISH_LANES = 4  # channels of a block that adds up what those blocks found
FINISH_DEPTH = BLOCK // FINISH_LANES


@inlined
def finite(x):
    """Neither NaN nor infinite."""
    return x - x == float32(0)


@inlined
def moved(n, shift, total, square, to):
    """The sums of n elements about `shift` as sums about `to`."""
    distance = shift - to
    return total + n * distance, square + distance * (total + total + n * distance)


@inlined
def merged(n1, shift1, sum1, square1, n2, shift2, sum2, square2):
    """(n, shift, sum, square) of two sets together; the first has at least one element."""
    n = n1 + n2
    near = shift1 + (sum1 + (sum2 + n2 * (shift2 - shift1))) / n
    shift = near if finite(near) else shift1
    a, b = moved(n1, shift1, sum1, square1, shift)
    c, d = moved(n2, shift2, sum2, square2, shift)
    return n, shift, a + c, b + d


def block_merger(width: int, lanes: int, depth: int) -> Any:
    """A device function that merges what the threads of a block hold in shared memory, as a tree down the rows.

    Thread `row` * lanes + lane holds counts[thread] and, of channel j of its group, the others at [j * BLOCK + thread].
    What the whole block found is left with the threads of row 0.
    """
    start = largest_power_below(depth)

    @inlined
    def merge_block(thread, row, counts, shifts, sums, squares):
        stride = start
        while stride > 0:
            cuda.syncthreads()
            other = thread + stride * lanes
            if row < stride and row + stride < depth and counts[other] > float32(0):
                n1, n2 = counts[thread], counts[other]
                for j in range(width):
                    a, b = j * BLOCK + thread, j * BLOCK + other
                    _, shift, total, square = merged(
                        n1, shifts[a], sums[a], squares[a], n2, shifts[b], sums[b], squares[b]
                    )
                    shifts[a] = shift
                    sums[a] = total
                    squares[a] = square
                counts[thread] = n1 + n2
            stride //= 2

    return merge_block


def shifted_summer(channels: int, width: int, index: Any) -> tuple[Any, Any]:
    """Device functions: a thread sums rows `at`, at + depth, ... before `end` of its `width` channels; a block stores.

    Chunk by chunk, each about a shift of its own; then the block merges. counts, shifts, sums and squares are the
    block's, in shared memory; `values`, of AHEAD * width, and the chunk_ arrays, of width, the thread's own. Stored are
    three planes of `plane` numbers each, at `place`: shifts, sums, squares.
    """
    parts = Split(channels, width)
    depth = parts.depth
    load = loader(width)

    @inlined
    def sum_rows(
        x, at, end, channel, thread, counts, shifts, sums, squares, values, chunk_shift, chunk_sum, chunk_square
    ):
        counts[thread] = float32(0)
        while at < end:
            stop = index(min(end, at + CHUNK * depth))
            n = float32(0)
            while at < stop:
                for i in range(AHEAD):
                    if at + i * depth < stop:
                        load(x, index((at + i * depth) * channels + channel), values, i * width)
                if n == float32(0):
                    m = float32(1)
                    for j in range(width):
                        chunk_shift[j] = float32(0)
                        chunk_sum[j] = float32(0)
                        chunk_square[j] = float32(0)
                    for i in range(1, AHEAD):
                        if at + i * depth < stop:
                            m += float32(1)
                            for j in range(width):
                                chunk_shift[j] += values[i * width + j] - values[j]
                    for j in range(width):
                        near = values[j] + chunk_shift[j] / m
                        chunk_shift[j] = near if finite(near) else float32(0)
                for i in range(AHEAD):
                    if at + i * depth < stop:
                        n += float32(1)
                        for j in range(width):
                            difference = values[i * width + j] - chunk_shift[j]
                            chunk_sum[j] += difference
                            chunk_square[j] += difference * difference
                at = index(at + AHEAD * depth)
            before = counts[thread]
            for j in range(width):
                a = j * BLOCK + thread
                if before > float32(0):
                    _, shift, total, square = merged(
                        before, shifts[a], sums[a], squares[a], n, chunk_shift[j], chunk_sum[j], chunk_square[j]
                    )
                    shifts[a] = shift
                    sums[a] = total
                    squares[a] = square
                else:
                    shifts[a] = chunk_shift[j]
                    sums[a] = chunk_sum[j]
                    squares[a] = chunk_square[j]
            counts[thread] = before + n

    return sum_rows, partial_merger(parts, index)


def partial_merger(parts: Split, index: Any) -> Any:
    """A device function: what the threads of a block have summed is merged and stored, as `shifted_summer` says."""
    channels, width = parts.channels, parts.width
    store, merge_block = storer(width), block_merger(width, parts.lanes, parts.depth)

    @inlined
    def merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, values):
        merge_block(thread, row, counts, shifts, sums, squares)
        if row == 0 and channel < channels:
            for j in range(width):
                values[j] = shifts[j * BLOCK + thread]
            store(partial, index(place), values)
            for j in range(width):
                values[j] = sums[j * BLOCK + thread]
            store(partial, index(plane + place), values)
            for j in range(width):
                values[j] = squares[j * BLOCK + thread]
            store(partial, index(2 * plane + place), values)

    return merge_and_store


def blocks_merger(lanes: int, depth: int) -> Any:
    """A device function that merges what `blocks` blocks have stored of `span` rows each (the last of the rest).

    `depth` rows of `lanes` threads merge every depth-th block of a channel each, and then these as a tree. The thread
    of row 0 then has its channel's shift in `shifts`, and in `sums` and `squares` delta and variance.
    """
    merge_block = block_merger(1, lanes, depth)

    @inlined
    def merge_blocks(partial, blocks, channels, rows, span, thread, row, channel, counts, shifts, sums, squares):
        n1 = k1 = s1 = q1 = float32(0)
        if row < depth and channel < channels:
            for block in range(row, blocks, depth):
                n2 = float32(min(span, rows - block * span))
                k2 = partial[block * channels + channel]
                s2 = partial[(blocks + block) * channels + channel]
                q2 = partial[(2 * blocks + block) * channels + channel]
                if n1 == float32(0):
                    n1, k1, s1, q1 = n2, k2, s2, q2
                else:
                    n1, k1, s1, q1 = merged(n1, k1, s1, q1, n2, k2, s2, q2)
        counts[thread] = n1
        shifts[thread] = k1
        sums[thread] = s1
        squares[thread] = q1
        merge_block(thread, row, counts, shifts, sums, squares)
        if row == 0 and channel < channels:
            n = float32(rows)
            rest = sums[thread] / n
            # The shift is the mean but for its rounding, so what is taken off is small.
            variance = (squares[thread] - sums[thread] * rest) / n
            sums[thread] = rest
            squares[thread] = float32(0) if variance < float32(0) else variance  # NaN passes

    return merge_blocks


def _sum_shifted(channels: int, width: int, index: Any) -> Launch:
    parts = Split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    sum_rows, merge_and_store = shifted_summer(channels, width, index)
    size, loads = width * BLOCK, AHEAD * width

    def sum_shifted(x: Floats, partial: Floats, rows: Int64, span: Int64):
        counts = cuda.shared.array(BLOCK, float32)
        shifts = cuda.shared.array(size, float32)
        sums = cuda.shared.array(size, float32)
        squares = cuda.shared.array(size, float32)
        values = cuda.local.array(loads, float32)
        chunk_shift = cuda.local.array(width, float32)
        chunk_sum = cuda.local.array(width, float32)
        chunk_square = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row = thread // lanes
        channel = (cuda.blockIdx.y * lanes + thread % lanes) * width
        at = index(cuda.blockIdx.x * span + row)
        end = index(min(rows, (cuda.blockIdx.x + 1) * span))
        if row >= depth or channel >= channels:
            end = index(0)
        sum_rows(
            x, at, end, channel, thread, counts, shifts, sums, squares, values, chunk_shift, chunk_sum, chunk_square
        )
        place, plane = cuda.blockIdx.x * channels + channel, cuda.gridDim.x * channels
        merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, values)

    return Launch(
        sum_shifted,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(4 * rows * channels, 12 * blocks_for(rows, span) * channels, 4 * rows * channels),
    )


@kernel(traffic="x -> partial", examples=[(1, uint32), (17, uint32), (64, uint32), (513, int64)])
def batchnorm_sum_shifted_scalar(channels: int, index: Any) -> Launch:
    """Shift, sum and square of each block's rows, partial (3, blocks, c); one channel a thread."""
    return _sum_shifted(channels, 1, index)


@kernel(
    traffic="x -> partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=80,
    examples=[(4, uint32), (64, uint32), (512, int64)],
)
def batchnorm_sum_shifted_vector(channels: int, index: Any) -> Launch:
    """The same with four channels a thread, read as 16 bytes: a quarter of the instructions. x aligned to 16."""
    return _sum_shifted(channels, 4, index)


@kernel(traffic="partial -> shift, delta, var, inv_std", examples=[()])
def batchnorm_finish_statistics() -> Launch:
    """From what `blocks` blocks found of `span` rows each (the last of the rest): the statistics of all rows."""
    merge_blocks = blocks_merger(FINISH_LANES, FINISH_DEPTH)

    def finish_statistics(
        partial: Floats, shift: Floats, delta: Floats, var: Floats, inv_std: Floats,
        blocks: Int64, channels: Int64, rows: Int64, span: Int64, eps: Float,
    ):  # fmt: skip
        counts = cuda.shared.array(BLOCK, float32)
        shifts = cuda.shared.array(BLOCK, float32)
        sums = cuda.shared.array(BLOCK, float32)
        squares = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row = thread // FINISH_LANES
        channel = cuda.blockIdx.x * FINISH_LANES + thread % FINISH_LANES
        merge_blocks(partial, blocks, channels, rows, span, thread, row, channel, counts, shifts, sums, squares)
        if row == 0 and channel < channels:
            variance = squares[thread]
            shift[channel] = shifts[thread]
            delta[channel] = sums[thread]
            var[channel] = variance
            inv_std[channel] = float32(1) / math.sqrt(variance + eps)

    return Launch(
        finish_statistics,
        BLOCK,
        lambda channels: blocks_for(channels, FINISH_LANES),
        lambda blocks, channels: Cost(12 * blocks * channels, 16 * channels, 20 * blocks * channels),
    )


@techniques("scalar", "vector")
def batchnorm_statistics(
    run: Runner, x: Array, eps: float, out: BatchStatistics, *, technique: str | None = None
) -> None:
    """Of the batch x (..., c), into the four (c,) arrays of `out`. Two launches on `run`.

    Raises:
        ShapeError: x has no channels or no rows, or an array of `out` another shape.
        TechniqueError: "vector" is asked for, and c is no multiple of 4 or x starts at no multiple of 16 bytes.
    """
    rows = require_channels("batchnorm_statistics", x, **out._asdict())
    if rows == 0:
        raise ShapeError(f"batchnorm_statistics: x has shape {tuple(x.shape)}, expected at least one row")
    parts = split(run, "batchnorm_statistics", technique, x)
    channels, span = parts.channels, parts.span(rows, ENOUGH, rows)
    blocks = blocks_for(rows, span)
    partial = run.empty((3, blocks, channels))
    factory = batchnorm_sum_shifted_vector if parts.width == 4 else batchnorm_sum_shifted_scalar
    run(factory(channels, index_type(x.size)), x, partial, rows, span)
    run(batchnorm_finish_statistics(), partial, *out, blocks, channels, rows, span, eps)
