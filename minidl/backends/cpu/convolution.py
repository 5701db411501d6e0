"""Convolution on the CPU: windows gathered tile by tile, products by BLAS.

A tile is a few lines of output. Its windows become the rows of a matrix (rows, kh*kw*c_in) that stays in the L2 cache,
and one matrix product with the weights (kh*kw*c_in, c_out) makes the output. Both gradients are the same product turned
round. Tiles are fixed by the shapes, so the bits do not depend on the number of threads.
"""

import numpy as np

from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.threads import BLAS, QUIET
from minidl.backends.protocol import Pair

TILE_ELEMENTS = 1 << 17  # of the window matrix: 512 KiB, half of a usual L2
WEIGHT_GROUPS = 16  # partial weight gradients, summed in order at the end


@compiled
def _gather(first, last, x, windows, wo, kh, kw, sh, sw, ph, pw, ho):
    """Rows of `windows` for output lines first to last; a line is one row of one image's output.

    Taps are the outer loop: pixel by pixel, LLVM makes each copy of c floats a call of memcpy, which is 5 times slower.
    """
    _, h, w, c = x.shape
    row = 0
    for line in range(first, last):
        n, i = line // ho, line % ho
        for r in range(kh):
            y = i * sh - ph + r
            for s in range(kw):
                place = (r * kw + s) * c
                for j in range(wo):
                    column = j * sw - pw + s
                    if y < 0 or y >= h or column < 0 or column >= w:
                        for k in range(c):
                            windows[row + j, place + k] = np.float32(0)
                    else:
                        for k in range(c):
                            windows[row + j, place + k] = x[n, y, column, k]
        row += wo


@compiled
def _scatter_add(first, last, windows, dx, wo, kh, kw, sh, sw, ph, pw, ho):
    """The transpose of `_gather`: add each row of `windows` to the pixels that its window covers."""
    _, h, w, c = dx.shape
    row = 0
    for line in range(first, last):
        n, i = line // ho, line % ho
        for j in range(wo):
            left = j * sw - pw
            for r in range(kh):
                y = i * sh - ph + r
                if y < 0 or y >= h:
                    continue
                for s in range(kw):
                    if left + s < 0 or left + s >= w:
                        continue
                    place = (r * kw + s) * c
                    for k in range(c):
                        dx[n, y, left + s, k] += windows[row, place + k]
            row += 1


@compiled
def _add_bias(y, bias):
    for row in range(y.shape[0]):
        for c in range(y.shape[1]):
            y[row, c] += bias[c]


@compiled
def _sum_rows(first, last, dy, chunk, sums):
    for k in range(first, last):
        s = sums[k]
        s[:] = np.float32(0)
        for row in range(k * chunk, min((k + 1) * chunk, dy.shape[0])):
            for c in range(dy.shape[1]):
                s[c] += dy[row, c]


def _lines_a_tile(wo: int, taps: int) -> int:
    return max(1, TILE_ELEMENTS // (wo * taps))


class ConvolutionOps(CpuDevice):
    """The convolution part of the CPU backend; see `Backend` for the operations."""

    def conv2d_forward(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        n, ho, wo, c_out = y.shape
        kh, kw, c_in, _ = w.shape
        taps = kh * kw * c_in
        weights, output = w.reshape(taps, c_out), y.reshape(-1, c_out)
        tile = _lines_a_tile(wo, taps)

        def lines(first: int, last: int) -> None:
            for start in range(first, last, tile):
                stop = min(start + tile, last)
                rows = (stop - start) * wo
                windows = self.workers.scratch("windows", rows * taps)[: rows * taps].reshape(rows, taps)
                _gather(start, stop, x, windows, wo, kh, kw, *stride, *padding, ho)
                target = output[start * wo : stop * wo]
                np.dot(windows, weights, out=target)
                if bias is not None:
                    _add_bias(target, bias)

        with BLAS.one_thread():
            self.workers.run(lines, n * ho, tile)

    def conv2d_backward_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray, stride: Pair, padding: Pair) -> None:
        n, ho, wo, c_out = dy.shape
        kh, kw, c_in, _ = w.shape
        taps = kh * kw * c_in
        weights, gradient = w.reshape(taps, c_out), dy.reshape(-1, c_out)
        tile = _lines_a_tile(wo, taps)
        together = max(1, tile // ho)  # small images go several to a tile

        def images(first: int, last: int) -> None:
            """Windows of one image overlap, so an image is one thread's."""
            dx[first:last] = 0
            for group in range(first, last, together):
                begin, end = group * ho, min(group + together, last) * ho
                for start in range(begin, end, tile):
                    stop = min(start + tile, end)
                    rows = (stop - start) * wo
                    windows = self.workers.scratch("windows", rows * taps)[: rows * taps].reshape(rows, taps)
                    np.dot(gradient[start * wo : stop * wo], weights.T, out=windows)
                    _scatter_add(start, stop, windows, dx, wo, kh, kw, *stride, *padding, ho)

        with BLAS.one_thread():
            self.workers.run(images, n, together)

    def conv2d_backward_weight(
        self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        n, ho, wo, c_out = dy.shape
        kh, kw, c_in, _ = dw.shape
        taps = kh * kw * c_in
        gradient = dy.reshape(-1, c_out)
        lines = n * ho
        tile = _lines_a_tile(wo, taps)
        groups = max(1, min(WEIGHT_GROUPS, -(-lines // tile)))
        share = -(-lines // groups)
        partial = self.empty((groups, taps, c_out))

        def sum_groups(first: int, last: int) -> None:
            for group in range(first, last):
                total = partial[group]
                total[:] = 0
                begin, end = group * share, min((group + 1) * share, lines)
                for start in range(begin, end, tile):
                    stop = min(start + tile, end)
                    rows = (stop - start) * wo
                    windows = self.workers.scratch("windows", rows * taps)[: rows * taps].reshape(rows, taps)
                    _gather(start, stop, x, windows, wo, kh, kw, *stride, *padding, ho)
                    product = self.workers.scratch("product", total.size)[: total.size].reshape(total.shape)
                    np.dot(windows.T, gradient[start * wo : stop * wo], out=product)
                    np.add(total, product, out=total)

        with BLAS.one_thread():
            self.workers.run(sum_groups, groups, 1)
        with np.errstate(**QUIET):
            np.sum(partial, axis=0, out=dw.reshape(taps, c_out))

    def bias_backward(self, dy: np.ndarray, db: np.ndarray) -> None:
        matrix = dy.reshape(-1, dy.shape[-1])
        chunk = 128
        chunks = -(-len(matrix) // chunk)
        sums = self.empty((chunks, matrix.shape[1]))
        self.workers.run(_sum_rows, chunks, 32, matrix, chunk, sums)
        with np.errstate(**QUIET):
            db[:] = sums.sum(axis=0, dtype=np.float64)
