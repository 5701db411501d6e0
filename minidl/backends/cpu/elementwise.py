"""ReLU, addition, channel concatenation, flattening order and dropout on the CPU."""

from collections.abc import Sequence

import numpy as np

from kernels.random import keep_threshold, philox4x32, seed_words
from minidl.backends.cpu.compile import compiled, inlined
from minidl.backends.cpu.device import CpuDevice

GRAIN = 1 << 16  # elements in a piece of work


# Loops from 0 over a piece: from `first` on, LLVM does not make them vectors, and they take ten times as long.


@compiled
def _relu(first, last, x, y):
    x, y = x[first:last], y[first:last]
    for i in range(x.size):
        y[i] = np.float32(0) if x[i] <= np.float32(0) else x[i]  # NaN passes


@compiled
def _relu_backward(first, last, dy, y, dx):
    dy, y, dx = dy[first:last], y[first:last], dx[first:last]
    for i in range(y.size):
        dx[i] = np.float32(0) if y[i] <= np.float32(0) else dy[i]


@compiled
def _add(first, last, a, b, out):
    a, b, out = a[first:last], b[first:last], out[first:last]
    for i in range(a.size):
        out[i] = a[i] + b[i]


_philox = inlined(philox4x32)


@compiled
def _dropout(first, last, x, y, threshold, scale, stream, call, seed_low, seed_high):
    """Blocks first to last of four elements, one block of random words each; see kernels/random.py."""
    for block in range(first, last):
        words = _philox(block & 0xFFFFFFFF, block >> 32, call, stream, seed_low, seed_high)
        for lane in range(min(4, x.size - 4 * block)):
            i = 4 * block + lane
            y[i] = x[i] * scale if (words[lane] >> 8) >= threshold else np.float32(0)


class ElementwiseOps(CpuDevice):
    """The elementwise part of the CPU backend; see `Backend` for the operations."""

    def relu_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        self.workers.run(_relu, x.size, GRAIN, x.reshape(-1), y.reshape(-1), elements=x.size)

    def relu_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        self.workers.run(_relu_backward, y.size, GRAIN, dy.reshape(-1), y.reshape(-1), dx.reshape(-1), elements=y.size)

    def add(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        self.workers.run(_add, a.size, GRAIN, a.reshape(-1), b.reshape(-1), out.reshape(-1), elements=a.size)

    def concat(self, parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        np.concatenate(parts, axis=-1, out=out)

    def split(self, whole: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        start = 0
        for part in parts:
            part[...] = whole[..., start : start + part.shape[-1]]
            start += part.shape[-1]

    def channels_first(self, x: np.ndarray, y: np.ndarray) -> None:
        n, h, w, c = x.shape
        y.reshape(n, c, h, w)[...] = x.transpose(0, 3, 1, 2)

    def channels_last(self, x: np.ndarray, y: np.ndarray) -> None:
        n, h, w, c = y.shape
        y[...] = x.reshape(n, c, h, w).transpose(0, 2, 3, 1)

    def dropout(self, x: np.ndarray, y: np.ndarray, p: float, seed: int, stream: int, call: np.ndarray) -> None:
        scale = np.float32(0 if p == 1 else 1 / (1 - p))
        args = keep_threshold(p), scale, stream, int(call), *seed_words(seed)
        self.workers.run(_dropout, -(-x.size // 4), GRAIN // 4, x.reshape(-1), y.reshape(-1), *args)
