"""Sliding windows: the geometry that convolution and pooling share.

A window of `kernel` taps, `dilation` apart, moves over an axis of `size` elements, `stride` at a time, with `padding`
elements added at both ends. It spans dilation * (kernel - 1) + 1 elements and has

    floor((size + 2 * padding - span) / stride) + 1

positions. `ceil_mode` rounds up: one more window, which reaches beyond the padding, unless it began in the padding at
the far end (PyTorch's rule).
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


def span_of(kernel: int, dilation: int) -> int:
    """Elements from a window's first tap to its last."""
    return dilation * (kernel - 1) + 1


def output_size(
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int = 1,
    ceil_mode: bool = False,
    *,
    operation: str = "window",
) -> int:
    """Positions of the window along one axis. Raises ShapeError where not even one fits, or there is no such window."""
    if kernel < 1 or stride < 1 or padding < 0 or dilation < 1:
        dilated = f", dilation {dilation}" if dilation != 1 else ""
        raise ShapeError(
            f"{operation}: a kernel of {kernel}, stride {stride} and padding {padding}{dilated}; expected a kernel and "
            f"a stride {'and a dilation ' if dilated else ''}of at least 1 and no negative padding"
        )
    rest = size + 2 * padding - span_of(kernel, dilation)
    positions = rest // stride + 1
    if ceil_mode and rest % stride and positions * stride < size + padding:
        positions += 1
    if positions < 1:
        dilated = f" with dilation {dilation}" if dilation != 1 else ""
        raise ShapeError(
            f"{operation}: a kernel of {kernel}{dilated} does not fit an axis of {size} elements with padding "
            f"{padding}; use a smaller kernel, more padding or a larger input"
        )
    return positions


def pooled_size(
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int = 1,
    ceil_mode: bool = False,
    *,
    operation: str = "pooling",
) -> int:
    """`output_size`, and a ShapeError where a window would hold padding alone: it has no maximum and no average."""
    positions = output_size(size, kernel, stride, padding, dilation, ceil_mode, operation=operation)
    for start in range(-padding, -padding + positions * stride, stride):
        first = start % dilation if start < 0 else start  # that is no padding, if the window has so many taps
        if first >= size or first > start + dilation * (kernel - 1):
            raise ShapeError(
                f"{operation}: a kernel of {kernel} with padding {padding} and dilation {dilation} has a window on an "
                f"axis of {size} elements that holds padding alone; use less padding, less dilation or a larger input"
            )
        if start >= 0:
            break  # the others begin within the axis too
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


def windows_of(x: Array, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Array:
    """A writable view (n, ho, wo, c, kh, kw) of x (n, h, w, c); its [..., i, j] is tap (i, j) of every window."""
    spans = span_of(kernel[0], dilation[0]), span_of(kernel[1], dilation[1])
    every = sliding_window_view(x, spans, axis=(1, 2), writeable=True)
    return every[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
