"""The norm of many arrays, and clipping by it, on the CPU. Squares of float32 numbers fit into float64 as they are."""

from collections.abc import Sequence

import numpy as np

from kernels.gradient_norm import EPS
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice

GRAIN = 1 << 16  # elements in a piece of work
LANES = 32  # sums that are carried side by side, so that the loop over them is one of vectors


@compiled
def _sum_squares(first, last, x, sums):
    """Pieces first to last, of GRAIN elements: the sums of squares, one a lane."""
    for piece in range(first, last):
        s = sums[piece]
        s[:] = 0.0
        begin, end = piece * GRAIN, min((piece + 1) * GRAIN, x.size)
        whole = begin + (end - begin) // LANES * LANES
        for at in range(begin, whole, LANES):
            for j in range(LANES):
                value = np.float64(x[at + j])
                s[j] += value * value
        for i in range(whole, end):
            value = np.float64(x[i])
            s[i - whole] += value * value


@compiled
def _scale(first, last, x, factor):
    for i in range(first, last):
        x[i] *= factor


class GradientNormOps(CpuDevice):
    """Gradient clipping on the CPU backend; see `Backend` for the operations."""

    def global_norm(self, arrays: Sequence[np.ndarray], norm: np.ndarray) -> None:
        total = 0.0
        with np.errstate(all="ignore"):
            for array in arrays:
                sums = self.empty((-(-array.size // GRAIN), LANES), np.float64)
                self.workers.run(_sum_squares, len(sums), 1, array.reshape(-1), sums, elements=array.size)
                total += float(sums.sum())
            norm[...] = np.sqrt(total)

    def clip_by_norm(self, arrays: Sequence[np.ndarray], norm: np.ndarray, max_norm: float) -> None:
        with np.errstate(all="ignore"):
            factor = np.float32(np.minimum(1.0, max_norm / (np.float64(norm) + EPS)))
        if factor == 1:
            return
        for array in arrays:
            self.workers.run(_scale, array.size, GRAIN, array.reshape(-1), factor, elements=array.size)
