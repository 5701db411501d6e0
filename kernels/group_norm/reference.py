"""Group normalization, and with it layer and instance normalization: the definition in NumPy.

x is a batch of n samples, each a matrix of rows (its pixels) and c channels, of which groups of k = c / groups
neighbours are taken together. Of each sample and group, over its m = rows * k elements:

    mean = sum(x) / m
    var  = sum((x - mean)²) / m                         biased
    xhat = (x - mean) / sqrt(var + eps)
    y    = gamma * xhat + beta                          gamma and beta belong to channels

Backward, with g = gamma * dy:

    dbeta  = sum(dy)                                    over samples and rows, for each channel
    dgamma = sum(dy * xhat)
    dx     = (g - mean(g) - xhat * mean(g * xhat)) / sqrt(var + eps)        means over the sample's group

    layer normalization of images     groups = 1 (Wu and He); of each row of a matrix: groups = 1, each row a sample
    instance normalization            groups = c

Shapes   x, y, dy, dx: (n, ..., c), the axes between being the rows; gamma, beta, dgamma, dbeta (c,); statistics
         (n, groups) each.
Edges    A constant group has variance 0 exactly, so y = beta. A NaN or an infinity poisons its own sample's group and
         no other, and of dgamma the channels of that group. No samples: y and dx are empty, dgamma = dbeta = 0.
         Statistics need at least one row.
Sources  J. Ba, J. Kiros, G. Hinton, "Layer Normalization", 2016, arXiv:1607.06450; D. Ulyanov, A. Vedaldi, V.
         Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016, arXiv:1607.08022;
         Y. Wu, K. He, "Group Normalization", 2018, arXiv:1803.08494, which has the other two as its extremes. That
         statistics are over neighbouring channels and eps is inside the root is PyTorch's rule too
         (torch.nn.functional.group_norm).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch_statistics import BatchStatistics

Array = NDArray[Any]
OF_A_GROUP = (1, 3)  # the axes of `_grouped` that statistics are over


@np.errstate(invalid="ignore", over="ignore")
def group_norm_statistics_reference(x: Array, groups: int, eps: float) -> BatchStatistics:
    """Of each sample's groups: shift = the mean, delta = 0, and the variance in a second pass."""
    parts = _grouped(x, groups)
    mean = parts.mean(axis=OF_A_GROUP)
    # As in batch normalization: what is left about a rounded mean is summed again, so a constant is its own mean.
    rest = (parts - mean[:, None, :, None]).mean(axis=OF_A_GROUP)
    mean = np.where(np.isfinite(rest), mean + rest, mean)
    var = ((parts - mean[:, None, :, None]) ** 2).mean(axis=OF_A_GROUP)
    return BatchStatistics(shift=mean, delta=np.zeros_like(mean), var=var, inv_std=1 / np.sqrt(var + eps))


@np.errstate(invalid="ignore", over="ignore")
def group_norm_apply_reference(
    x: Array, statistics: BatchStatistics, groups: int, gamma: Array | None, beta: Array | None
) -> Array:
    """The output y. beta may be None where gamma is given, or both."""
    y = _normalized(x, statistics, groups).reshape(x.shape)
    if gamma is not None:
        y = y * gamma
    return y if beta is None else y + beta


@np.errstate(invalid="ignore", over="ignore")
def group_norm_backward_reference(
    x: Array, dy: Array, statistics: BatchStatistics, groups: int, gamma: Array | None
) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta), through the statistics; the latter two whether or not there are gamma and beta."""
    xhat = _normalized(x, statistics, groups)
    g = _grouped(dy if gamma is None else dy * gamma, groups)
    elements = max(g.shape[1] * g.shape[3], 1)
    mean_g = g.sum(axis=OF_A_GROUP, keepdims=True) / elements
    mean_gx = (g * xhat).sum(axis=OF_A_GROUP, keepdims=True) / elements
    dx = statistics.inv_std[:, None, :, None] * (g - mean_g - xhat * mean_gx)
    leading = tuple(range(x.ndim - 1))
    return dx.reshape(x.shape), (dy * xhat.reshape(x.shape)).sum(axis=leading), dy.sum(axis=leading)


def _grouped(x: Array, groups: int) -> Array:
    """(n, rows, groups, k); without samples there is still one axis for each."""
    rows = int(np.prod(x.shape[1:-1], dtype=np.int64))
    return x.reshape(x.shape[0], rows, groups, x.shape[-1] // groups)


def _normalized(x: Array, statistics: BatchStatistics, groups: int) -> Array:
    """Xhat, in the shape of `_grouped`."""
    shift, delta, inv_std = (
        part[:, None, :, None] for part in (statistics.shift, statistics.delta, statistics.inv_std)
    )
    return ((_grouped(x, groups) - shift) - delta) * inv_std
