"""Batch normalization backward. The definition is in reference.py.

With g = dy (behind a ReLU: dy where forward's y > 0, else 0) and centred = (x - shift) - delta, in three launches:

    sums over rows         s = sum g        p = sum g * centred                     two stages
    dbeta = s              dgamma = p * inv_std
    dx = scale * ((g - mean_g) - centred * slope)       through the batch's statistics
    dx = scale * g                                      through fixed ones

with scale = gamma * inv_std, mean_g = s / rows and slope = dgamma * inv_std / rows.

A ReLU's mask is computed again from x, which is read anyway. At the end of a residual block that would take the
residual too, so the mask is taken from y; the first launch then writes dresidual = g, and the last reads that in the
place of dy and y.

Shapes   x, y, dy, dx, dresidual (..., c) float32, C-contiguous, taken as (rows, c); all others (c,).
Traffic  x and dy twice, dx once; with a residual x twice, dy and y once, dresidual written once and read once, dx once.
         Through fixed statistics without gamma and beta: dy once (and x once for a ReLU's mask), dx once. The last
         launch visits the rows in the reverse of the first one's order, so what that read last comes from L2
         (`Split.way_back`); no bit depends on it. persistent_backward.py reads x and dy once.
Edges    A NaN or an infinity poisons its own channel and no other. No rows: dgamma = dbeta = 0.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.apply import BLOCKS, MOST, is_affine, mean_and_scale, normalized, read
from kernels.batchnorm.gradient_sums import (
    batchnorm_finish_gradients,
    batchnorm_mask_and_sum_gradients_scalar,
    batchnorm_mask_and_sum_gradients_vector,
    batchnorm_sum_gradients_scalar,
    batchnorm_sum_gradients_vector,
)
from kernels.batchnorm.persistent_backward import (
    batchnorm_backward_persistent_scalar,
    batchnorm_backward_persistent_vector,
)
from kernels.batchnorm.residency import Residency, numbers, resident, why_resident
from kernels.batchnorm.split import AHEAD, BLOCK, ENOUGH, Split, loader, require_channels, split, storer
from kernels.choice import Option, choose
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques, wide


def _backward(channels: int, affine: bool, training: bool, relu: bool, index: Any, width: int) -> Launch:
    """A thread reads what it needs to know of its `width` channels, then walks down its rows: x and dy in, dx out."""
    parts = Split(channels, width)
    lanes, depth, group = parts.lanes, parts.depth, AHEAD * parts.depth
    load, store, loads = loader(width), storer(width), AHEAD * width
    reads = 8 if training or relu else 4

    def backward(
        x: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        mean_g: Floats, slope: Floats, dx: Floats, rows: Int64, stretch: Int64, groups: Int64,
    ):  # fmt: skip
        values = cuda.local.array(loads, float32)
        gradients = cuda.local.array(loads, float32)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        mean = cuda.local.array(width, float32)
        factor = cuda.local.array(width, float32)
        row = cuda.threadIdx.x // lanes
        channel = (cuda.blockIdx.y * lanes + cuda.threadIdx.x % lanes) * width
        if row < depth and channel < channels:
            load(inv_std, channel, scale, 0)
            for j in range(width):
                offset[j] = float32(0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                if relu:
                    load(beta, channel, offset, 0)
            if training or relu:
                load(shift, channel, near, 0)
                load(delta, channel, rest, 0)
            if training:
                load(mean_g, channel, mean, 0)
                load(slope, channel, factor, 0)
            first = cuda.blockIdx.x * stretch + (cuda.gridDim.z - 1 - cuda.blockIdx.z) * groups * group + row
            end = index(min(rows, (cuda.blockIdx.x + 1) * stretch))
            for k in range(groups):
                at = index(first + (groups - 1 - k) * group)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        load(dy, index((at + i * depth) * channels + channel), gradients, i * width)
                        if training or relu:
                            load(x, index((at + i * depth) * channels + channel), values, i * width)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        for j in range(width):
                            g = gradients[i * width + j]
                            if relu:
                                g = passed(g, normalized(values[i * width + j], near[j], rest[j], scale[j], offset[j]))
                            if training:
                                g = (g - mean[j]) - ((values[i * width + j] - near[j]) - rest[j]) * factor[j]
                            result[j] = scale[j] * g
                        store(dx, index((at + i * depth) * channels + channel), result)

    return Launch(
        backward,
        BLOCK,
        parts.grid_back,
        lambda rows: Cost(reads * rows * channels + 28 * channels, 4 * rows * channels, 7 * rows * channels),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta, mean_g, slope -> dx",
    examples=[
        (1, True, True, False, uint32),
        (17, True, True, True, uint32),
        (64, False, False, True, uint32),
        (513, True, False, False, int64),
    ],
)
def batchnorm_backward_scalar(channels: int, affine: bool, training: bool, relu: bool, index: Any) -> Launch:
    """dx, from sums over rows where `training`. One channel a thread."""
    return _backward(channels, affine, training, relu, index, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta, mean_g, slope -> dx",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=96,  # eight loads of four floats are under way
    examples=[
        (4, True, True, False, uint32),
        (64, True, True, True, uint32),
        (64, True, False, False, uint32),
        (512, False, True, True, int64),
    ],
)
def batchnorm_backward_vector(channels: int, affine: bool, training: bool, relu: bool, index: Any) -> Launch:
    """The same with four channels a thread, moved as 16 bytes. All arrays aligned to 16."""
    return _backward(channels, affine, training, relu, index, 4)


@techniques("scalar", "vector", "persistent")
def batchnorm_backward(
    run: Runner,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    gamma: Array | None,
    beta: Array | None,
    dx: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    training: bool,
    relu: bool,
    *,
    technique: str | None = None,
) -> None:
    """dx, and dgamma and dbeta where they are wanted; through the batch's statistics where `training`.

    Three launches on `run`; one where x and dy fit on the chip of its GPU ("persistent", persistent_backward.py) or
    where no sums are needed, so that every technique reads everything once and "persistent" is as good as any.

    Raises:
        ShapeError: dy and dx are not of x's shape, or another array not (c,).
        TypeError: Only one of gamma and beta is given.
        TechniqueError: "persistent" is asked for, and x and dy do not fit; or "vector", and c is no multiple of 4 or an
            array starts at no multiple of 16 bytes.
    """
    operation = "batchnorm_backward"
    channels = {"gamma": gamma, "beta": beta, "dgamma": dgamma, "dbeta": dbeta}
    rows = require_channels(operation, x, **statistics._asdict(), **channels)
    same_shape(operation, x=x, dy=dy, dx=dx)
    affine, parameters = is_affine(operation, gamma, beta, statistics)
    wants_sums = training or dgamma is not None or dbeta is not None
    others = {"dy": dy, "dx": dx, **read(statistics), "gamma": gamma, "beta": beta}
    if wants_sums and rows and (technique == "persistent" or (technique is None and numbers(run) is not None)):
        aligned = dy, dx, *mean_and_scale(statistics), *parameters
        found = resident(run, x, *aligned, tensors=2)
        options: tuple[Option, ...] = (
            ("persistent", found is not None, lambda: why_resident(run, x, found, "x and dy")),
            ("vector", x.shape[-1] % 4 == 0 and wide(x, *aligned), ""),
            ("scalar", True, ""),
        )
        chosen = choose(run, operation, technique, options, x=x, **others)
        if chosen == "persistent" and found is not None:
            gradients, modes = (dx, dgamma, dbeta), (affine, training, relu)
            _launch_persistent(run, found, x, dy, statistics, parameters, gradients, modes)
            return
        parts = Split(int(x.shape[-1]), 4 if chosen == "vector" else 1)
    else:  # without sums nothing is read twice, so there is nothing to hold
        parts = split(run, operation, None if technique == "persistent" else technique, x, **others)
    subtracted = statistics.inv_std, statistics.inv_std  # not read
    if wants_sums:
        span = parts.span(rows, ENOUGH, rows)
        partial = run.empty((2, blocks_for(rows, span), parts.channels))
        factory = batchnorm_sum_gradients_vector if parts.width == 4 else batchnorm_sum_gradients_scalar
        first = factory(parts.channels, affine, relu, index_type(x.size))
        run(first, x, dy, *mean_and_scale(statistics), *parameters, partial, rows, span)
        subtracted = _finish(run, partial, statistics, dgamma, dbeta, rows)
    _launch_backward(run, parts, x, dy, statistics, parameters, subtracted, dx, (affine, training, relu))


@techniques("scalar", "vector")
def batchnorm_add_relu_backward(
    run: Runner,
    x: Array,
    y: Array,
    dy: Array,
    statistics: BatchStatistics,
    gamma: Array | None,
    dx: Array,
    dresidual: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    training: bool,
    *,
    technique: str | None = None,
) -> None:
    """Backward of `batchnorm_add_relu_apply`, whose output was y: dx, dresidual and, where wanted, dgamma and dbeta.

    Three launches on `run`; otherwise as `batchnorm_backward`.

    Raises:
        ShapeError: y, dy, dx and dresidual are not of x's shape, or another array not (c,).
    """
    operation = "batchnorm_add_relu_backward"
    rows = require_channels(operation, x, **statistics._asdict(), gamma=gamma, dgamma=dgamma, dbeta=dbeta)
    same_shape(operation, x=x, y=y, dy=dy, dx=dx, dresidual=dresidual)
    affine, parameters = is_affine(operation, gamma, gamma, statistics)  # beta is in y; here it is not read
    arrays = {"y": y, "dy": dy, "dx": dx, "dresidual": dresidual, **read(statistics), "gamma": gamma}
    parts = split(run, operation, technique, x, **arrays)
    span = parts.span(rows, ENOUGH, rows)
    partial = run.empty((2, blocks_for(rows, span), parts.channels))
    wide = parts.width == 4
    factory = batchnorm_mask_and_sum_gradients_vector if wide else batchnorm_mask_and_sum_gradients_scalar
    chosen = factory(parts.channels, index_type(x.size))
    run(chosen, x, y, dy, statistics.shift, statistics.delta, dresidual, partial, rows, span)
    subtracted = _finish(run, partial, statistics, dgamma, dbeta, rows)
    _launch_backward(run, parts, x, dresidual, statistics, parameters, subtracted, dx, (affine, training, False))


def _finish(
    run: Runner, partial: Array, statistics: BatchStatistics, dgamma: Array | None, dbeta: Array | None, rows: int
) -> tuple[Array, Array]:
    """Dgamma and dbeta, into scratch memory where they are None; returns what dx subtracts."""
    _, blocks, channels = partial.shape
    dgamma, dbeta, mean_g, slope = (
        run.empty((channels,)) if array is None else array for array in (dgamma, dbeta, None, None)
    )
    given = partial, statistics.inv_std, dgamma, dbeta, mean_g, slope
    run(batchnorm_finish_gradients(), *given, blocks, channels, rows)
    return mean_g, slope


def _launch_persistent(
    run: Runner,
    found: Residency,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    parameters: tuple[Array, Array],
    gradients: tuple[Array, Array | None, Array | None],
    options: tuple[bool, bool, bool],
) -> None:
    parts, kept, span = found
    rows, channels = x.size // parts.channels, parts.channels
    factory = batchnorm_backward_persistent_vector if parts.width == 4 else batchnorm_backward_persistent_scalar
    chosen = factory(channels, *options, kept, index_type(x.size))
    dx, dgamma, dbeta = gradients
    dgamma, dbeta = (run.empty((channels,)) if array is None else array for array in (dgamma, dbeta))
    arrays = x, dy, *mean_and_scale(statistics), *parameters, dgamma, dbeta, dx
    run(chosen, *arrays, run.empty((2, blocks_for(rows, span), channels)), run.barrier(), rows, span)


def _launch_backward(
    run: Runner,
    parts: Split,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    parameters: tuple[Array, Array],
    subtracted: tuple[Array, Array],
    dx: Array,
    options: tuple[bool, bool, bool],
) -> None:
    rows = x.size // parts.channels
    factory = batchnorm_backward_vector if parts.width == 4 else batchnorm_backward_scalar
    chosen = factory(parts.channels, *options, index_type(x.size))
    arrays = x, dy, *mean_and_scale(statistics), *parameters, *subtracted, dx
    run(chosen, *arrays, rows, *parts.way_back(rows, BLOCKS, MOST))
