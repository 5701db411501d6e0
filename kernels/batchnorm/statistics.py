"""Batch normalization: the statistics of a batch. The definition is in reference.py, who does what in split.py.

Every partial sum is taken about a shift of its own, and two of them are moved to one when they are merged: merging.py
says how. An outlier is far from the shift and its square large, so both are seen to:
`first_shift` is not moved by one, and squares are added AHEAD at a time, and then without a loss.

Shapes   x (..., c) float32, C-contiguous, taken as (rows, c); all others (c,).
Traffic  x once; and partial sums, three numbers a channel for each of at most some 384 blocks.
Edges    A constant channel has variance 0 exactly. A NaN or an infinity poisons its own channel and no other.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.merging import finite, first_shift, partial_merger, two_sum, united
from kernels.batchnorm.partial_statistics import merge_statistics
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, ENOUGH, Split, loader, require_channels, split
from kernels.device import index_type, inlined
from kernels.errors import ShapeError
from kernels.intrinsics import fma
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques


def shifted_summer(channels: int, width: int, index: Any) -> tuple[Any, Any]:
    """Device functions: a thread sums rows `at`, at + depth, ... before `end` of its `width` channels; a block stores.

    Chunk by chunk, each about a shift of its own; then the block merges. counts, shifts, sums, squares and rests are
    the block's, in shared memory; `values`, of AHEAD * width, and the chunk_ arrays, of width, the thread's own. Stored
    are three planes of `plane` numbers each, at `place`: shifts, sums, squares.
    """
    parts = Split(channels, width)
    depth = parts.depth
    load = loader(width)

    @inlined
    def sum_rows(
        x, at, end, channel, thread, counts, shifts, sums, squares, rests, values, chunk_shift, chunk_sum, chunk_square
    ):
        group_square = cuda.local.array(width, float32)
        counts[thread] = float32(0)
        for j in range(width):
            rests[j * BLOCK + thread] = float32(0)
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
                        if m == float32(AHEAD):
                            a, b, c = values[j], values[width + j], values[2 * width + j]
                            chunk_shift[j] = first_shift(a, b, c, values[3 * width + j])
                for j in range(width):
                    group_square[j] = float32(0)
                for i in range(AHEAD):
                    if at + i * depth < stop:
                        n += float32(1)
                        for j in range(width):
                            difference = values[i * width + j] - chunk_shift[j]
                            chunk_sum[j] += difference
                            group_square[j] = fma(difference, difference, group_square[j])
                for j in range(width):
                    square, lost = two_sum(chunk_square[j], group_square[j])
                    chunk_square[j] = square
                    rests[j * BLOCK + thread] += lost
                at = index(at + AHEAD * depth)
            before = counts[thread]
            for j in range(width):
                a = j * BLOCK + thread
                if before > float32(0):
                    _, shift, total, square, rest = united(
                        before, shifts[a], sums[a], squares[a], rests[a],
                        n, chunk_shift[j], chunk_sum[j], chunk_square[j], float32(0),
                    )  # fmt: skip
                    shifts[a] = shift
                    sums[a] = total
                    squares[a] = square
                    rests[a] = rest
                else:
                    shifts[a] = chunk_shift[j]
                    sums[a] = chunk_sum[j]
                    squares[a] = chunk_square[j]
            counts[thread] = before + n

    return sum_rows, partial_merger(parts, index)


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
        rests = cuda.shared.array(size, float32)
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
            x, at, end, channel, thread, counts, shifts, sums, squares, rests,
            values, chunk_shift, chunk_sum, chunk_square,
        )  # fmt: skip
        place, plane = cuda.blockIdx.x * channels + channel, cuda.gridDim.x * channels
        merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, rests, values)

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
    partial = run.empty((3, blocks_for(rows, span), channels))
    factory = batchnorm_sum_shifted_vector if parts.width == 4 else batchnorm_sum_shifted_scalar
    run(factory(channels, index_type(x.size)), x, partial, rows, span)
    merge_statistics(run, partial, out, rows, span, eps)
