"""Batch normalization: the definition in NumPy.

Of each channel, over the m rows of a batch:

    mean = sum(x) / m
    var  = sum((x - mean)²) / m                         biased
    xhat = (x - mean) / sqrt(var + eps)
    y    = gamma * xhat + beta                          and max(y, 0) where a ReLU is fused
    y    = max(gamma * xhat + beta + residual, 0)       where a residual connection and its ReLU are

Backward, with g = dy (where a ReLU is fused: dy where y > 0, else 0):

    dbeta  = sum(g)
    dgamma = sum(g * xhat)
    dx     = gamma / sqrt(var + eps) * (g - dbeta / m - xhat * dgamma / m)      through the batch's statistics
    dx     = gamma / sqrt(var + eps) * g                                        through fixed ones (evaluation)
    dresidual = g

of which a first pass finds the sums, and mean_g = dbeta / m and slope = dgamma / (m sqrt(var + eps)); a second one dx:

    dx     = gamma / sqrt(var + eps) * ((g - mean_g) - (x - mean) * slope)

Running estimates, with factor f (PyTorch's `momentum`, the weight of the new value):

    running_mean += f * (mean - running_mean)
    running_var  += f * (var * m / (m - 1) - running_var)                       unbiased

Shapes   x, y, dy, dx, residual: (..., c), all leading axes together being the rows; everything else: (c,).
Edges    A constant channel has variance 0 exactly, so y = beta. A NaN or an infinity poisons its own channel and no
         other. No rows: y and dx are empty, dgamma = dbeta = 0; statistics need at least one row.
Sources  S. Ioffe, C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167, algorithms 1 and 2; the running estimates
         and evaluation's backward are PyTorch's (torch.nn.functional.batch_norm).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.activation import relu_backward_reference, relu_forward_reference
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_statistics_reference(x: Array, eps: float) -> BatchStatistics:
    """Of the batch: shift = the mean, delta = 0, and the variance in a second pass. x has at least one row."""
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(axis=0)
    # The sum rounds in proportion to the mean; the sum of what is left, to the deviation. So a constant channel is its
    # own mean exactly. (Beside an infinity there is nothing left to add.)
    rest = (rows - mean).mean(axis=0)
    mean = np.where(np.isfinite(rest), mean + rest, mean)
    var = ((rows - mean) ** 2).mean(axis=0)
    return BatchStatistics(shift=mean, delta=np.zeros_like(mean), var=var, inv_std=1 / np.sqrt(var + eps))


def batchnorm_running_statistics_reference(mean: Array, var: Array, eps: float) -> BatchStatistics:
    """The running estimates in the form that `batchnorm_apply_reference` reads: shift = mean, delta = 0."""
    return BatchStatistics(shift=mean.copy(), delta=np.zeros_like(mean), var=var.copy(), inv_std=1 / np.sqrt(var + eps))


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_update_running_reference(
    batch: BatchStatistics, rows: int, factor: float | Array, running_mean: Array, running_var: Array
) -> tuple[Array, Array]:
    """The next (running_mean, running_var). `rows`, at least 2, is the number of rows that `batch` was taken over."""
    mean = batch.shift + batch.delta
    unbiased = batch.var * (rows / (rows - 1))
    return running_mean + factor * (mean - running_mean), running_var + factor * (unbiased - running_var)


def cumulative_weight_reference(count: int, part: int, parts: int) -> float:
    """The weight of a part of a batch in the mean over all batches, `count` of which were before.

    Part number `part`, from 1, of `parts`, each of which counts as 1 / parts of a batch. So after the last part of the
    batch each of its parts has the weight 1 / (parts (count + 1)), and what was there before count / (count + 1).
    """
    return 1 / (parts * (count + 1) - (parts - part))


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_apply_reference(
    x: Array, statistics: BatchStatistics, gamma: Array | None, beta: Array | None, relu: bool
) -> Array:
    """The output y, from the normalized x; max(y, 0) where `relu`. gamma and beta are both arrays or both None."""
    y: Array = _normalized(x, statistics)
    if gamma is not None and beta is not None:
        y = y * gamma + beta
    return relu_forward_reference(y) if relu else y


def batchnorm_forward_reference(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    relu: bool,
    residual: Array | None = None,
) -> tuple[BatchStatistics, Array]:
    """Training's forward: the statistics of the batch, and y by them; with a residual there is always a ReLU."""
    statistics = batchnorm_statistics_reference(x, eps)
    if residual is None:
        return statistics, batchnorm_apply_reference(x, statistics, gamma, beta, relu)
    return statistics, batchnorm_add_relu_apply_reference(x, residual, statistics, gamma, beta)


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_backward_reference(
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    gamma: Array | None,
    beta: Array | None,
    training: bool,
    relu: bool,
) -> tuple[Array, Array | None, Array | None]:
    """(dx, dgamma, dbeta), through the batch's statistics where `training`, else through fixed ones.

    With `relu`, dy is the gradient of max(y, 0); y is computed again from x. dgamma and dbeta are None where gamma and
    beta are.
    """
    if relu:
        dy = relu_backward_reference(dy, batchnorm_apply_reference(x, statistics, gamma, beta, relu=True))
    return _gradients(x, dy, statistics, gamma, training)


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_add_relu_apply_reference(
    x: Array, residual: Array, statistics: BatchStatistics, gamma: Array | None, beta: Array | None
) -> Array:
    """The output of a residual block: max(y + residual, 0), where y is that of `batchnorm_apply_reference`."""
    return relu_forward_reference(batchnorm_apply_reference(x, statistics, gamma, beta, relu=False) + residual)


def batchnorm_add_relu_backward_reference(
    x: Array, y: Array, dy: Array, statistics: BatchStatistics, gamma: Array | None, training: bool
) -> tuple[Array, Array, Array | None, Array | None]:
    """(dx, dresidual, dgamma, dbeta); y is the output of `batchnorm_add_relu_apply_reference`, which tells the mask."""
    dresidual = relu_backward_reference(dy, y)
    dx, dgamma, dbeta = _gradients(x, dresidual, statistics, gamma, training)
    return dx, dresidual, dgamma, dbeta


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_gradient_sums_reference(x: Array, dy: Array, normalization: Normalization) -> GradientSums:
    """What backward in training finds in its first pass; without rows 0. dgamma is made without a gamma too."""
    return _sums(x, _behind_relu(x, dy, normalization), normalization.statistics)


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_add_relu_gradient_sums_reference(
    x: Array, y: Array, dy: Array, statistics: BatchStatistics
) -> tuple[Array, GradientSums]:
    """(dresidual, the sums), at the end of a residual block whose output was y."""
    dresidual = relu_backward_reference(dy, y)
    return dresidual, _sums(x, dresidual, statistics)


@np.errstate(invalid="ignore", over="ignore")
def batchnorm_pending_gradient_reference(pending: PendingGradient) -> Array:
    """dx, from what the first pass has found."""
    dy, x, normalization, sums = pending
    statistics, gamma = normalization.statistics, normalization.gamma
    g = _behind_relu(x, dy, normalization)
    centred = (x - statistics.shift) - statistics.delta
    scale = statistics.inv_std if gamma is None else gamma * statistics.inv_std
    dx: Array = scale * ((g - sums.mean_g) - centred * sums.slope)
    return dx


def _behind_relu(x: Array, dy: Array, normalization: Normalization) -> Array:
    """What of dy passes the normalization's ReLU, if it has one."""
    statistics, gamma, beta, relu = normalization
    return relu_backward_reference(dy, batchnorm_apply_reference(x, statistics, gamma, beta, relu=True)) if relu else dy


def _sums(x: Array, g: Array, statistics: BatchStatistics) -> GradientSums:
    leading = tuple(range(x.ndim - 1))
    dbeta, dgamma = g.sum(axis=leading), (g * _normalized(x, statistics)).sum(axis=leading)
    rows = max(x.size // x.shape[-1], 1)
    return GradientSums(dgamma, dbeta, mean_g=dbeta / rows, slope=statistics.inv_std * dgamma / rows)


@np.errstate(invalid="ignore", over="ignore")
def _gradients(
    x: Array, dy: Array, statistics: BatchStatistics, gamma: Array | None, training: bool
) -> tuple[Array, Array | None, Array | None]:
    xhat = _normalized(x, statistics)
    leading = tuple(range(x.ndim - 1))
    dbeta = dy.sum(axis=leading)
    dgamma = (dy * xhat).sum(axis=leading)

    scale = statistics.inv_std if gamma is None else gamma * statistics.inv_std
    if training:
        rows = x.size // x.shape[-1]  # without rows, 0 / 0 below goes into an empty dx
        dx = scale * (dy - dbeta / rows - xhat * (dgamma / rows))
    else:
        dx = scale * dy
    return (dx, None, None) if gamma is None else (dx, dgamma, dbeta)


def _normalized(x: Array, statistics: BatchStatistics) -> Array:
    """The deviation from the mean in standard deviations: xhat."""
    return ((x - statistics.shift) - statistics.delta) * statistics.inv_std
