"""Batch normalization: the statistics of a batch. The definition is in reference.py, who does what in split.py.

Every partial sum is taken about a shift of its own, and two of them are moved to one when they are merged: merging.py
says how. An outlier is far from the shift and its square large, so both are seen to:
`first_shift` is not moved by one, and squares are added AHEAD at a time, and then without a loss.

Shapes   x (..., c) in any storage (kernels/storage.py), C-contiguous, taken as (rows, c); all others (c,) float32. The
         statistics are those of the numbers as they are stored, and no less exact in 16 bits.
Traffic  x once; and partial sums, three numbers a channel for each of at most some 384 blocks.
Edges    A constant channel has variance 0 exactly. A NaN or an infinity poisons its own channel and no other.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.merging import finite, first_shift, partial_merger, two_sum, united
from kernels.batchnorm.partial_statistics import merge_statistics
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, Split, require_channels, split
from kernels.device import index_type, inlined
from kernels.errors import ShapeError
from kernels.intrinsics import fma
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage


def shifted_summer(channels: int, width: int, index: Any, storage: Storage) -> tuple[Any, Any]:
    """Device functions: a thread sums rows `at`, at + depth, ... before `end` of its `width` channels; a block stores.

    Chunk by chunk, each about a shift of its own; then the block merges. counts, shifts, sums, squares and rests are
    the block's, in shared memory; `values`, of AHEAD rows (held.py), and the chunk_ arrays, of width, the thread's own.
    Stored are three planes of `plane` numbers each, at `place`: shifts, sums, squares.
    """
    parts = Split(channels, width)
    depth = parts.depth
    held = held_rows(storage, width)
    places, take, number = held.places, held.load, held.number

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
                        take(x, index((at + i * depth) * channels + channel), values, i * places)
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
                                chunk_shift[j] += number(values, i * places, j) - number(values, 0, j)
                    for j in range(width):
                        near = number(values, 0, j) + chunk_shift[j] / m
                        chunk_shift[j] = near if finite(near) else float32(0)
                        if m == float32(AHEAD):
                            a, b = number(values, 0, j), number(values, places, j)
                            c, d = number(values, 2 * places, j), number(values, 3 * places, j)
                            chunk_shift[j] = first_shift(a, b, c, d)
                for j in range(width):
                    group_square[j] = float32(0)
                for i in range(AHEAD):
                    if at + i * depth < stop:
                        n += float32(1)
                        for j in range(width):
                            difference = number(values, i * places, j) - chunk_shift[j]
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


def _sum_shifted(channels: int, width: int, index: Any, storage: Storage) -> Launch:
    stored: Any = storage.pointer
    parts, held, bytes_each = Split(channels, width), held_rows(storage, width), storage.bytes
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    sum_rows, merge_and_store = shifted_summer(channels, width, index, storage)
    size, loads, kind = width * BLOCK, AHEAD * held.places, held.dtype

    def sum_shifted(x: stored, partial: Floats, rows: Int64, span: Int64):
        counts = cuda.shared.array(BLOCK, float32)
        shifts = cuda.shared.array(size, float32)
        sums = cuda.shared.array(size, float32)
        squares = cuda.shared.array(size, float32)
        rests = cuda.shared.array(size, float32)
        values = cuda.local.array(loads, kind)
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
        merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, rests, chunk_sum)

    return Launch(
        sum_shifted,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            bytes_each * rows * channels, 12 * blocks_for(rows, span) * channels, 4 * rows * channels
        ),
    )


@kernel(
    traffic="x -> partial",
    examples=[
        (1, uint32, FLOAT32),
        (17, uint32, FLOAT32),
        (64, uint32, FLOAT32),
        (513, int64, FLOAT32),
        (17, uint32, BFLOAT16),
        (65, uint32, FLOAT16),
    ],
)
def batchnorm_sum_shifted_scalar(channels: int, index: Any, storage: Storage) -> Launch:
    """Shift, sum and square of each block's rows, partial (3, blocks, c); one channel a thread."""
    return _sum_shifted(channels, 1, index, storage)


@kernel(
    traffic="x -> partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=96,  # in float32 at most 80
    examples=[
        (4, uint32, FLOAT32),
        (64, uint32, FLOAT32),
        (512, int64, FLOAT32),
        (64, uint32, BFLOAT16),
        (512, int64, FLOAT16),
    ],
)
def batchnorm_sum_shifted_vector(channels: int, index: Any, storage: Storage) -> Launch:
    """The same with as many channels a thread as 16 bytes hold, read at once. x aligned to 16."""
    return _sum_shifted(channels, storage.wide, index, storage)


@techniques("scalar", "vector")
def batchnorm_statistics(
    run: Runner, x: Array, eps: float, out: BatchStatistics, *, technique: str | None = None
) -> None:
    """Of the batch x (..., c), into the four (c,) arrays of `out`. Two launches on `run`.

    Raises:
        ShapeError: x has no channels or no rows, or an array of `out` another shape.
        TypeError: x is stored in no known way, or an array of `out` is not float32.
        TechniqueError: "vector" is asked for, and c is no multiple of 4 (of 8 in 16 bits) or x starts at no multiple of
            16 bytes.
    """
    rows = require_channels("batchnorm_statistics", x, **out._asdict())
    if rows == 0:
        raise ShapeError(f"batchnorm_statistics: x has shape {tuple(x.shape)}, expected at least one row")
    storage = common_storage("batchnorm_statistics", x=x)
    parts = split(run, "batchnorm_statistics", technique, storage, x)
    channels, span = parts.channels, parts.span(rows, parts.enough, rows)
    partial = run.empty((3, blocks_for(rows, span), channels))
    factory = batchnorm_sum_shifted_vector if parts.width > 1 else batchnorm_sum_shifted_scalar
    run(factory(channels, index_type(x.size), storage), x, partial, rows, span)
    merge_statistics(run, partial, out, rows, span, eps)
