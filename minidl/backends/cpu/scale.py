"""Scaling by one learned factor on the CPU."""

import numpy as np

from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice

GRAIN = 1 << 16  # elements in a piece of work
LANES = 64  # sums that are carried side by side, so that the loop over them is one of vectors
PIECE = 128 * LANES  # elements whose products are summed in float32, 128 of them in a row, before float64 takes over


@compiled
def _scale(first, last, x, factor, y):
    for i in range(first, last):
        y[i] = factor * x[i]


@compiled
def _scale_backward(first, last, x, dy, factor, dx, sums):
    """Pieces first to last: dx, and the sums of dy * x, one a lane."""
    for piece in range(first, last):
        s = sums[piece]
        s[:] = np.float32(0)
        begin, end = piece * PIECE, min((piece + 1) * PIECE, x.size)
        whole = begin + (end - begin) // LANES * LANES
        for at in range(begin, whole, LANES):
            for j in range(LANES):
                g = dy[at + j]
                s[j] += g * x[at + j]
                dx[at + j] = factor * g
        for i in range(whole, end):
            g = dy[i]
            s[i - whole] += g * x[i]
            dx[i] = factor * g


class ScaleOps(CpuDevice):
    """The scaling part of the CPU backend; see `Backend` for the operations."""

    def scale_forward(self, x: np.ndarray, factor: np.ndarray, y: np.ndarray) -> None:
        self.workers.run(_scale, x.size, GRAIN, x.reshape(-1), np.float32(factor), y.reshape(-1), elements=x.size)

    def scale_backward(
        self, x: np.ndarray, dy: np.ndarray, factor: np.ndarray, dx: np.ndarray, dfactor: np.ndarray
    ) -> None:
        sums = self.empty((-(-x.size // PIECE), LANES))
        arrays = x.reshape(-1), dy.reshape(-1), np.float32(factor), dx.reshape(-1), sums
        self.workers.run(_scale_backward, len(sums), GRAIN // PIECE, *arrays, elements=2 * x.size)
        with np.errstate(all="ignore"):
            dfactor[...] = sums.sum(dtype=np.float64)
