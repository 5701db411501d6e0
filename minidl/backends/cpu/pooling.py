"""Pooling on the CPU. Channels are contiguous, so the inner loops run over channels in vectors."""

import numpy as np

from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.protocol import Pair

GRAIN_ELEMENTS = 1 << 15


@compiled
def _max_pool(first, last, x, y, index, kh, kw, sh, sw, ph, pw, dh, dw):
    _, h, w, c = x.shape
    _, ho, wo, _ = y.shape
    for n in range(first, last):
        for i in range(ho):
            top, bottom = i * sh - ph, min(i * sh - ph + dh * (kh - 1) + 1, h)
            top = top % dh if top < 0 else top  # the first tap that is no padding
            for j in range(wo):
                left, right = j * sw - pw, min(j * sw - pw + dw * (kw - 1) + 1, w)
                left = left % dw if left < 0 else left
                best, place = y[n, i, j], index[n, i, j]
                for k in range(c):
                    best[k] = x[n, top, left, k]
                    place[k] = np.int32(top * w + left)
                for r in range(top, bottom, dh):
                    for s in range(left, right, dw):
                        here = np.int32(r * w + s)
                        for k in range(c):
                            v = x[n, r, s, k]
                            if v > best[k] or v != v:  # NaN wins, as in PyTorch
                                best[k] = v
                                place[k] = here


@compiled
def _max_pool_2x2(first, last, x, y, index):
    """Windows of 2x2 that do not overlap, without padding: all four of them at once."""
    _, _, w, c = x.shape
    _, ho, wo, _ = y.shape
    for n in range(first, last):
        for i in range(ho):
            for j in range(wo):
                here = np.int32(2 * i * w + 2 * j)
                v0, v1 = x[n, 2 * i, 2 * j], x[n, 2 * i, 2 * j + 1]
                v2, v3 = x[n, 2 * i + 1, 2 * j], x[n, 2 * i + 1, 2 * j + 1]
                best, place = y[n, i, j], index[n, i, j]
                for k in range(c):
                    most, where = v0[k], here
                    if v1[k] > most or v1[k] != v1[k]:  # NaN wins, as in PyTorch
                        most, where = v1[k], here + np.int32(1)
                    if v2[k] > most or v2[k] != v2[k]:
                        most, where = v2[k], here + np.int32(w)
                    if v3[k] > most or v3[k] != v3[k]:
                        most, where = v3[k], here + np.int32(w + 1)
                    best[k] = most
                    place[k] = where


@compiled
def _max_pool_apart_backward(first, last, dy, index, dx, kh, kw, sh, sw):
    """Windows that do not overlap, without padding and dilation: each element of dx is written once."""
    _, h, w, c = dx.shape
    _, ho, wo, _ = dy.shape
    for n in range(first, last):
        for row in range(h):
            i = row // sh
            windows = wo if i < ho and row - i * sh < kh else 0
            for column in range(windows * sw if kw == sw else 0, w):  # the others are in a window
                into = dx[n, row, column]
                for k in range(c):
                    into[k] = np.float32(0)
            for j in range(windows):
                g, place = dy[n, i, j], index[n, i, j]
                for s in range(kw):
                    here = np.int32(row * w + j * sw + s)
                    into = dx[n, row, j * sw + s]
                    for k in range(c):
                        into[k] = g[k] if place[k] == here else np.float32(0)


@compiled
def _max_pool_backward(first, last, dy, index, dx):
    w, c = dx.shape[2], dx.shape[3]
    for n in range(first, last):
        dx[n] = np.float32(0)
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                for k in range(c):
                    place = index[n, i, j, k]
                    dx[n, place // w, place % w, k] += dy[n, i, j, k]


@compiled
def _avg_pool(first, last, x, y, kh, kw, sh, sw, ph, pw, count_include_pad):
    _, h, w, c = x.shape
    _, ho, wo, _ = y.shape
    for n in range(first, last):
        for i in range(ho):
            top, bottom = i * sh - ph, min(i * sh - ph + kh, h + ph)
            for j in range(wo):
                left, right = j * sw - pw, min(j * sw - pw + kw, w + pw)
                count = (bottom - top) * (right - left)
                r0, r1, s0, s1 = max(top, 0), min(bottom, h), max(left, 0), min(right, w)
                if not count_include_pad:
                    count = (r1 - r0) * (s1 - s0)
                total = y[n, i, j]
                for k in range(c):
                    total[k] = np.float32(0)
                for r in range(r0, r1):
                    for s in range(s0, s1):
                        for k in range(c):
                            total[k] += x[n, r, s, k]
                divisor = np.float32(count)
                for k in range(c):
                    total[k] /= divisor


@compiled
def _avg_pool_backward(first, last, dy, dx, kh, kw, sh, sw, ph, pw, count_include_pad):
    _, h, w, c = dx.shape
    for n in range(first, last):
        dx[n] = np.float32(0)
        for i in range(dy.shape[1]):
            top, bottom = i * sh - ph, min(i * sh - ph + kh, h + ph)
            for j in range(dy.shape[2]):
                left, right = j * sw - pw, min(j * sw - pw + kw, w + pw)
                count = (bottom - top) * (right - left)
                r0, r1, s0, s1 = max(top, 0), min(bottom, h), max(left, 0), min(right, w)
                if not count_include_pad:
                    count = (r1 - r0) * (s1 - s0)
                divisor = np.float32(count)
                for r in range(r0, r1):
                    for s in range(s0, s1):
                        for k in range(c):
                            dx[n, r, s, k] += dy[n, i, j, k] / divisor


@compiled
def _global_avg_pool(first, last, x, y):
    _, h, w, c = x.shape
    pixels = np.float32(h * w)
    for n in range(first, last):
        total = y[n]
        for k in range(c):
            total[k] = np.float32(0)
        for i in range(h):
            for j in range(w):
                for k in range(c):
                    total[k] += x[n, i, j, k]
        for k in range(c):
            total[k] /= pixels


class PoolingOps(CpuDevice):
    """The pooling part of the CPU backend; see `Backend` for the operations."""

    def max_pool2d_forward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        index: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        del ceil_mode  # y's shape says how many windows there are
        whole = x.shape[1] >= 2 * y.shape[1] and x.shape[2] >= 2 * y.shape[2]
        if (kernel, stride, padding, dilation) == ((2, 2), (2, 2), (0, 0), (1, 1)) and whole:
            self.workers.run(_max_pool_2x2, len(x), _grain(x), x, y, index, elements=x.size)
            return
        self.workers.run(_max_pool, len(x), _grain(x), x, y, index, *kernel, *stride, *padding, *dilation)

    def max_pool2d_backward(
        self,
        dy: np.ndarray,
        index: np.ndarray,
        dx: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        del ceil_mode
        if are_apart(dy.shape, dx.shape, kernel, stride, padding, dilation):
            self.workers.run(
                _max_pool_apart_backward, len(dx), _grain(dx), dy, index, dx, *kernel, *stride, elements=dx.size
            )
            return
        self.workers.run(_max_pool_backward, len(dx), _grain(dx), dy, index, dx)

    def avg_pool2d_forward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None:
        del ceil_mode  # y's shape says how many windows there are
        self.workers.run(_avg_pool, len(x), _grain(x), x, y, *kernel, *stride, *padding, count_include_pad)

    def avg_pool2d_backward(
        self,
        dy: np.ndarray,
        dx: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None:
        del ceil_mode
        self.workers.run(_avg_pool_backward, len(dx), _grain(dx), dy, dx, *kernel, *stride, *padding, count_include_pad)

    def global_avg_pool2d_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        self.workers.run(_global_avg_pool, len(x), _grain(x), x, y, elements=x.size)

    def global_avg_pool2d_backward(self, dy: np.ndarray, dx: np.ndarray) -> None:
        pixels = np.float32(dx.shape[1] * dx.shape[2])
        dx[...] = (dy / pixels)[:, None, None, :]


def are_apart(
    pooled: tuple[int, ...], image: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> bool:
    """Whether windows are whole and none overlaps another, so that an element is in one of them or none."""
    whole = all((pooled[a + 1] - 1) * stride[a] + kernel[a] <= image[a + 1] for a in (0, 1))
    return padding == (0, 0) and dilation == (1, 1) and whole and stride[0] >= kernel[0] and stride[1] >= kernel[1]


def _grain(x: np.ndarray) -> int:
    """Images in a piece of work."""
    return max(1, GRAIN_ELEMENTS // max(1, x[:1].size))
