"""The error bounds of batch normalization, for any implementation in float32.

They follow the algorithm that kernels/batchnorm promises: shifted sums, and the mean kept as a pair. So they scale with
the deviation of a channel, not with its mean: at mean 1e4, std 1e-2 a y that went through a single float32 mean is off
by thousands of bounds.
"""

from typing import NamedTuple

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.lab.budget import TINY, U, summation
from minidl.lab.operations.case import Host

SPREAD = 4.0  # the shift of a channel is at most so many of its standard deviations from its mean


class Uncertainty(NamedTuple):
    """How far statistics may be off, (c,) each: `mean` and `var` absolutely, `inv_std` relative to itself."""

    mean: Host
    var: Host
    inv_std: Host


GIVEN = Uncertainty(np.zeros(()), np.zeros(()), np.zeros(()))  # statistics that are inputs have no error


def held_shift(shift: Host, mean: Host, var: Host) -> Host:
    """`shift` where it keeps the promise of SPREAD, else the nearest value that does: no backend loosens its bounds."""
    reach = SPREAD * np.sqrt(var)
    return np.clip(shift, mean - reach, mean + reach)


def statistics_uncertainty(
    x: Host, eps: float, mean: Host, var: Host, shift: Host, sums: float | None = None
) -> Uncertainty:
    """Of statistics from shifted sums; mean and var are the reference's, shift is the backend's.

    `sums` is the relative error of a sum over the rows, if it is not that of any `summation` of so many.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    shift = held_shift(shift, mean, var)
    distance = np.abs(rows - shift)
    first, second = distance.mean(axis=0), (distance**2).mean(axis=0)
    sums = summation(len(rows)) if sums is None else sums
    moves = first > 0  # a constant channel has no terms but 0: its mean and variance are exact
    # mean - shift: x - shift rounds once, the sum, the division and the store of delta.
    of_mean = (sums + 3 * U) * first + TINY * moves
    # The squares: x - shift once, twice over, and the square itself; the sum; the division. Then delta² is taken off:
    # what delta is off by, and the rounding of delta² (at most `second`) and of the difference.
    of_var = (sums + 5 * U) * second + 2 * np.abs(mean - shift) * of_mean + U * var + TINY * moves
    return Uncertainty(of_mean, of_var, 0.5 * of_var / (var + eps) + 4 * U)  # +: eps, sum, square root, reciprocal


class Elements(NamedTuple):
    """What forward and backward share, in float64, of x's shape or (c,)."""

    slope: Host  # gamma / sqrt(var + eps), (c,)
    xhat: Host
    y: Host  # before a ReLU
    xhat_rounding: Host  # its error without that of the statistics
    xhat_error: Host
    y_error: Host


def elements(x: Host, statistics: BatchStatistics, gamma: Host | None, beta: Host | None, off: Uncertainty) -> Elements:
    """Of y = ((x - shift) - delta) * inv_std * gamma + beta, for statistics that are `off` by so much."""
    x = x.astype(np.float64)
    shift, delta, _, inv_std = (np.asarray(part, np.float64) for part in statistics)
    gamma = np.ones_like(shift) if gamma is None else gamma.astype(np.float64)
    far, near = x - shift, x - shift - delta
    xhat = near * inv_std
    y = xhat * gamma + (0 if beta is None else beta.astype(np.float64))
    moves = (far != 0) | (near != 0)  # elsewhere y = 0 * scale + beta, and beta is exact
    # x - shift rounds, then the second difference, then the product with inv_std.
    xhat_rounding = inv_std * (U * np.abs(far) + 2 * U * np.abs(near))
    xhat_error = xhat_rounding + inv_std * (off.mean + off.inv_std * np.abs(near))
    # gamma's product and beta's sum round. Each product can underflow, and inv_std then enlarges what it lost.
    y_error = np.abs(gamma) * (xhat_error + U * np.abs(xhat)) + moves * (U * np.abs(y) + TINY * (inv_std + 2))
    return Elements(gamma * inv_std, xhat, y, xhat_rounding, xhat_error, y_error)


def backward_bounds(
    e: Elements, dy: Host, inv_std: Host, off: Uncertainty, training: bool, relu: bool, sums: float | None = None
) -> dict[str, Host]:
    """Bounds of dx, dgamma and dbeta; `sums` as in `statistics_uncertainty`."""
    dy = dy.astype(np.float64)
    axes = tuple(range(dy.ndim - 1))
    rows = max(dy[..., 0].size, 1)
    unsure = np.zeros(dy.shape, bool)
    if relu:
        # Where y is within its error of 0, ReLU may close for one and not for the other: dy may count or not.
        unsure = (np.abs(e.y) <= e.y_error) & (e.y_error > 0)
        dy = np.where((e.y > 0) | np.isnan(e.y) | unsure, dy, 0)
    flips = np.where(unsure, np.abs(dy), 0)
    sums = summation(rows) if sums is None else sums
    g, g_xhat = np.abs(dy), np.abs(dy * e.xhat)
    dbeta, dgamma = np.abs(dy.sum(axis=axes)), np.abs((dy * e.xhat).sum(axis=axes))
    floor = TINY * (inv_std + 2)

    dbeta_error = sums * g.sum(axis=axes) + U * dbeta + flips.sum(axis=axes)
    # The errors of mean and inv_std are the same in all rows, so they meet the sums; roundings meet the terms.
    dgamma_error = (
        (sums + U) * g_xhat.sum(axis=axes)
        + (g * e.xhat_rounding).sum(axis=axes)
        + inv_std * off.mean * dbeta
        + (off.inv_std + 2 * U) * dgamma
        + (flips * np.abs(e.xhat)).sum(axis=axes)
        + rows * floor
    )
    slope = np.abs(e.slope)
    relative = off.inv_std + 3 * U  # of the slope: inv_std, gamma's product; and the last product
    if not training:
        return {"dx": slope * (relative * g + flips) + TINY, "dgamma": dgamma_error, "dbeta": dbeta_error}
    mean_g, mean_gx = dbeta / rows, dgamma / rows
    projection = np.abs(e.xhat) * mean_gx
    # g - mean(g) - xhat * mean(g * xhat): each part's own error, two roundings each on the way, and two differences.
    inner = (
        dbeta_error / rows
        + 2 * U * mean_g
        + e.xhat_error * mean_gx
        + np.abs(e.xhat) * (dgamma_error / rows)
        + 3 * U * projection
        + 2 * U * (g + mean_g)
        + U * projection
        + flips
        + floor
    )
    dx = np.abs(dy - dy.sum(axis=axes) / rows - e.xhat * (dy * e.xhat).sum(axis=axes) / rows)
    return {"dx": slope * (inner + relative * dx) + TINY, "dgamma": dgamma_error, "dbeta": dbeta_error}


def sums_bounds(e: Elements, dy: Host, inv_std: Host, relu: bool, sums: float | None = None) -> dict[str, Host]:
    """Bounds of dgamma, dbeta, mean_g and slope, for statistics that are inputs; `sums` as in `backward_bounds`."""
    known = backward_bounds(e, dy, inv_std, GIVEN, True, relu, sums)
    dgamma, dbeta = known["dgamma"], known["dbeta"]
    rows = max(dy.size // dy.shape[-1], 1)
    if relu:
        dy = np.where((e.y > 0) | np.isnan(e.y), dy, 0)
    axes = tuple(range(dy.ndim - 1))
    mean_g = np.abs(dy.astype(np.float64).sum(axis=axes)) / rows
    slope = inv_std * np.abs((dy * e.xhat).sum(axis=axes)) / rows
    # What the sums are off by, and the division; for the slope the product with inv_std too, which enlarges what an
    # underflow of the quotient has lost. Of either, what the sum is off by is multiplied as well: 3 for 2, and 2 for 1.
    of_mean = dbeta / rows + 2 * U * mean_g + TINY
    of_slope = inv_std * dgamma / rows * (1 + 4 * U) + 3 * U * slope + TINY * (inv_std + 1)
    return {"dgamma": dgamma, "dbeta": dbeta, "mean_g": of_mean, "slope": of_slope}


def pending_bound(
    e: Elements, x: Host, dy: Host, statistics: BatchStatistics, mean_g: Host, slope: Host, relu: bool
) -> Host:
    """Of dx = inv_std * gamma * ((g - mean_g) - centred * slope), where all of these are given."""
    dy = dy.astype(np.float64)
    flips: Host = np.zeros(())
    if relu:  # as in `backward_bounds`
        unsure = (np.abs(e.y) <= e.y_error) & (e.y_error > 0)
        dy = np.where((e.y > 0) | np.isnan(e.y) | unsure, dy, 0)
        flips = np.where(unsure, np.abs(dy), 0)
    far = x.astype(np.float64) - statistics.shift
    near = far - statistics.delta
    projection = near * slope
    inner = (dy - mean_g) - projection
    # g - mean_g rounds; centred twice, and its product with the slope; then their difference.
    rounding = U * (
        np.abs(dy - mean_g) + np.abs(slope) * (np.abs(far) + np.abs(near)) + np.abs(projection) + np.abs(inner)
    )
    # gamma's product with inv_std and the last product round; either product can underflow.
    result: Host = np.abs(e.slope) * ((1 + 4 * U) * (rounding + flips + TINY) + 2 * U * np.abs(inner)) + TINY
    return result


def add_relu_bound(e: Elements, residual: Host) -> Host:
    """Of max(y + residual, 0): y's error, and the rounding of a sum, unless one of the two is 0."""
    residual = residual.astype(np.float64)
    rounds = (residual != 0) & ((e.y != 0) | (e.y_error > 0))
    return e.y_error + np.where(rounds, U * np.abs(e.y + residual), 0)


def add_relu_backward_bounds(
    e: Elements, y: Host, dy: Host, inv_std: Host, training: bool, sums: float | None = None
) -> dict[str, Host]:
    """Bounds of dx, dresidual, dgamma and dbeta behind a ReLU whose output y is given: its mask is sure."""
    masked = np.where(y <= 0, 0, dy)
    return {"dresidual": np.zeros(()), **backward_bounds(e, masked, inv_std, GIVEN, training, False, sums)}


def update_bound(before: Host, batch: Host, factor: float, off: Host | float = 0.0) -> Host:
    """Of before + factor * (batch - before), in that form or as (1 - factor) * before + factor * batch.

    Factor, its product and what is multiplied round: three times each term, once more the batch's (shift + delta, or
    rows / (rows - 1)); and their sum. `off` is what the batch's value is off by.
    """
    before = before.astype(np.float64)
    after = before + factor * (batch - before)
    return U * (3 * np.abs(before) + 4 * factor * np.abs(batch) + np.abs(after)) + factor * off + TINY
