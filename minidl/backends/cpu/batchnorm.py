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
GRAIN_ELEMENTS = 1 << 15  # a piece of work for a thread; below it a second thread costs more than it saves


@compiled
def _choose_shift(x, shift):
    """The median of a channel's first, middle and last element: one outlier cannot be it. 0 where it is not finite."""
    rows = x.shape[0]
    for c in range(x.shape[1]):
        a, b, d = x[0, c], x[rows // 2, c], x[rows - 1, c]
        median = max(min(a, b), min(max(a, b), d))
        shift[c] = median if np.isfinite(median) else np.float32(0)


@compiled
def _sum_shifted(first, last, x, shift, sums, squares):
    """Chunks first to last: sums[k] and squares[k] of x - shift over chunk k."""
    rows, channels = x.shape
    for k in range(first, last):
        s, q = sums[k], squares[k]
        s[:] = np.float32(0)
        q[:] = np.float32(0)
        begin, end = k * CHUNK, min((k + 1) * CHUNK, rows)
        paired = begin + (end - begin) // 4 * 4
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
def _finish_statistics(rows, eps, sums, squares, delta, var, inv_std):
    for c in range(delta.size):
        s = q = 0.0
        for k in range(sums.shape[0]):
            s += sums[k, c]
            q += squares[k, c]
        mean = s / rows
        # Rounding can leave a tiny negative number where the channel is constant; NaN must pass.
        v = q / rows - mean * mean
        v = 0.0 if v < 0.0 else v
        delta[c] = mean
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
        sums, squares = self.empty((chunks, channels)), self.empty((chunks, channels))
        _choose_shift(matrix, out.shift)
        self.workers.run(_sum_shifted, chunks, max(1, _grain(channels) // CHUNK), matrix, out.shift, sums, squares)
        _finish_statistics(rows, eps, sums, squares, out.delta, out.var, out.inv_std)

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
