"""Group, layer and instance normalization on the CPU; the loops are in group_norm_loops.py."""

from typing import Any

import numpy as np

from kernels.batch_statistics import BatchStatistics
from minidl.backends.cpu import group_norm_loops as loops
from minidl.backends.cpu.batchnorm import chunk_starts
from minidl.backends.cpu.batchnorm_loops import CHUNK
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.passes import pass_table, repeats

GRAIN_ELEMENTS = 1 << 15  # a piece of work for a thread
FEW, MANY = 8, CHUNK  # samples of one row that a thread takes at once


def _grain(elements: int) -> int:
    """Pieces of so many elements that are worth a thread."""
    return max(1, GRAIN_ELEMENTS // max(1, elements))


def _samples(x: np.ndarray) -> np.ndarray:
    """X (n, ..., c) as (n, rows, c)."""
    rows = int(np.prod(x.shape[1:-1], dtype=np.int64))
    return x.reshape(x.shape[0], rows, x.shape[-1])


def _matrix(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


class GroupNormOps(CpuDevice):
    """The group normalization part of the CPU backend; see `Backend` for the operations."""

    def group_norm_statistics(self, x: np.ndarray, groups: int, eps: float, out: BatchStatistics) -> None:
        n, rows, channels = (samples := _samples(x)).shape
        if rows == 1:
            size = channels // groups
            flat = (part.reshape(-1) for part in out)
            sets = samples.reshape(-1, size)
            self.workers.run(loops.statistics_of_rows, len(sets), _grain(size), sets, eps, *flat)
            return
        chunks = -(-rows // CHUNK)
        found = self.empty((n, 3, chunks, channels))
        pieces = _grain(channels * min(rows, CHUNK))
        each, width = samples.reshape(n, rows * channels), channels * repeats(channels)
        given = pass_table(), channels, width, each, chunk_starts(rows), found
        self.workers.run(loops.sum_pieces, n * chunks, pieces, *given)
        self.workers.run(loops.finish_statistics, n, _grain(rows * channels), rows, eps, found, *out)

    def group_norm_apply(
        self,
        x: np.ndarray,
        statistics: BatchStatistics,
        groups: int,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
    ) -> None:
        del groups  # the statistics say
        channels = x.shape[-1]
        matrix, rows = _matrix(x), _samples(x).shape[1]
        known = statistics.shift, statistics.delta, statistics.inv_std
        given = *known, self._or(gamma, channels, 1), self._or(beta, channels, 0), _matrix(y)
        if rows == 1:
            self.workers.run(loops.apply_to_rows, len(matrix), _grain(channels), matrix, *given)
        else:
            self.workers.run(loops.apply, len(matrix), _grain(channels), matrix, rows, *given)

    def group_norm_backward(
        self,
        x: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        groups: int,
        gamma: np.ndarray | None,
        dx: np.ndarray,
        dgamma: np.ndarray | None,
        dbeta: np.ndarray | None,
    ) -> None:
        n, rows, channels = (samples := _samples(x)).shape
        factor = self._or(gamma, channels, 1)
        centre = statistics.shift, statistics.delta
        if rows == 1:
            chunk = min(MANY, max(FEW, _grain(channels)))
            sums, products = self.empty((2, -(-n // chunk), 1, channels))
            arrays = (*centre, statistics.inv_std, factor, _matrix(dx), sums[:, 0], products[:, 0])
            self.workers.run(loops.backward_of_rows, len(sums), 1, _matrix(x), _matrix(dy), chunk, *arrays)
            already = np.ones((len(sums), 1), np.float32)  # products are of xhat
            self._affine(already, sums, products, dgamma, dbeta)
            return
        chunks = -(-rows // CHUNK)
        sums, products = self.empty((2, n, chunks, channels))
        pieces = _grain(channels * min(rows, CHUNK))
        self.workers.run(loops.sum_gradients, n * chunks, pieces, samples, _samples(dy), *centre, sums, products)
        mean_g, slope = self.empty((2, n, groups))
        given = statistics.inv_std, factor, sums, products, mean_g, slope
        self.workers.run(loops.finish_gradients, n, _grain(rows * channels), rows, *given)
        self._affine(statistics.inv_std, sums, products, dgamma, dbeta)
        args = _matrix(x), _matrix(dy), rows, *centre, statistics.inv_std, factor, mean_g, slope, _matrix(dx)
        self.workers.run(loops.backward, n * rows, _grain(channels), *args)

    def _affine(self, inv_std: np.ndarray, sums: np.ndarray, products: np.ndarray, dgamma: Any, dbeta: Any) -> None:
        if dgamma is None and dbeta is None:
            return
        channels = sums.shape[-1]
        dgamma, dbeta = (self.empty((channels,)) if array is None else array for array in (dgamma, dbeta))
        loops.finish_affine(inv_std, sums, products, dgamma, dbeta)

    def _or(self, array: np.ndarray | None, channels: int, value: float) -> np.ndarray:
        """`array`, or as many numbers that change nothing."""
        if array is None:
            array = self.empty((channels,))
            array[:] = value
        return array
