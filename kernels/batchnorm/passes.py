"""Batch normalization backward through the batch's statistics, a pass at a time; backward.py puts the passes together.

First the sums over rows (`GradientSums`), then dx from them (`PendingGradient`). Between the two stands, in a network,
whatever reads dx: a convolution can work it out as it loads, and the second pass is not run at all.

Shapes   x, y, dy, dx, dresidual (..., c) of one storage (kernels/storage.py), C-contiguous, taken as (rows, c); all
         others (c,) float32. Sums are of the numbers as they are stored.
Traffic  Sums: x and dy once; with a residual x, y and dy once, dresidual once. dx: x and dy once, dx once.
Edges    As backward.py.
"""

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm.apply import BLOCKS, MOST, is_affine, mean_and_scale, read
from kernels.batchnorm.gradient_sums import batchnorm_sum_gradients_scalar, batchnorm_sum_gradients_vector
from kernels.batchnorm.input_gradient import batchnorm_backward_scalar, batchnorm_backward_vector
from kernels.batchnorm.masked_sums import (
    batchnorm_mask_and_sum_gradients_scalar,
    batchnorm_mask_and_sum_gradients_vector,
)
from kernels.batchnorm.partial_gradients import merge_gradient_sums
from kernels.batchnorm.split import Split, require_channels, split
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.launch import Array, Runner, blocks_for, techniques
from kernels.storage import common_storage, storage_of

Pair = tuple[Array, Array]


@techniques("scalar", "vector")
def batchnorm_gradient_sums(
    run: Runner,
    x: Array,
    dy: Array,
    normalization: Normalization,
    sums: GradientSums,
    *,
    technique: str | None = None,
) -> None:
    """The first pass of `batchnorm_backward` in training: of each channel what dx subtracts, and dgamma and dbeta.

    Two launches on `run`. dy is the gradient of the normalization's output, behind its ReLU if it has one.

    Raises:
        ShapeError: dy is not of x's shape, or another array not (c,).
        TypeError: Only one of gamma and beta is given, images are not of one storage, or another array not float32.
        TechniqueError: "vector" is asked for, and c is no multiple of 4 (of 8 in 16 bits) or an array starts at no
            multiple of 16 bytes.
    """
    operation = "batchnorm_gradient_sums"
    statistics, gamma, beta, relu = normalization
    require_channels(operation, x, **statistics._asdict(), gamma=gamma, beta=beta, **sums._asdict())
    same_shape(operation, x=x, dy=dy)
    storage = common_storage(operation, x=x, dy=dy)
    affine, parameters = is_affine(operation, gamma, beta, statistics)
    parts = split(run, operation, technique, storage, x, dy=dy, **read(statistics), gamma=gamma, beta=beta)
    sum_gradients(run, parts, x, dy, statistics, parameters, sums, affine, relu)


@techniques("scalar", "vector")
def batchnorm_add_relu_gradient_sums(
    run: Runner,
    x: Array,
    y: Array,
    dy: Array,
    statistics: BatchStatistics,
    dresidual: Array,
    sums: GradientSums,
    *,
    technique: str | None = None,
) -> None:
    """The first pass of `batchnorm_add_relu_backward` in training, y being forward's output: dresidual, and the sums.

    Two launches on `run`; otherwise as `batchnorm_gradient_sums`.

    Raises:
        ShapeError: y, dy and dresidual are not of x's shape, or another array not (c,).
        TypeError: x, y, dy and dresidual are not of one storage, or another array not float32.
    """
    operation = "batchnorm_add_relu_gradient_sums"
    require_channels(operation, x, **statistics._asdict(), **sums._asdict())
    same_shape(operation, x=x, y=y, dy=dy, dresidual=dresidual)
    storage = common_storage(operation, x=x, y=y, dy=dy, dresidual=dresidual)
    near = {"shift": statistics.shift, "delta": statistics.delta}
    parts = split(run, operation, technique, storage, x, y=y, dy=dy, dresidual=dresidual, **near)
    mask_and_sum_gradients(run, parts, x, y, dy, statistics, dresidual, sums)


@techniques("scalar", "vector")
def batchnorm_pending_gradient(run: Runner, dy: PendingGradient, dx: Array, *, technique: str | None = None) -> None:
    """The second pass of `batchnorm_backward` in training: dx written out, in one launch on `run`.

    Raises:
        ShapeError: dy's gradient or dx is not of its x's shape, or another array not (c,).
        TypeError: Only one of gamma and beta is given, images are not of one storage, or another array not float32.
        TechniqueError: "vector" is asked for, and c is no multiple of 4 (of 8 in 16 bits) or an array starts at no
            multiple of 16 bytes.
    """
    operation = "batchnorm_pending_gradient"
    gradient, x, (statistics, gamma, beta, relu), sums = dy
    subtracted = {"mean_g": sums.mean_g, "slope": sums.slope}
    require_channels(operation, x, **statistics._asdict(), gamma=gamma, beta=beta, **subtracted)
    same_shape(operation, x=x, dy=gradient, dx=dx)
    storage = common_storage(operation, x=x, dy=gradient, dx=dx)
    affine, parameters = is_affine(operation, gamma, beta, statistics)
    others = {"dy": gradient, "dx": dx, **read(statistics), "gamma": gamma, "beta": beta, **subtracted}
    parts = split(run, operation, technique, storage, x, **others)
    subtract(run, parts, x, gradient, statistics, parameters, (sums.mean_g, sums.slope), dx, (affine, True, relu))


def sum_gradients(
    run: Runner,
    parts: Split,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    parameters: Pair,
    sums: GradientSums,
    affine: bool,
    relu: bool,
) -> None:
    """The first pass of arguments that are known to be right, and to fit `parts`."""
    rows = x.size // parts.channels
    span = parts.span(rows, parts.enough, rows)
    partial = run.empty((2, blocks_for(rows, span), parts.channels))
    factory = batchnorm_sum_gradients_vector if parts.width > 1 else batchnorm_sum_gradients_scalar
    first = factory(parts.channels, affine, relu, index_type(x.size), storage_of(x))
    run(first, x, dy, *mean_and_scale(statistics), *parameters, partial, rows, span)
    merge_gradient_sums(run, partial, statistics.inv_std, sums, rows)


def mask_and_sum_gradients(
    run: Runner,
    parts: Split,
    x: Array,
    y: Array,
    dy: Array,
    statistics: BatchStatistics,
    dresidual: Array,
    sums: GradientSums,
) -> None:
    """The first pass at the end of a residual block, likewise."""
    rows = x.size // parts.channels
    span = parts.span(rows, parts.enough, rows)
    partial = run.empty((2, blocks_for(rows, span), parts.channels))
    wide = parts.width > 1
    factory = batchnorm_mask_and_sum_gradients_vector if wide else batchnorm_mask_and_sum_gradients_scalar
    chosen = factory(parts.channels, index_type(x.size), storage_of(x))
    run(chosen, x, y, dy, statistics.shift, statistics.delta, dresidual, partial, rows, span)
    merge_gradient_sums(run, partial, statistics.inv_std, sums, rows)


def subtract(
    run: Runner,
    parts: Split,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    parameters: Pair,
    subtracted: Pair,
    dx: Array,
    options: tuple[bool, bool, bool],
) -> None:
    """The second pass, likewise; `subtracted` are mean_g and slope, `options` affine, training and relu."""
    rows = x.size // parts.channels
    factory = batchnorm_backward_vector if parts.width > 1 else batchnorm_backward_scalar
    chosen = factory(parts.channels, *options, index_type(x.size), storage_of(x))
    arrays = x, dy, *mean_and_scale(statistics), *parameters, *subtracted, dx
    run(chosen, *arrays, rows, *parts.way_back(rows, BLOCKS, MOST))
