"""Pooling: the maximum or the average of a sliding window, or the average of the whole image, channel by channel.

    max      y = the largest real element of the window; dx collects dy where the maximum was
    average  y = the sum of the window's real elements / d; each of them receives dy / d. The divisor d is the number
             of elements in the window, real or padding (kh * kw, but for a window that reaches beyond the padding), or
             without `count_include_pad` the number of real ones
    global   y = the mean over the image; dx = dy / (h * w)

Shapes   x, dx (n, h, w, c); y, dy, index (n, ho, wo, c) with ho and wo as in kernels/window.py; global: y, dy (n, c).
         kernel (kh, kw), stride (sh, sw), padding (ph, pw) and dilation (dh, dw) in elements; padding is at most half
         the kernel (PyTorch's rule). With `ceil_mode` the last windows may reach beyond the padding. Every window holds
         a real element: a dilation by which one would not is refused (PyTorch gives -inf, and a place outside of the
         image). index: int32, the maximum's place in its image, row * w + column.
Edges    Padding never is the maximum, not even of negative elements. Of equal elements the first in row-major order
         wins; in a window with NaN the maximum is NaN and the index that of its last NaN (PyTorch's rules). An element
         that is the maximum of several windows collects from each. Averages: a NaN reaches the windows that hold it.
Source   global average: M. Lin, Q. Chen, S. Yan, "Network In Network", 2014, arXiv:1312.4400.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.pooling.geometry import Geometry
from kernels.window import Pair, padded, windows_of

Array = NDArray[Any]
Shape4 = tuple[int, int, int, int]


def max_pool2d_forward_reference(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1), ceil_mode: bool = False
) -> tuple[Array, NDArray[np.int32]]:
    """(y, index): tap after tap, in row-major order, the best so far."""
    _, height, width, c = x.shape
    geometry = Geometry(height, width, c, kernel, stride, padding, dilation, ceil_mode)
    value_windows = _windows(_surrounded(x, geometry), geometry)
    place_windows = _place_windows(geometry)

    y = np.full(value_windows.shape[:4], -np.inf, x.dtype)
    index = np.full(y.shape, -1, np.int32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            value, place = value_windows[..., i, j], place_windows[..., i, j]
            first = index < 0  # even -inf is taken as the first element, so the index is always a real one
            wins = (place >= 0) & (first | (value > y) | np.isnan(value))
            y = np.where(wins, value, y)
            index = np.where(wins, place, index)
    return y, index


@np.errstate(invalid="ignore", over="ignore")
def max_pool2d_backward_reference(
    dy: Array,
    index: NDArray[np.int32],
    dx_shape: Shape4,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c): each window's dy goes to its maximum's place."""
    geometry = Geometry(*dx_shape[1:], kernel, stride, padding, dilation, ceil_mode)
    place_windows = _place_windows(geometry)
    surrounded = _surrounded(np.zeros(dx_shape, dy.dtype), geometry)
    windows = _windows(surrounded, geometry)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            windows[..., i, j] += np.where(place_windows[..., i, j] == index, dy, 0)
    return _image(surrounded, geometry)


@np.errstate(invalid="ignore", over="ignore")
def avg_pool2d_forward_reference(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool, ceil_mode: bool = False
) -> Array:
    """The output y (n, ho, wo, c)."""
    _, height, width, c = x.shape
    geometry = Geometry(height, width, c, kernel, stride, padding, ceil_mode=ceil_mode)
    total: Array = _windows(_surrounded(x, geometry), geometry).sum(axis=(-2, -1))
    return total / _divisor(geometry, count_include_pad).astype(x.dtype)


@np.errstate(invalid="ignore", over="ignore")
def avg_pool2d_backward_reference(
    dy: Array,
    dx_shape: Shape4,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
    ceil_mode: bool = False,
) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c)."""
    geometry = Geometry(*dx_shape[1:], kernel, stride, padding, ceil_mode=ceil_mode)
    share = dy / _divisor(geometry, count_include_pad).astype(dy.dtype)
    surrounded = _surrounded(np.zeros(dx_shape, dy.dtype), geometry)
    windows = _windows(surrounded, geometry)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            windows[..., i, j] += share  # within one tap no two windows overlap
    return _image(surrounded, geometry)


@np.errstate(invalid="ignore", over="ignore")
def global_avg_pool2d_forward_reference(x: Array) -> Array:
    """The output y (n, c)."""
    return x.mean(axis=(1, 2))


def global_avg_pool2d_backward_reference(dy: Array, dx_shape: Shape4) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c)."""
    _, height, width, _ = dx_shape
    return np.broadcast_to(dy[:, None, None, :] / (height * width), dx_shape).copy()


def _divisor(geometry: Geometry, count_include_pad: bool) -> Array:
    """(1, ho, wo, 1): by how much the sum of each window is divided."""
    real = np.ones((1, geometry.height, geometry.width, 1))
    counted = _surrounded(real, geometry, fill=1 if count_include_pad else 0)
    return _windows(counted, geometry).sum(axis=(-2, -1))


def _place_windows(geometry: Geometry) -> Array:
    """Of each window's taps, the place in the image; -1 marks what is outside."""
    height, width = geometry.height, geometry.width
    places = np.arange(1, height * width + 1, dtype=np.int32).reshape(1, height, width, 1)
    return _windows(_surrounded(places, geometry), geometry) - 1


def _surrounded(x: Array, geometry: Geometry, fill: int = 0) -> Array:
    """A copy of x (n, h, w, c) with padding of value `fill`, and zeros as far beyond it as the last window reaches."""
    down, across = geometry.beyond
    return np.pad(padded(x, geometry.padding, fill), ((0, 0), (0, down), (0, across), (0, 0)))


def _image(surrounded: Array, geometry: Geometry) -> Array:
    """A copy of what `_surrounded` was made of."""
    ph, pw = geometry.padding
    return surrounded[:, ph : ph + geometry.height, pw : pw + geometry.width].copy()


def _windows(surrounded: Array, geometry: Geometry) -> Array:
    return windows_of(surrounded, geometry.kernel, geometry.stride, geometry.dilation)
