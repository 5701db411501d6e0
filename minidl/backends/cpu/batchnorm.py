"""Batch normalization on the CPU; its loops are in batchnorm_loops.py."""

from typing import Any

import numpy as np

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm import cumulative_weight_reference
from minidl.backends.cpu import batchnorm_loops as loops
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.threads import QUIET

GRAIN_ELEMENTS = 1 << 15  # a piece of work for a thread; below it a second thread costs more than it saves


def _grain(channels: int) -> int:
    return max(1, GRAIN_ELEMENTS // max(1, channels))


def _matrix(x: np.ndarray) -> np.ndarray:
    """Its rows and channels."""
    return x.reshape(-1, x.shape[-1])


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
        chunks = -(-rows // loops.CHUNK)
        shifts, sums, squares = self.empty((3, chunks, channels))
        self.workers.run(
            loops.sum_shifted, chunks, max(1, _grain(channels) // loops.CHUNK), matrix, shifts, sums, squares
        )
        loops.finish_statistics(rows, eps, shifts, sums, squares, *out)

    def batchnorm_running_statistics(self, mean: np.ndarray, var: np.ndarray, eps: float, out: BatchStatistics) -> None:
        out.shift[:] = mean
        out.delta[:] = 0
        out.var[:] = var
        with np.errstate(**QUIET):
            out.inv_std[:] = 1 / np.sqrt(var.astype(np.float64) + eps)

    def batchnorm_update_running(
        self,
        batch: BatchStatistics,
        rows: int,
        factor: float | np.ndarray,
        running_mean: np.ndarray,
        running_var: np.ndarray,
    ) -> None:
        with np.errstate(**QUIET):
            mean = batch.shift.astype(np.float64) + batch.delta
            var = batch.var * (rows / (rows - 1.0))
            running_mean[:] = (1 - factor) * running_mean + factor * mean
            running_var[:] = (1 - factor) * running_var + factor * var

    def cumulative_weight(self, count: np.ndarray, part: int, parts: int, weight: np.ndarray) -> None:
        weight[...] = cumulative_weight_reference(int(count), part, parts)

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
        self.workers.run(loops.apply_relu if relu else loops.apply, len(matrix), _grain(channels), *args)

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
        chunks = -(-rows // loops.CHUNK)
        scale, offset = _scale_and_beta(statistics, gamma, beta)
        forward = matrix, gradient, statistics.shift, statistics.delta, scale, offset, relu
        mean_g, slope = self.empty((channels,)), self.empty((channels,))
        if training or dgamma is not None or dbeta is not None:
            sums, products = self.empty((chunks, channels)), self.empty((chunks, channels))
            self.workers.run(
                loops.sum_gradients, chunks, max(1, _grain(channels) // loops.CHUNK), *forward, sums, products
            )
            dgamma = self.empty((channels,)) if dgamma is None else dgamma
            dbeta = self.empty((channels,)) if dbeta is None else dbeta
            loops.finish_gradients(rows, statistics.inv_std, sums, products, dgamma, dbeta, mean_g, slope)
        result, grain = dx.reshape(-1, channels), _grain(channels)
        if training:
            self.workers.run(loops.backward, rows, grain, *forward, mean_g, slope, result)
        elif relu:
            self.workers.run(loops.mask_and_scale, rows, grain, *forward[:-1], result)
        else:
            self.workers.run(loops.scale, rows, grain, gradient, scale, result)

    def batchnorm_forward(
        self,
        x: np.ndarray,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        eps: float,
        out: BatchStatistics,
        y: np.ndarray,
        relu: bool,
        residual: np.ndarray | None = None,
    ) -> None:
        self.batchnorm_statistics(x, eps, out)
        if residual is None:
            self.batchnorm_apply(x, out, gamma, beta, y, relu)
        else:
            self.batchnorm_add_relu_apply(x, residual, out, gamma, beta, y)

    def batchnorm_add_relu_apply(
        self,
        x: np.ndarray,
        residual: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
    ) -> None:
        scale, offset = _scale_and_beta(statistics, gamma, beta)
        matrix, other, result = (_matrix(array) for array in (x, residual, y))
        args = matrix, other, statistics.shift, statistics.delta, scale, offset, result
        self.workers.run(loops.apply_add_relu, len(matrix), _grain(x.shape[-1]), *args)

    def batchnorm_add_relu_backward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        dx: np.ndarray,
        dresidual: np.ndarray,
        dgamma: np.ndarray | None,
        dbeta: np.ndarray | None,
        training: bool,
    ) -> None:
        channels = x.shape[-1]
        matrix, output, gradient, masked, result = (_matrix(array) for array in (x, y, dy, dresidual, dx))
        rows = len(matrix)
        chunks = -(-rows // loops.CHUNK)
        centre = statistics.shift, statistics.delta
        sums, products = self.empty((chunks, channels)), self.empty((chunks, channels))
        args = matrix, output, gradient, *centre, masked, sums, products
        self.workers.run(loops.mask_and_sum_gradients, chunks, max(1, _grain(channels) // loops.CHUNK), *args)
        dgamma, dbeta, mean_g, slope = (
            self.empty((channels,)) if array is None else array for array in (dgamma, dbeta, None, None)
        )
        loops.finish_gradients(rows, statistics.inv_std, sums, products, dgamma, dbeta, mean_g, slope)
        scale, unread = _scale_and_beta(statistics, gamma, gamma)
        if training:
            forward = matrix, masked, *centre, scale, unread, False
            self.workers.run(loops.backward, rows, _grain(channels), *forward, mean_g, slope, result)
        else:
            self.workers.run(loops.scale, rows, _grain(channels), masked, scale, result)
