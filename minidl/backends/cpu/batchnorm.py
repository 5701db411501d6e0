"""Batch normalization on the CPU.

An activation is a matrix of rows and channels, and channels are contiguous, so every loop below runs over channels in
vectors. Rows are summed in chunks of CHUNK in float32 and chunks in float64, in a fixed order: the same bits on any
number of threads, and an error that does not grow with the batch.
"""

from typing import Any

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.backends.cpu.compile import compiled, inlined
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.threads import QUIET

CHUNK = 128  # rows summed in float32 before float64 takes over
HEAD = 8  # rows that a chunk's shift is the mean of
GRAIN_ELEMENTS = 1 << 15  # a piece of work for a thread; below it a second thread costs more than it saves


@inlined
def _head_mean(x, row, c):
    """The mean of HEAD elements, which is theirs exactly if they are equal."""
    origin = x[row, c]
    d1, d2, d3 = x[row + 1, c] - origin, x[row + 2, c] - origin, x[row + 3, c] - origin
    d4, d5, d6, d7 = x[row + 4, c] - origin, x[row + 5, c] - origin, x[row + 6, c] - origin, x[row + 7, c] - origin
    return origin + ((d1 + (d2 + d3)) + ((d4 + d5) + (d6 + d7))) * np.float32(1 / HEAD)


@compiled
def _sum_shifted(first, last, x, shifts, sums, squares):
    """Chunks first to last: a shift near the mean of chunk k, and the sums of x - shift and of its square.

    The shift is the mean of the chunk's first HEAD rows: wherever outliers are, the squares sum to at most CHUNK / HEAD
    times what they would about the mean of the chunk. (About a single element it could be CHUNK times.)
    """
    rows, channels = x.shape
    for k in range(first, last):
        shift, s, q = shifts[k], sums[k], squares[k]
        begin, end = k * CHUNK, min((k + 1) * CHUNK, rows)
        paired = begin + (end - begin) // 4 * 4
        s[:] = np.float32(0)
        q[:] = np.float32(0)
        for c in range(channels):
            near = _head_mean(x, begin, c) if begin + HEAD <= end else x[begin, c]
            shift[c] = near if np.isfinite(near) else np.float32(0)
        for row in range(begin, paired, 4):
            for c in range(channels):
                d0 = x[row, c] - shift[c]
                d1 = x[row + 1, c] - shift[c]
                d2 = x[row + 2, c] - shift[c]
                d3 = x[row + 3, c] - shift[c]
                s[c] += (d0 + d1) + (d2 + d3)
                q[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        for row in range(paired, end):
            for c in range(channels):
                d = x[row, c] - shift[c]
                s[c] += d
                q[c] += d * d


@compiled
def _finish_statistics(rows, eps, shifts, sums, squares, shift, delta, var, inv_std):
    """The chunks' sums, moved from their shifts to the mean of all, in float64.

    With D = a chunk's shift - mean, over its n rows: sum (x - mean)² = squares + 2 D sums + n D².
    """
    chunks, channels = sums.shape
    mean, moment = np.zeros(channels), np.zeros(channels)
    for k in range(chunks):
        n = min(CHUNK, rows - k * CHUNK)
        for c in range(channels):
            mean[c] += np.float64(shifts[k, c]) * n + sums[k, c]
    mean /= rows
    for k in range(chunks):
        n = min(CHUNK, rows - k * CHUNK)
        for c in range(channels):
            distance = shifts[k, c] - mean[c]
            moment[c] += squares[k, c] + distance * (2 * sums[k, c] + n * distance)
    for c in range(channels):
        near = np.float32(mean[c])
        shift[c] = near if np.isfinite(near) else np.float32(0)
        delta[c] = mean[c] - shift[c]
        # Rounding could leave a negative number where the variance is tiny; NaN must pass.
        v = moment[c] / rows
        v = 0.0 if v < 0.0 else v
        var[c] = v
        inv_std[c] = 1.0 / np.sqrt(v + eps)


@inlined
def _normalized(x, shift, delta, scale, beta):
    """Forward's value; backward repeats it to see the sign that ReLU saw, so both round alike."""
    return ((x - shift) - delta) * scale + beta


@compiled
def _apply(first, last, x, shift, delta, scale, beta, y):
    for row in range(first, last):
        for c in range(x.shape[1]):
            y[row, c] = _normalized(x[row, c], shift[c], delta[c], scale[c], beta[c])


@compiled
def _apply_relu(first, last, x, shift, delta, scale, beta, y):
    for row in range(first, last):
        for c in range(x.shape[1]):
            value = _normalized(x[row, c], shift[c], delta[c], scale[c], beta[c])
            y[row, c] = np.float32(0) if value <= np.float32(0) else value  # NaN passes


@compiled
def _sum_gradients(first, last, x, dy, shift, delta, scale, beta, relu, sums, products):
    """Chunks first to last: the sums of g and g * (x - mean), where g is dy, masked by ReLU if there is one."""
    rows, channels = x.shape
    for k in range(first, last):
        s, p = sums[k], products[k]
        s[:] = np.float32(0)
        p[:] = np.float32(0)
        for row in range(k * CHUNK, min((k + 1) * CHUNK, rows)):
            for c in range(channels):
                centred = (x[row, c] - shift[c]) - delta[c]
                g = dy[row, c]
                if relu:
                    g = np.float32(0) if centred * scale[c] + beta[c] <= np.float32(0) else g
                s[c] += g
                p[c] += g * centred


@compiled
def _finish_gradients(rows, inv_std, sums, products, dgamma, dbeta, mean_g, slope):
    """Dgamma = sum g * x̂, dbeta = sum g; mean_g and slope are what `_backward` subtracts."""
    for c in range(inv_std.size):
        s = p = 0.0
        for k in range(sums.shape[0]):
            s += sums[k, c]
            p += products[k, c]
        p *= inv_std[c]
        dbeta[c] = s
        dgamma[c] = p
        mean_g[c] = s / rows
        slope[c] = p / rows * inv_std[c]


@compiled
def _backward(first, last, x, dy, shift, delta, scale, beta, relu, mean_g, slope, dx):
    """Dx = scale * (g - mean(g) - x̂ * mean(g * x̂)), with x̂ = (x - mean) * inv_std."""
    for row in range(first, last):
        for c in range(x.shape[1]):
            centred = (x[row, c] - shift[c]) - delta[c]
            g = dy[row, c]
            if relu:
                g = np.float32(0) if centred * scale[c] + beta[c] <= np.float32(0) else g
            dx[row, c] = scale[c] * ((g - mean_g[c]) - centred * slope[c])


def _grain(channels: int) -> int:
    return max(1, GRAIN_ELEMENTS // max(1, channels))


def _scale_and_beta(statistics: BatchStatistics, gamma: Any, beta: Any) -> tuple[np.ndarray, np.ndarray]:
    if gamma is None:
        return statistics.inv_std, np.zeros_like(statistics.inv_std)
    with np.errstate(**QUIET):
        return statistics.inv_std * gamma, beta


class BatchNormOps(CpuDevice):
    """The batch normalization part of the CPU backend; see `Backend` for the operations."""

    def batchnorm_statistics(self, x: np.ndarray, eps: float, out: BatchStatistics) -> None:
        matrix = x.reshape(-1, x.shape[-1])
        rows, channels = matrix.shape
        chunks = -(-rows // CHUNK)
        shifts, sums, squares = self.empty((3, chunks, channels))
        self.workers.run(_sum_shifted, chunks, max(1, _grain(channels) // CHUNK), matrix, shifts, sums, squares)
        _finish_statistics(rows, eps, shifts, sums, squares, *out)

    def batchnorm_running_statistics(self, mean: np.ndarray, var: np.ndarray, eps: float, out: BatchStatistics) -> None:
        out.shift[:] = mean
        out.delta[:] = 0
        out.var[:] = var
        with np.errstate(**QUIET):
            out.inv_std[:] = 1 / np.sqrt(var.astype(np.float64) + eps)

    def batchnorm_update_running(
        self, batch: BatchStatistics, rows: int, factor: float, running_mean: np.ndarray, running_var: np.ndarray
    ) -> None:
        with np.errstate(**QUIET):
            mean = batch.shift.astype(np.float64) + batch.delta
            var = batch.var * (rows / (rows - 1.0))
            running_mean[:] = (1 - factor) * running_mean + factor * mean
            running_var[:] = (1 - factor) * running_var + factor * var

    def batchnorm_apply(
        self,
        x: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
        relu: bool,
    ) -> None:
        channels = x.shape[-1]
        scale, offset = _scale_and_beta(statistics, gamma, beta)
        matrix = x.reshape(-1, channels)
        args = matrix, statistics.shift, statistics.delta, scale, offset, y.reshape(-1, channels)
        self.workers.run(_apply_relu if relu else _apply, len(matrix), _grain(channels), *args)

    def batchnorm_backward(
        self,
        x: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        dx: np.ndarray,
        dgamma: np.ndarray | None,
        dbeta: np.ndarray | None,
        training: bool,
        relu: bool,
    ) -> None:
        channels = x.shape[-1]
        matrix, gradient = x.reshape(-1, channels), dy.reshape(-1, channels)
        rows = len(matrix)
        chunks = -(-rows // CHUNK)
        scale, offset = _scale_and_beta(statistics, gamma, beta)
        forward = matrix, gradient, statistics.shift, statistics.delta, scale, offset, relu
        mean_g, slope = self.empty((channels,)), self.empty((channels,))
        if training or dgamma is not None:
            sums, products = self.empty((chunks, channels)), self.empty((chunks, channels))
            self.workers.run(_sum_gradients, chunks, max(1, _grain(channels) // CHUNK), *forward, sums, products)
            dgamma = self.empty((channels,)) if dgamma is None else dgamma
            dbeta = self.empty((channels,)) if dbeta is None else dbeta
            _finish_gradients(rows, statistics.inv_std, sums, products, dgamma, dbeta, mean_g, slope)
        if not training:  # fixed statistics do not depend on x: nothing to subtract
            mean_g[:] = 0
            slope[:] = 0
        self.workers.run(_backward, rows, _grain(channels), *forward, mean_g, slope, dx.reshape(-1, channels))
