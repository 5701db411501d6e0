"""Batch normalization backward: from partial sums of gradients those of all rows.

Whoever sums makes them: the first pass of backward (gradient_sums.py), some 384 blocks at most, or the epilogue of a
convolution's input gradient, a block for each of thousands of tiles. They are added in one launch or two, as
partial_statistics.py merges statistics.

Shapes   partial (2, blocks, c): sum g and sum g * centred of any division of the rows; all others (c,).
Traffic  partial once; where there are many, 2 GROUPS numbers a channel written and read besides.
Order    Of the sums: by the number of partials alone. A channel takes part in no other's.
"""

from numba import cuda, float32

from kernels.batch_statistics import GradientSums
from kernels.batchnorm.adding import blocks_adder, blocks_walker
from kernels.batchnorm.partial_statistics import FINISH_DEPTH, FINISH_LANES, GROUPS, LINE
from kernels.batchnorm.split import BLOCK, ENOUGH, Split
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel


@kernel(traffic="partial -> fewer", registers=40, examples=[(1,), (17,), (64,), (513,)])
def batchnorm_merge_gradients(channels: int) -> Launch:
    """Each `fold` neighbours of the `blocks` partials become one, fewer (2, groups, c)."""
    parts = Split(channels, 1, LINE)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    walk_blocks = blocks_walker(lanes, depth)

    def merge_gradients(partial: Floats, fewer: Floats, blocks: Int64, fold: Int64):
        sums = cuda.shared.array(BLOCK, float32)
        products = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row = thread // lanes
        channel = cuda.blockIdx.y * lanes + thread % lanes
        first = cuda.blockIdx.x * fold
        end = min(blocks, first + fold)
        walk_blocks(partial, first, end, blocks, channels, thread, row, channel, sums, products)
        if row == 0 and channel < channels:
            place, plane = cuda.blockIdx.x * channels + channel, cuda.gridDim.x * channels
            fewer[place] = sums[thread]
            fewer[plane + place] = products[thread]

    return Launch(
        merge_gradients,
        BLOCK,
        lambda blocks, fold: (blocks_for(blocks, fold), across),
        lambda blocks, fold: Cost(
            8 * blocks * channels, 8 * blocks_for(blocks, fold) * channels, 2 * blocks * channels
        ),
    )


@kernel(traffic="partial, inv_std -> dgamma, dbeta, mean_g, slope", registers=40, examples=[()])
def batchnorm_finish_gradients() -> Launch:
    """From what `blocks` blocks found: dgamma, dbeta and what dx subtracts, mean(g) and slope * centred."""
    add_blocks = blocks_adder(FINISH_LANES, FINISH_DEPTH)

    def finish_gradients(
        partial: Floats, inv_std: Floats, dgamma: Floats, dbeta: Floats, mean_g: Floats, slope: Floats,
        blocks: Int64, channels: Int64, rows: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(BLOCK, float32)
        products = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row = thread // FINISH_LANES
        channel = cuda.blockIdx.x * FINISH_LANES + thread % FINISH_LANES
        add_blocks(partial, inv_std, dgamma, dbeta, True, blocks, channels, rows, thread, row, channel, sums, products)
        if row == 0 and channel < channels:
            mean_g[channel] = sums[thread]
            slope[channel] = products[thread]

    return Launch(
        finish_gradients,
        BLOCK,
        lambda channels: blocks_for(channels, FINISH_LANES),
        lambda blocks, channels: Cost(8 * blocks * channels + 4 * channels, 16 * channels, 2 * blocks * channels),
    )


def merge_gradient_sums(run: Runner, partial: Array, inv_std: Array, sums: GradientSums, rows: int) -> None:
    """Of partial sums (2, blocks, c), of g and of g * centred, those of all `rows` rows, into the arrays of `sums`.

    How the rows are shared out among the blocks does not matter; of none, the sums are 0. dgamma and dbeta may be None.
    One launch on `run`, two where there are more than ENOUGH blocks.

    Raises:
        ShapeError: `partial` is not of that shape, or another array not (c,).
    """
    operation = "merge_gradient_sums"
    if partial.ndim != 3 or partial.shape[0] != 2:
        raise ShapeError(f"{operation}: partial has shape {tuple(partial.shape)}, expected (2, blocks, c)")
    blocks, channels = (int(size) for size in partial.shape[1:])
    for name, array in {"inv_std": inv_std, **sums._asdict()}.items():
        if array is not None:
            require_shape(operation, name, array, (channels,))
    if blocks > ENOUGH:
        fold = blocks_for(blocks, GROUPS)
        fewer = run.empty((2, blocks_for(blocks, fold), channels))
        run(batchnorm_merge_gradients(channels), partial, fewer, blocks, fold)
        partial, blocks = fewer, fewer.shape[1]
    dgamma, dbeta = (run.empty((channels,)) if array is None else array for array in (sums.dgamma, sums.dbeta))
    given = partial, inv_std, dgamma, dbeta, sums.mean_g, sums.slope
    run(batchnorm_finish_gradients(), *given, blocks, channels, rows)
