"""Sliding windows: the geometry that convolution and pooling share.

A window of `kernel` taps moves over an axis of `size` elements, `stride` at a time, with `padding` elements added at
both ends; it yields floor((size + 2 * padding - kernel) / stride) + 1 positions.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kernels.errors import ShapeError

Array = NDArray[Any]
Pair = tuple[int, int]


def pair(value: int | Pair) -> Pair:
    """One number for both axes, or a (height, width) pair as it is."""
    if isinstance(value, tuple):
        height, width = value
        return int(height), int(width)
    return int(value), int(value)


def output_size(size: int, kernel: int, stride: int, padding: int, *, operation: str = "window") -> int:
    """Positions of the window along one axis. Raises ShapeError where not even one fits, or there is no such window."""
    if kernel < 1 or stride < 1 or padding < 0:
        raise ShapeError(
            f"{operation}: a kernel of {kernel}, stride {stride} and padding {padding}; expected a kernel and a stride "
            "of at least 1 and no negative padding"
        )
    positions = (size + 2 * padding - kernel) // stride + 1
    if positions < 1:
        raise ShapeError(
            f"{operation}: a kernel of {kernel} does not fit an axis of {size} elements with padding {padding}; "
            "use a smaller kernel, more padding or a larger input"
        )
    return positions


# For the references.


def padded(x: Array, padding: Pair, fill: int = 0) -> Array:
    """A copy of x (n, h, w, c) with `padding` elements of value `fill` before and after its height and width."""
    ph, pw = padding
    return np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=fill)


def cropped(x: Array, padding: Pair) -> Array:
    """A copy of what `padded` was made of."""
    ph, pw = padding
    return x[:, ph : x.shape[1] - ph, pw : x.shape[2] - pw].copy()


def windows_of(x: Array, kernel: Pair, stride: Pair) -> Array:
    """A writable view (n, ho, wo, c, kh, kw) of x (n, h, w, c); its [..., i, j] is tap (i, j) of every window."""
    return sliding_window_view(x, kernel, axis=(1, 2), writeable=True)[:, :: stride[0], :: stride[1]]
