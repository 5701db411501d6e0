"""Batch normalization on the CPU; its loops are in batchnorm_loops.py."""

import functools

import numpy as np

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm import cumulative_weight_reference
from minidl.backends.cpu import batchnorm_loops as loops
from minidl.backends.cpu.batchnorm_frame import place, plan, work
from minidl.backends.cpu.batchnorm_vectors import work_address
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.passes import (
    GRADIENT,
    GRADIENT_AROUND,
    GRADIENT_RELU,
    GRADIENT_RELU_AROUND,
    MASK_AND_SCALE,
    MASK_BY_OUTPUT_AND_SUM,
    NORMALIZE,
    NORMALIZE_ADD_RELU,
    NORMALIZE_AROUND,
    NORMALIZE_RELU,
    NORMALIZE_RELU_AROUND,
    SCALED,
    SUM_GRADIENTS,
    SUM_GRADIENTS_RELU,
    SUM_SHIFTED,
    pass_table,
    repeats,
    run_pass,
)
from minidl.backends.cpu.threads import QUIET

# Passes: of sums, of what is written then, and of what writes it around the caches.
_FORWARD, _FORWARD_RELU, _FORWARD_ADD, _BACKWARD, _BACKWARD_RELU = (
    (SUM_SHIFTED, NORMALIZE, NORMALIZE_AROUND),
    (SUM_SHIFTED, NORMALIZE_RELU, NORMALIZE_RELU_AROUND),
    (SUM_SHIFTED, NORMALIZE_ADD_RELU, None),
    (SUM_GRADIENTS, GRADIENT, GRADIENT_AROUND),
    (SUM_GRADIENTS_RELU, GRADIENT_RELU, GRADIENT_RELU_AROUND),
)
GRAIN_ELEMENTS = 1 << 15  # a piece of work for a thread


@functools.lru_cache(256)
def chunk_starts(rows: int) -> np.ndarray:
    """Where chunks of CHUNK rows begin, and `rows`."""
    return np.append(np.arange(0, rows, loops.CHUNK), rows)


def _grain(channels: int) -> int:
    return max(1, GRAIN_ELEMENTS // max(1, channels))


def parameters_of(normalization: Normalization, sums: GradientSums | None = None) -> np.ndarray:
    """What belongs to channels, as the loops read it."""
    statistics, gamma, beta, _ = normalization
    with np.errstate(**QUIET):
        scale = statistics.inv_std if gamma is None else statistics.inv_std * gamma
    mean_g, slope = (0, 0) if sums is None else (sums.mean_g, sums.slope)
    channels = len(statistics.shift)
    parameters = np.empty((6, repeats(channels), channels), np.float32)
    for row, values in enumerate(
        (statistics.shift, statistics.delta, scale, 0 if beta is None else beta, mean_g, slope)
    ):
        parameters[row] = values
    return parameters.reshape(6, -1)


class BatchNormOps(CpuDevice):
    """The batch normalization part of the CPU backend; see `Backend` for the operations."""

    def batchnorm_statistics(self, x: np.ndarray, eps: float, out: BatchStatistics) -> None:
        matrix = x.reshape(-1, x.shape[-1])
        rows, channels = matrix.shape
        starts, flat = chunk_starts(rows), x.reshape(-1)
        width = channels * repeats(channels)
        found = self._sum_chunks(SUM_SHIFTED, (flat, flat, flat), channels, flat, width, starts, flat)
        loops.finish_statistics(matrix, starts, eps, found, *out)

    def _sum_chunks(
        self,
        which: int,
        arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
        channels: int,
        parameters: np.ndarray,
        width: int,
        starts: np.ndarray,
        g: np.ndarray,
    ) -> np.ndarray:
        """`loops.sum_chunks` of all chunks of flat arrays."""
        chunks = len(starts) - 1
        found = self.empty((3, chunks, channels))
        grain = max(1, _grain(channels) // loops.CHUNK)
        given = *arrays, channels, width, starts, parameters, g, found
        self.workers.run(loops.sum_chunks, chunks, grain, pass_table(), which, *given, elements=arrays[0].size)
        return found

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
        parameters = parameters_of(Normalization(statistics, gamma, beta, relu))
        self._go_through(NORMALIZE_RELU if relu else NORMALIZE, x, x, parameters, y)

    def _go_through(self, which: int, a: np.ndarray, b: np.ndarray, parameters: np.ndarray, y: np.ndarray) -> None:
        """Run a pass without sums."""
        channels, width = a.shape[-1], parameters.shape[1]
        places = a.ctypes.data, b.ctypes.data, a.ctypes.data, y.ctypes.data
        self.workers.run(
            *(run_pass, a.size, _grain(channels) * channels, which, width, parameters.ctypes.data, *places),
            elements=a.size,
        )

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
        if training and x.size:
            passes, arrays = _BACKWARD_RELU if relu else _BACKWARD, (x, dy, x, x, dx)
            self._work(False, passes, arrays, gamma, beta, statistics, 0.0, dgamma, dbeta)
            return
        normalization = Normalization(statistics, gamma, beta, relu)
        sums = GradientSums(dgamma, dbeta, self.empty(x.shape[-1:]), self.empty(x.shape[-1:]))
        if training or dgamma is not None or dbeta is not None:
            self.batchnorm_gradient_sums(x, dy, normalization, sums)
        if training:
            self.batchnorm_pending_gradient(PendingGradient(dy, x, normalization, sums), dx)
            return
        parameters = parameters_of(normalization)
        self._go_through(*((MASK_AND_SCALE, x, dy) if relu else (SCALED, dy, dy)), parameters, dx)

    def batchnorm_gradient_sums(
        self, x: np.ndarray, dy: np.ndarray, normalization: Normalization, sums: GradientSums
    ) -> None:
        which = SUM_GRADIENTS_RELU if normalization.relu else SUM_GRADIENTS
        self.sum_gradients(which, x, dy, dy, normalization, dy, sums)

    def batchnorm_pending_gradient(self, dy: PendingGradient, dx: np.ndarray) -> None:
        parameters = parameters_of(dy.normalization, dy.sums)
        self._go_through(GRADIENT_RELU if dy.normalization.relu else GRADIENT, dy.x, dy.dy, parameters, dx)

    def sum_gradients(
        self,
        which: int,
        x: np.ndarray,
        dy: np.ndarray,
        y: np.ndarray,
        normalization: Normalization,
        g: np.ndarray,
        sums: GradientSums,
    ) -> None:
        """The first pass of backward: chunk by chunk, by pass `which`, and then all chunks."""
        parameters, inv_std = parameters_of(normalization), normalization.statistics.inv_std
        channels, width = len(inv_std), parameters.shape[1]
        starts = chunk_starts(x.size // channels)
        arrays = x.reshape(-1), dy.reshape(-1), y.reshape(-1)
        found = self._sum_chunks(which, arrays, channels, parameters.reshape(-1), width, starts, g.reshape(-1))
        self.finish_gradients(int(starts[-1]), inv_std, found, sums)

    def finish_gradients(self, rows: int, inv_std: np.ndarray, found: np.ndarray, sums: GradientSums) -> None:
        """Into `sums`, from those of chunks."""
        into = (self.empty(inv_std.shape) if array is None else array for array in sums)
        loops.finish_gradients(max(rows, 1), inv_std, found, *into)

    def _work(
        self,
        forward: bool,
        passes: tuple[int, int, int | None],
        arrays: tuple[np.ndarray, ...],
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        statistics: BatchStatistics,
        eps: float = 0.0,
        dgamma: np.ndarray | None = None,
        dbeta: np.ndarray | None = None,
    ) -> None:
        """All of a normalization, or of the way back, in one call; `arrays` are x, dy, c, g and y."""
        x, channels = arrays[0], arrays[0].shape[-1]
        frame, size, ones, zeros, pieces = plan(x.size, channels, eps, passes)
        frame, scratch = frame.copy(), self.workers.scratch("batchnorm", size)
        given = [array.reshape(-1) for array in arrays]
        given += ones if gamma is None else gamma, zeros if beta is None else beta, *statistics
        given += scratch if dgamma is None else dgamma, scratch if dbeta is None else dbeta, scratch
        place(frame, *given)
        calls, elements = min(pieces, self.workers.threads), x.size if forward else 2 * x.size  # of x and dy
        self.workers.run(work, calls, 1, work_address(forward), frame, elements=elements)

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
        if x.size == 0:
            self.batchnorm_statistics(x, eps, out)
            return
        apply = _FORWARD_RELU if relu else _FORWARD
        other = x if residual is None else residual
        self._work(True, apply if residual is None else _FORWARD_ADD, (x, other, x, x, y), gamma, beta, out, eps)

    def batchnorm_add_relu_apply(
        self,
        x: np.ndarray,
        residual: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
    ) -> None:
        parameters = parameters_of(Normalization(statistics, gamma, beta, relu=True))
        self._go_through(NORMALIZE_ADD_RELU, x, residual, parameters, y)

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
            parameters = parameters_of(Normalization(statistics, gamma, gamma, relu=False))
            self._go_through(SCALED, dresidual, dresidual, parameters, dx)

    def batchnorm_add_relu_gradient_sums(
        self,
        x: np.ndarray,
        y: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        dresidual: np.ndarray,
        sums: GradientSums,
    ) -> None:
        normalization = Normalization(statistics, None, None, relu=True)
        self.sum_gradients(MASK_BY_OUTPUT_AND_SUM, x, dy, y, normalization, dresidual, sums)
