"""Group normalization: the statistics of each sample's groups. The definition is in reference.py.

How shifted sums are made and merged is told in kernels/batchnorm/statistics.py, whose device functions serve here.

By rows (see layout.py), two launches: the shifted sums of each piece of rows and channel, and their merging over the
pieces and the channels of a group. By groups, one.

Shapes   x (n, ..., c) float32, C-contiguous, taken as (n, rows, c); shift, delta, var, inv_std (n, groups).
Traffic  x once; by rows three numbers more for each channel of a piece, written and read.
Edges    A constant group has variance 0 exactly. A NaN or an infinity poisons its own group and no other.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.merging import block_merger, merged
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, ENOUGH, Split, largest_power_below
from kernels.batchnorm.statistics import shifted_summer
from kernels.device import index_type
from kernels.errors import ShapeError
from kernels.group_norm.layout import (
    Team,
    View,
    piece_of,
    require_statistics,
    threads_of,
    view,
    width_of,
    within_samples,
)
from kernels.group_norm.statistics_of_groups import (
    finished,
    group_norm_statistics_of_groups_scalar,
    group_norm_statistics_of_groups_vector,
    joined,
)
from kernels.launch import Array, Cost, Float, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import FLOAT32


def _sum_shifted(channels: int, index: Any, width: int) -> Launch:
    parts = Split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    sum_rows, merge_and_store = shifted_summer(channels, width, index, FLOAT32)
    piece = piece_of(across)
    size, loads = width * BLOCK, AHEAD * width

    def sum_shifted(x: Floats, partial: Floats, sections: Int64, section: Int64, per: Int64, span: Int64):
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
        part, _, first, last = piece(section, per, span)
        channel = (part * lanes + thread % lanes) * width
        at, end = index(first + row), index(last)
        if row >= depth or channel >= channels:
            end = index(0)
        sum_rows(
            x, at, end, channel, thread, counts, shifts, sums, squares, rests,
            values, chunk_shift, chunk_sum, chunk_square,
        )  # fmt: skip
        place, plane = cuda.blockIdx.x // across * channels + channel, sections * per * channels
        merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, rests, values)

    return Launch(
        sum_shifted,
        BLOCK,
        lambda sections, per: sections * per * across,
        lambda sections, section, per: Cost(
            4 * sections * section * channels, 12 * sections * per * channels, 4 * sections * section * channels
        ),
    )


@kernel(traffic="x -> partial", examples=[(1, uint32), (17, uint32), (64, uint32), (513, int64)])
def group_norm_sum_shifted_scalar(channels: int, index: Any) -> Launch:
    """Shift, sum and square of each piece's rows, partial (3, pieces, c); one channel a thread."""
    return _sum_shifted(channels, index, 1)


@kernel(
    traffic="x -> partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=80,
    examples=[(4, uint32), (64, uint32), (512, int64)],
)
def group_norm_sum_shifted_vector(channels: int, index: Any) -> Launch:
    """The same with four channels a thread, read as 16 bytes: a quarter of the instructions. x aligned to 16."""
    return _sum_shifted(channels, index, 4)


@kernel(
    traffic="partial -> shift, delta, var, inv_std",
    examples=[(3, 3), (64, 8), (17, 1), (512, 2)],
)
def group_norm_finish_statistics(channels: int, groups: int) -> Launch:
    """From what each sample's `per` pieces of `span` rows (the last of the rest) found: the statistics of its groups.

    A warp's lanes read neighbouring channels, of several groups where those are small.
    """
    team = Team(channels // groups)
    size, lanes, depth, together, threads = team.size, team.lanes, team.depth, team.together, team.threads
    merge_block, side, start = block_merger(1, lanes, depth), team.side, largest_power_below(together)

    def finish_statistics(
        partial: Floats, shift: Floats, delta: Floats, var: Floats, inv_std: Floats,
        sets: Int64, rows: Int64, per: Int64, span: Int64, eps: Float,
    ):  # fmt: skip
        counts = cuda.shared.array(BLOCK, float32)
        shifts = cuda.shared.array(BLOCK, float32)
        sums = cuda.shared.array(BLOCK, float32)
        squares = cuda.shared.array(BLOCK, float32)
        rests = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row, lane = thread // lanes, thread % lanes
        which, place = cuda.blockIdx.x * side + lane // together, lane % together
        n1 = k1 = s1 = q1 = float32(0)
        if row < depth and which < sets:
            plane = sets // groups * per * channels
            start_of_group = which // groups * per * channels + which % groups * size
            for begin in range(row * together + place, per * size, CHUNK * threads):
                n2 = k2 = s2 = q2 = float32(0)
                for element in range(begin, min(per * size, begin + CHUNK * threads), threads):
                    piece = element // size
                    at = start_of_group + piece * channels + element % size
                    n = float32(min(span, rows - piece * span))
                    k, s, q = partial[at], partial[plane + at], partial[2 * plane + at]
                    n2, k2, s2, q2 = joined(n2, k2, s2, q2, n, k, s, q)
                n1, k1, s1, q1 = joined(n1, k1, s1, q1, n2, k2, s2, q2)
        counts[thread] = n1
        shifts[thread] = k1
        sums[thread] = s1
        squares[thread] = q1
        rests[thread] = float32(0)
        merge_block(thread, row, counts, shifts, sums, squares, rests)
        n1, k1, s1, q1 = counts[thread], shifts[thread], sums[thread], squares[thread] + rests[thread]
        stride = start
        while stride > 0:
            n2 = cuda.shfl_down_sync(0xFFFFFFFF, n1, stride)
            k2 = cuda.shfl_down_sync(0xFFFFFFFF, k1, stride)
            s2 = cuda.shfl_down_sync(0xFFFFFFFF, s1, stride)
            q2 = cuda.shfl_down_sync(0xFFFFFFFF, q1, stride)
            if row == 0 and which < sets and place < stride and place + stride < together:
                n1, k1, s1, q1 = merged(n1, k1, s1, q1, n2, k2, s2, q2)
            stride //= 2
        if row == 0 and place == 0 and which < sets:
            rest, variance, inverse = finished(float32(rows * size), s1, q1, eps)
            shift[which] = k1
            delta[which] = rest
            var[which] = variance
            inv_std[which] = inverse

    return Launch(
        finish_statistics,
        BLOCK,
        lambda sets: blocks_for(sets, side),
        lambda sets, per: Cost(12 * sets * size * per, 16 * sets, 20 * sets * size * per),
    )


@techniques("scalar", "vector")
def group_norm_statistics(
    run: Runner, x: Array, groups: int, eps: float, out: BatchStatistics, *, technique: str | None = None
) -> None:
    """Of each sample's groups of x (n, ..., c), into the four (n, groups) arrays of `out`.

    One launch on `run`, or two. The vector technique takes an x that starts at a multiple of 16 bytes, with channels in
    multiples of 4, by groups those of a group. Nothing here changes from step to step but the arrays.

    Raises:
        ShapeError: x has no channels or samples without rows, groups does not divide the channels, or an array of `out`
            has another shape.
        TechniqueError: "vector" is asked for, and cannot take x.
    """
    operation = "group_norm_statistics"
    seen = view(operation, x, groups)
    require_statistics(operation, seen, out)
    if seen.rows == 0:
        raise ShapeError(f"{operation}: x has shape {tuple(x.shape)}, expected at least one row in a sample")
    width = width_of(run, operation, technique, seen, seen.by_groups, x=x)
    (_of_whole_groups if seen.by_groups else _of_pieces)(run, x, seen, eps, out, width)


def _of_whole_groups(run: Runner, x: Array, seen: View, eps: float, out: BatchStatistics, width: int) -> None:
    threads = threads_of(seen.rows * seen.size, width)
    factory = group_norm_statistics_of_groups_vector if width == 4 else group_norm_statistics_of_groups_scalar
    chosen = factory(seen.channels, seen.groups, threads, seen.rows == 1, index_type(x.size))
    run(chosen, x, *out, seen.n * seen.groups, seen.rows, eps)


def _of_pieces(run: Runner, x: Array, seen: View, eps: float, out: BatchStatistics, width: int) -> None:
    pieces = within_samples(seen, Split(seen.channels, width), ENOUGH, seen.rows)
    partial = run.empty((3, pieces.blocks, seen.channels))
    factory = group_norm_sum_shifted_vector if width == 4 else group_norm_sum_shifted_scalar
    run(factory(seen.channels, index_type(x.size)), x, partial, *pieces)
    chosen = group_norm_finish_statistics(seen.channels, seen.groups)
    run(chosen, partial, *out, seen.n * seen.groups, seen.rows, pieces.per, pieces.span, eps)
