"""The gradient of a convolution's input by products that are scattered: for few input channels, and weights not finite.

Windows of the gradient are dy @ w^T by BLAS, and each is added to the pixels that it covers. Gathering would have few
output channels to fill vectors with; and where a window reaches beyond dy it multiplies weights by zeros, which an
infinite one turns into NaN.
"""

import numpy as np

from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.threads import BLAS, QUIET
from minidl.backends.protocol import Pair

TILE_ELEMENTS = 1 << 17  # of the window matrix: 512 KiB, half of a usual L2


@compiled
def _scatter_add(first, last, windows, dx, wo, kh, kw, sh, sw, ph, pw, ho):
    """Add the rows of `windows`, of output lines first to last, to the pixels that they cover."""
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


class ScatteredOps(CpuDevice):
    """Shared by the operations that need it."""

    def scatter_gradient(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray, stride: Pair, padding: Pair) -> None:
        """`conv2d_backward_input`."""
        n, ho, wo, c_out = dy.shape
        kh, kw, c_in, _ = w.shape
        taps = kh * kw * c_in
        weights, gradient = w.reshape(taps, c_out), dy.reshape(-1, c_out)
        tile = max(1, TILE_ELEMENTS // (wo * taps))
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
                    with np.errstate(**QUIET):
                        np.dot(gradient[start * wo : stop * wo], weights.T, out=windows)
                    _scatter_add(start, stop, windows, dx, wo, kh, kw, *stride, *padding, ho)

        with BLAS.one_thread():
            self.workers.run(images, n, together)
