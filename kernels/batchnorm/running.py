"""Batch normalization: the running estimates, as statistics and moved towards a batch's. Defined in reference.py.

Shapes   all (c,) float32, C-contiguous.
Traffic  every array once.
"""

import math

from numba import cuda, float32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.split import BLOCK, require_channels
from kernels.launch import Array, Cost, Float, Floats, Int64, Launch, Runner, blocks_for, kernel


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
    traffic="shift, delta, var, running_mean, running_var -> running_mean, running_var", registers=32, examples=[()]
)
def batchnorm_move_running() -> Launch:
    """The running estimates, `factor` of the way to the batch's; one channel a thread."""

    def move_running(
        shift: Floats, delta: Floats, var: Floats, running_mean: Floats, running_var: Floats,
        channels: Int64, unbiased: Float, factor: Float,
    ):  # fmt: skip
        channel = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        if channel < channels:
            mean, variance = running_mean[channel], running_var[channel]
            running_mean[channel] = mean + factor * ((shift[channel] + delta[channel]) - mean)
            running_var[channel] = variance + factor * (var[channel] * unbiased - variance)

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
    run: Runner, batch: BatchStatistics, rows: int, factor: float, running_mean: Array, running_var: Array
) -> None:
    """Move the running estimates (c,) by `factor` of the way to the batch's, in place. Launch on `run`.

    The variance that enters is unbiased: var * rows / (rows - 1).

    Raises:
        ShapeError: An array is not (c,) as `running_mean` is.
        ValueError: `rows`, which the batch had, is less than 2.
    """
    arrays = {"running_mean": running_mean, "running_var": running_var, **batch._asdict()}
    require_channels("batchnorm_update_running", running_mean, **arrays)
    if rows < 2:
        raise ValueError(f"batchnorm_update_running: a variance over {rows} rows has no unbiased estimate")
    shift, delta, var, _ = batch
    unbiased = rows / (rows - 1)
    run(batchnorm_move_running(), shift, delta, var, running_mean, running_var, shift.size, unbiased, factor)
