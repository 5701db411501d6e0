"""Pooling: the maximum or the average of a sliding window, or the average of the whole image, channel by channel.

    max      y = the largest real element of the window; dx collects dy where the maximum was
    average  y = the sum of the window's real elements / d; each of them receives dy / d. The divisor d is kh * kw, or
             without `count_include_pad` the number of real elements in the window
    global   y = the mean over the image; dx = dy / (h * w)

Shapes   x, dx (n, h, w, c); y, dy, index (n, ho, wo, c) with ho = floor((h + 2*ph - kh) / sh) + 1 and wo alike;
         global: y, dy (n, c). kernel (kh, kw), stride (sh, sw) and padding (ph, pw) in elements; padding is at most
         half the kernel (PyTorch's rule), so that every window holds a real element. index: int32, the maximum's
         place in its image, row * w + column.
Edges    Padding never is the maximum, not even of negative elements. Of equal elements the first in row-major order
         wins; in a window with NaN the maximum is NaN and the index that of its last NaN (PyTorch's rules). An element
         that is the maximum of several windows collects from each. Averages: a NaN reaches the windows that hold it.
Source   global average: M. Lin, Q. Chen, S. Yan, "Network In Network", 2014, arXiv:1312.4400.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.window import Pair, cropped, padded, windows_of

Array = NDArray[Any]
Shape4 = tuple[int, int, int, int]


def max_pool2d_forward_reference(
    x: Array, kernel: Pair, stride: Pair, padding: Pair
) -> tuple[Array, NDArray[np.int32]]:
    """(y, index): tap after tap, in row-major order, the best so far."""
    height, width = x.shape[1:3]
    places = np.arange(height * width, dtype=np.int32).reshape(1, height, width, 1)
    value_windows = windows_of(padded(x, padding), kernel, stride)
    place_windows = windows_of(padded(places, padding, fill=-1), kernel, stride)  # -1 marks padding

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
) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c): each window's dy goes to its maximum's place."""
    height, width = dx_shape[1:3]
    places = np.arange(height * width, dtype=np.int32).reshape(1, height, width, 1)
    place_windows = windows_of(padded(places, padding, fill=-1), kernel, stride)
    dxp = padded(np.zeros(dx_shape, dy.dtype), padding)
    windows = windows_of(dxp, kernel, stride)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            windows[..., i, j] += np.where(place_windows[..., i, j] == index, dy, 0)
    return cropped(dxp, padding)


@np.errstate(invalid="ignore", over="ignore")
def avg_pool2d_forward_reference(x: Array, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> Array:
    """The output y (n, ho, wo, c)."""
    total: Array = windows_of(padded(x, padding), kernel, stride).sum(axis=(-2, -1))
    return total / _divisor(x.shape, kernel, stride, padding, count_include_pad).astype(x.dtype)


@np.errstate(invalid="ignore", over="ignore")
def avg_pool2d_backward_reference(
    dy: Array, dx_shape: Shape4, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c)."""
    share = dy / _divisor(dx_shape, kernel, stride, padding, count_include_pad).astype(dy.dtype)
    dxp = padded(np.zeros(dx_shape, dy.dtype), padding)
    windows = windows_of(dxp, kernel, stride)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            windows[..., i, j] += share  # within one tap no two windows overlap
    return cropped(dxp, padding)


@np.errstate(invalid="ignore", over="ignore")
def global_avg_pool2d_forward_reference(x: Array) -> Array:
    """The output y (n, c)."""
    return x.mean(axis=(1, 2))


def global_avg_pool2d_backward_reference(dy: Array, dx_shape: Shape4) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c)."""
    _, height, width, _ = dx_shape
    return np.broadcast_to(dy[:, None, None, :] / (height * width), dx_shape).copy()


def _divisor(shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> Array:
    """(1, ho, wo, 1): by how much the sum of each window of an image (n, h, w, c) is divided."""
    real = np.ones((1, *shape[1:3], 1))
    windows = windows_of(padded(real, padding, fill=1 if count_include_pad else 0), kernel, stride)
    return windows.sum(axis=(-2, -1))
