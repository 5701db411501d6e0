"""Batch normalization: from partial statistics those of all rows. What partial statistics are is told in merging.py.

Whoever sums makes them: batchnorm_statistics (statistics.py), of some 384 blocks at most, or the epilogue of a
convolution, of thousands of tiles. One launch merges up to ENOUGH of them: a block of threads for 4 channels, of which
each thread takes every 64th partial. Where there are more, a launch before it merges neighbours, with a block of
threads for 32 channels of each group, until GROUPS are left. A group has found of its rows what one long block would
have, so the second launch needs to know nothing of the first.

Shapes   partial (3, blocks, c): shifts, sums, squares of `span` rows each, the last block of the rest; all others (c,).
Traffic  partial once; where there are many, 3 GROUPS numbers a channel written and read besides.
Order    Of the merges: by the number of partials alone. A channel takes part in no other's.
"""

from numba import cuda, float32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.merging import blocks_merger, blocks_walker
from kernels.batchnorm.split import BLOCK, ENOUGH, Split
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array, Cost, Float, Floats, Int64, Launch, Runner, blocks_for, kernel

FINISH_LANES = 4  # channels of a block that merges for the last time
FINISH_DEPTH = BLOCK // FINISH_LANES
LINE = 32  # channels of a block that merges many: 128 bytes of each partial
GROUPS = 128  # that it leaves


@kernel(traffic="partial -> fewer", registers=64, examples=[(1,), (17,), (64,), (513,)])
def batchnorm_merge_statistics(channels: int) -> Launch:
    """Each `fold` neighbours of the `blocks` partials become one, fewer (3, groups, c)."""
    parts = Split(channels, 1, LINE)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    walk_blocks = blocks_walker(lanes, depth)

    def merge_statistics(partial: Floats, fewer: Floats, blocks: Int64, fold: Int64, rows: Int64, span: Int64):
        counts = cuda.shared.array(BLOCK, float32)
        shifts = cuda.shared.array(BLOCK, float32)
        sums = cuda.shared.array(BLOCK, float32)
        squares = cuda.shared.array(BLOCK, float32)
        rests = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row = thread // lanes
        channel = cuda.blockIdx.y * lanes + thread % lanes
        first = cuda.blockIdx.x * fold
        end = min(blocks, first + fold)
        walk_blocks(
            partial, first, end, blocks, channels, rows, span, thread, row, channel,
            counts, shifts, sums, squares, rests,
        )  # fmt: skip
        if row == 0 and channel < channels:
            place, plane = cuda.blockIdx.x * channels + channel, cuda.gridDim.x * channels
            fewer[place] = shifts[thread]
            fewer[plane + place] = sums[thread]
            fewer[2 * plane + place] = squares[thread] + rests[thread]

    return Launch(
        merge_statistics,
        BLOCK,
        lambda blocks, fold: (blocks_for(blocks, fold), across),
        lambda blocks, fold: Cost(
            12 * blocks * channels, 12 * blocks_for(blocks, fold) * channels, 20 * blocks * channels
        ),
    )


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
        rests = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row = thread // FINISH_LANES
        channel = cuda.blockIdx.x * FINISH_LANES + thread % FINISH_LANES
        merge_blocks(
            partial, blocks, channels, rows, span, eps, thread, row, channel, counts, shifts, sums, squares, rests
        )
        if row == 0 and channel < channels:
            shift[channel] = shifts[thread]
            delta[channel] = sums[thread]
            var[channel] = squares[thread]
            inv_std[channel] = rests[thread]

    return Launch(
        finish_statistics,
        BLOCK,
        lambda channels: blocks_for(channels, FINISH_LANES),
        lambda blocks, channels: Cost(12 * blocks * channels, 16 * channels, 20 * blocks * channels),
    )


def merge_statistics(run: Runner, partial: Array, out: BatchStatistics, rows: int, span: int, eps: float) -> None:
    """Of partial statistics (3, blocks, c) those of all `rows` rows, into the four (c,) arrays of `out`.

    A block has found shift, sum and square of `span` rows, the last of the rest; so there are ceil(rows / span). One
    launch on `run`, two where there are more than ENOUGH.

    Raises:
        ShapeError: There are no rows, `partial` is not of that shape, or an array of `out` not (c,).
    """
    operation = "merge_statistics"
    if rows < 1 or span < 1:
        raise ShapeError(f"{operation}: {rows} rows, {span} of each block, expected at least one of each")
    blocks, channels = blocks_for(rows, span), int(partial.shape[-1])
    require_shape(operation, "partial", partial, (3, blocks, channels))
    for name, array in out._asdict().items():
        require_shape(operation, name, array, (channels,))
    if blocks > ENOUGH:
        fold = blocks_for(blocks, GROUPS)
        fewer = run.empty((3, blocks_for(blocks, fold), channels))
        run(batchnorm_merge_statistics(channels), partial, fewer, blocks, fold, rows, span)
        partial, blocks, span = fewer, fewer.shape[1], fold * span
    run(batchnorm_finish_statistics(), partial, *out, blocks, channels, rows, span, eps)
