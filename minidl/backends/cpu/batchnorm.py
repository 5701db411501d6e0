"""Batch normalization on the CPU; its loops are in batchnorm_loops.py."""

from typing import Any

import numpy as np

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
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


def _forward(x: np.ndarray, dy: np.ndarray, normalization: Normalization) -> tuple[Any, ...]:
    """What the loops of backward read of forward, and dy."""
    statistics, gamma, beta, relu = normalization
    return _matrix(x), _matrix(dy), statistics.shift, statistics.delta, *_scale_and_beta(statistics, gamma, beta), relu


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
        loops.finish_statistics(matrix, eps, shifts, sums, squares, *out)

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
        normalization = Normalization(statistics, gamma, beta, relu)
        sums = GradientSums(dgamma, dbeta, self.empty(x.shape[-1:]), self.empty(x.shape[-1:]))
        if training or dgamma is not None or dbeta is not None:
            self.batchnorm_gradient_sums(x, dy, normalization, sums)
        if training:
            self.batchnorm_pending_gradient(PendingGradient(dy, x, normalization, sums), dx)
            return
        scale, offset = _scale_and_beta(statistics, gamma, beta)
        matrix, gradient, result = (_matrix(array) for array in (x, dy, dx))
        given: tuple[Any, ...] = gradient, scale, result
        if relu:
            given = matrix, gradient, statistics.shift, statistics.delta, scale, offset, result
        self.workers.run(loops.mask_and_scale if relu else loops.scale, len(matrix), _grain(x.shape[-1]), *given)

    def batchnorm_gradient_sums(
        self, x: np.ndarray, dy: np.ndarray, normalization: Normalization, sums: GradientSums
    ) -> None:
        forward = _forward(x, dy, normalization)
        self._sum_gradients(loops.sum_gradients, forward, normalization.statistics.inv_std, sums)

    def batchnorm_pending_gradient(self, dy: PendingGradient, dx: np.ndarray) -> None:
        forward = _forward(dy.x, dy.dy, dy.normalization)
        given = *forward, dy.sums.mean_g, dy.sums.slope, _matrix(dx)
        self.workers.run(loops.backward, len(forward[0]), _grain(dx.shape[-1]), *given)

    def _sum_gradients(self, loop: Any, given: tuple[Any, ...], inv_std: np.ndarray, sums: GradientSums) -> None:
        """The first pass of backward: chunk by chunk, by that loop, and then all chunks."""
        rows, channels = given[0].shape
        chunks = -(-rows // loops.CHUNK)
        totals, products = self.empty((chunks, channels)), self.empty((chunks, channels))
        self.workers.run(loop, chunks, max(1, _grain(channels) // loops.CHUNK), *given, totals, products)
        into = (self.empty((channels,)) if array is None else array for array in sums)
        loops.finish_gradients(max(rows, 1), inv_std, totals, products, *into)

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
        sums = GradientSums(dgamma, dbeta, self.empty(x.shape[-1:]), self.empty(x.shape[-1:]))
        self.batchnorm_add_relu_gradient_sums(x, y, dy, statistics, dresidual, sums)
        if training:
            normalization = Normalization(statistics, gamma, gamma, relu=False)  # beta is in y; here it is not read
            self.batchnorm_pending_gradient(PendingGradient(dresidual, x, normalization, sums), dx)
        else:
            masked, scale = _matrix(dresidual), _scale_and_beta(statistics, gamma, gamma)[0]
            self.workers.run(loops.scale, len(masked), _grain(x.shape[-1]), masked, scale, _matrix(dx))

    def batchnorm_add_relu_gradient_sums(
        self,
        x: np.ndarray,
        y: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        dresidual: np.ndarray,
        sums: GradientSums,
    ) -> None:
        arrays = (_matrix(array) for array in (x, y, dy))
        given = *arrays, statistics.shift, statistics.delta, _matrix(dresidual)
        self._sum_gradients(loops.mask_and_sum_gradients, given, statistics.inv_std, sums)
