"""The error bounds of group normalization, for any implementation in float32.

A group of a sample is to it what a channel is to batch normalization, so its elements are laid out as a column, (m,
sets) with a set for each sample and group, and the bounds of batch normalization's statistics and forward hold for it.
"""

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.lab.budget import TINY, U, summation
from minidl.lab.operations.batchnorm_bounds import GIVEN, Elements, elements
from minidl.lab.operations.case import Host


def columns(x: Host, groups: int) -> Host:
    """X (n, ..., c) as (m, n * groups): the elements of each sample's group, one below the other."""
    n, c = x.shape[0], x.shape[-1]
    rows = int(np.prod(x.shape[1:-1], dtype=np.int64))
    parts = x.reshape(n, rows, groups, c // groups).transpose(1, 3, 0, 2)
    return parts.reshape(rows * (c // groups), n * groups)


def restored(matrix: Host, shape: tuple[int, ...], groups: int) -> Host:
    """The inverse of `columns`."""
    n, c = shape[0], shape[-1]
    rows = int(np.prod(shape[1:-1], dtype=np.int64))
    return matrix.reshape(rows, c // groups, n, groups).transpose(2, 0, 3, 1).reshape(shape)


def flat(statistics: BatchStatistics) -> BatchStatistics:
    """The four arrays (n, groups) as (sets,)."""
    return BatchStatistics(*(np.asarray(part).reshape(-1) for part in statistics))


def of_elements(channels: Host | None, shape: tuple[int, ...], groups: int) -> Host | None:
    """A parameter (c,) for each element, as `columns` lays them out."""
    return None if channels is None else columns(np.broadcast_to(channels, shape), groups)


def y_bound(x: Host, statistics: BatchStatistics, groups: int, gamma: Host | None, beta: Host | None) -> Host:
    """Of y, for given statistics."""
    scale, offset = (of_elements(array, x.shape, groups) for array in (gamma, beta))
    return restored(elements(columns(x, groups), flat(statistics), scale, offset, GIVEN).y_error, x.shape, groups)


def backward_bounds(
    x: Host,
    dy: Host,
    statistics: BatchStatistics,
    groups: int,
    gamma: Host | None,
    of_set: float | None = None,
    of_channel: float | None = None,
) -> dict[str, Host]:
    """Of dx, dgamma and dbeta, for given statistics.

    `of_set` and `of_channel` are the relative errors of a sum over a group, and over the samples and rows of a channel,
    if they are not those of any `summation` of so many.
    """
    shape, dy = x.shape, dy.astype(np.float64)
    e = elements(columns(x, groups), flat(statistics), None, None, GIVEN)
    gamma = np.ones(shape[-1]) if gamma is None else gamma.astype(np.float64)
    factor = columns(np.broadcast_to(gamma, shape), groups)
    inv_std = flat(statistics).inv_std.astype(np.float64)
    leading = tuple(range(len(shape) - 1))
    terms = max(x.size // shape[-1], 1)
    of_set = summation(len(e.xhat)) if of_set is None else of_set
    of_channel = summation(terms) if of_channel is None else of_channel
    xhat, xhat_rounding = (restored(part, shape, groups) for part in (e.xhat, e.xhat_rounding))
    floor = restored(np.broadcast_to(TINY * (inv_std + 2), e.xhat.shape), shape, groups)

    dbeta_error = of_channel * np.abs(dy).sum(axis=leading) + U * np.abs(dy.sum(axis=leading))
    # A term's product rounds, or a partial sum's with inv_std; xhat brings its own.
    dgamma_error = (
        (of_channel + 3 * U) * np.abs(dy * xhat).sum(axis=leading)
        + (np.abs(dy) * xhat_rounding).sum(axis=leading)
        + floor.sum(axis=leading)
    )
    return {
        "dx": restored(_dx_bound(e, columns(dy, groups), factor, inv_std, of_set), shape, groups),
        "dgamma": dgamma_error,
        "dbeta": dbeta_error,
    }


def _dx_bound(e: Elements, dy: Host, factor: Host, inv_std: Host, sums: float) -> Host:
    """Of dx = inv_std * (g - mean(g) - xhat * mean(g * xhat)), with g = gamma * dy; all as `columns`."""
    m = max(len(dy), 1)
    g = factor * dy
    size, product = np.abs(g), np.abs(g * e.xhat)
    mean_g, mean_gx = np.abs(g.sum(axis=0)) / m, np.abs((g * e.xhat).sum(axis=0)) / m
    # Products underflow, and what is then lost grows by gamma and inv_std.
    floor = TINY * (inv_std + 2) * (1 + np.abs(factor).max(axis=0, initial=0))
    # Each term of a sum: gamma's product; of the second also dy's, inv_std's, and what xhat brings.
    of_g = (sums + U) * size.sum(axis=0) / m + 2 * U * mean_g + floor
    of_terms = (sums + 3 * U) * product.sum(axis=0) + (size * e.xhat_rounding).sum(axis=0)
    of_gx = of_terms / m + 3 * U * mean_gx + floor
    projection = np.abs(e.xhat) * mean_gx
    # g - mean(g) - xhat * mean(g * xhat): each part's own error, and two differences.
    inner = (
        U * size
        + of_g
        + e.xhat_error * mean_gx
        + np.abs(e.xhat) * of_gx
        + 3 * U * projection
        + 2 * U * (size + mean_g)
        + U * projection
        + floor
    )
    dx = np.abs(g - g.sum(axis=0) / m - e.xhat * (g * e.xhat).sum(axis=0) / m)
    bound: Host = inv_std * (inner + 2 * U * dx) + TINY
    return bound
