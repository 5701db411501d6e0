"""Batch normalization: the running estimates, as statistics and moved towards a batch's. Defined in reference.py.

Shapes   all (c,) float32, C-contiguous.
Traffic  every array once.
"""

import math
from numbers import Real

from numba import cuda, float32, int64

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.split import BLOCK, require_channels
from kernels.errors import require_shape
from kernels.launch import Array, Cost, Float, Floats, Int64, Launch, Runner, UInt32s, blocks_for, kernel


@kernel(traffic="mean, running_var -> shift, delta, var, inv_std", registers=32, examples=[()])
def batchnorm_read_running() -> Launch:
    """The running estimates as statistics; one channel a thread."""

    def read_running(
        mean: Floats, running_var: Floats, shift: Floats, delta: Floats, var: Floats, inv_std: Floats,
        channels: Int64, eps: Float,
    ):  # fmt: skip
        channel = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        if channel < channels:
            variance = running_var[channel]
            shift[channel] = mean[channel]
            delta[channel] = float32(0)
            var[channel] = variance
            inv_std[channel] = float32(1) / math.sqrt(variance + eps)

    return Launch(
        read_running,
        BLOCK,
        lambda channels: blocks_for(channels, BLOCK),
        lambda channels: Cost(8 * channels, 16 * channels, 3 * channels),
    )


@kernel(
    traffic="shift, delta, var, weight, running_mean, running_var -> running_mean, running_var",
    registers=32,
    examples=[(False,), (True,)],
)
def batchnorm_move_running(in_memory: bool) -> Launch:
    """The running estimates, `factor` of the way to the batch's, or weight[0]; one channel a thread."""

    def move_running(
        shift: Floats, delta: Floats, var: Floats, weight: Floats, running_mean: Floats, running_var: Floats,
        channels: Int64, unbiased: Float, factor: Float,
    ):  # fmt: skip
        channel = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        if channel < channels:
            if in_memory:
                factor = weight[0]
            mean, variance = running_mean[channel], running_var[channel]
            kept = float32(1) - factor  # at a factor of 1 nothing is left of what was, however large beside the batch's
            running_mean[channel] = kept * mean + factor * (shift[channel] + delta[channel])
            running_var[channel] = kept * variance + factor * (var[channel] * unbiased)

    return Launch(
        move_running,
        BLOCK,
        lambda channels: blocks_for(channels, BLOCK),
        lambda channels: Cost(20 * channels, 8 * channels, 8 * channels),
    )


def batchnorm_running_statistics(run: Runner, mean: Array, var: Array, eps: float, out: BatchStatistics) -> None:
    """The running estimates (c,) in the form that `batchnorm_apply` reads. Launch on `run`.

    Raises:
        ShapeError: An array is not (c,) as `mean` is.
    """
    require_channels("batchnorm_running_statistics", mean, mean=mean, running_var=var, **out._asdict())
    run(batchnorm_read_running(), mean, var, *out, mean.size, eps)


def batchnorm_update_running(
    run: Runner, batch: BatchStatistics, rows: int, factor: float | Array, running_mean: Array, running_var: Array
) -> None:
    """Move the running estimates (c,) by `factor` of the way to the batch's, in place. Launch on `run`.

    The variance that enters is unbiased: var * rows / (rows - 1). A factor that changes from step to step is () float32
    in device memory, as `cumulative_weight` writes it.

    Raises:
        ShapeError: An array is not (c,) as `running_mean` is, or a factor in device memory not ().
        ValueError: `rows`, which the batch had, is less than 2.
    """
    arrays = {"running_mean": running_mean, "running_var": running_var, **batch._asdict()}
    require_channels("batchnorm_update_running", running_mean, **arrays)
    if rows < 2:
        raise ValueError(f"batchnorm_update_running: a variance over {rows} rows has no unbiased estimate")
    shift, delta, var, _ = batch
    unbiased = rows / (rows - 1)
    if isinstance(factor, Real):
        move, weight, number = batchnorm_move_running(False), run.empty((0,)), float(factor)
    else:
        require_shape("batchnorm_update_running", "factor", factor, ())
        move, weight, number = batchnorm_move_running(True), factor, 0.0
    run(move, shift, delta, var, weight, running_mean, running_var, shift.size, unbiased, number)


@kernel(traffic="count -> weight", registers=24, examples=[()])
def batchnorm_cumulative_weight() -> Launch:
    """The weight of one part; one thread."""

    def cumulative_weight(count: UInt32s, weight: Floats, parts: Int64, rest: Int64):
        if cuda.threadIdx.x == 0:
            weight[0] = float32(1) / float32(parts * (int64(count[0]) + 1) - rest)

    return Launch(cumulative_weight, 32, lambda: 1, lambda: Cost(4, 4, 1))


def cumulative_weight(run: Runner, count: Array, part: int, parts: int, weight: Array) -> None:
    """Launch on `run`. Raises ShapeError unless count () uint32 and weight () float32."""
    require_shape("cumulative_weight", "count", count, ())
    require_shape("cumulative_weight", "weight", weight, ())
    run(batchnorm_cumulative_weight(), count, weight, parts, parts - part)
