"""How far an operation's answers may be off, for given inputs: the bounds of sums and of what is computed elementwise.

Each function takes the inputs of the protocol's method of that name, as host arrays of any float type, and returns the
bound of each output by name. No order of a sum's terms is assumed. Those of batch normalization, of the loss and of the
optimizers stand with their cases, in `minidl.lab.operations`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import conv, pooling
from minidl.lab.budget import TINY, U, products, rounding, summation

Host = NDArray[Any]
Pair = tuple[int, int]
Bounds = dict[str, Any]


def conv2d_forward(x: Host, w: Host, bias: Host | None, stride: Pair, padding: Pair) -> Bounds:
    """A sum over the taps and channels of a window, and the bias."""
    absolute = conv.conv2d_forward_reference(_abs(x), _abs(w), None if bias is None else _abs(bias), stride, padding)
    return {"y": products(absolute, math.prod(w.shape[:3]) + (bias is not None))}


def conv2d_backward_input(dy: Host, w: Host, shape: tuple[int, ...], stride: Pair, padding: Pair) -> Bounds:
    """`shape` is that of dx. An element of x is in at most ceil(kernel / stride) windows along each axis."""
    absolute = conv.conv2d_backward_input_reference(_abs(dy), _abs(w), shape, stride, padding)  # type: ignore[arg-type]
    return {"dx": products(absolute, _overlap(w.shape[:2], stride) * w.shape[3])}


def conv2d_backward_weight(x: Host, dy: Host, shape: tuple[int, ...], stride: Pair, padding: Pair) -> Bounds:
    """`shape` is that of dw. A sum over all positions of all images."""
    absolute = conv.conv2d_backward_weight_reference(_abs(x), _abs(dy), shape, stride, padding)  # type: ignore[arg-type]
    return {"dw": products(absolute, math.prod(dy.shape[:3]))}


def bias_backward(dy: Host) -> Bounds:
    """A sum over all rows; the second stage's result is stored once."""
    axes = tuple(range(dy.ndim - 1))
    absolute, exact = _abs(dy).sum(axis=axes), np.abs(dy.astype(np.float64).sum(axis=axes))
    return {"db": summation(math.prod(dy.shape[:-1])) * absolute + U * exact}


def linear_forward(x: Host, w: Host, bias: Host | None) -> Bounds:
    """A sum over the input's features, and the bias."""
    absolute = _abs(x) @ _abs(w).T + (0 if bias is None else _abs(bias))
    return {"y": products(absolute, w.shape[1] + (bias is not None))}


def linear_backward_input(dy: Host, w: Host) -> Bounds:
    """A sum over the output's features."""
    return {"dx": products(_abs(dy) @ _abs(w), w.shape[0])}


def linear_backward_weight(x: Host, dy: Host) -> Bounds:
    """A sum over the rows of the batch."""
    return {"dw": products(_abs(dy).T @ _abs(x), len(x))}


def max_pool2d_backward(
    dy: Host, index: Host, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair
) -> Bounds:
    """Only additions, and no more than the windows an element is in, less one."""
    reference = pooling.max_pool2d_backward_reference
    absolute = reference(_abs(dy), index, shape, kernel, stride, padding)  # type: ignore[arg-type]
    return {"dx": rounding(_overlap(kernel, stride) - 1) * absolute}


def avg_pool2d_forward(x: Host, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> Bounds:
    """A window's additions, and the division (two roundings if by a reciprocal)."""
    absolute = pooling.avg_pool2d_forward_reference(_abs(x), kernel, stride, padding, count_include_pad)
    return {"y": rounding(math.prod(kernel) + 1) * absolute + TINY * (absolute > 0)}


def avg_pool2d_backward(
    dy: Host, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> Bounds:
    """A share is divided off (two roundings), and shares are added."""
    reference = pooling.avg_pool2d_backward_reference
    absolute = reference(_abs(dy), shape, kernel, stride, padding, count_include_pad)  # type: ignore[arg-type]
    overlap = _overlap(kernel, stride)
    return {"dx": rounding(overlap + 1) * absolute + overlap * TINY * (absolute > 0)}


def global_avg_pool2d_forward(x: Host) -> Bounds:
    """The sum over the image in one accumulator, and the division."""
    absolute = _abs(x).mean(axis=(1, 2))
    return {"y": rounding(x.shape[1] * x.shape[2] + 1) * absolute + TINY * (absolute > 0)}


def dropout(x: Host, kept: NDArray[np.bool_], p: float) -> Bounds:
    """The factor 1 / (1 - p) rounds and the product does; what is dropped, and all of it at p = 0, is exact."""
    scaled = _abs(x) / max(1 - p, 2**-24)
    return {"y": np.where(kept & (p > 0), 2 * U * scaled + TINY, 0)}


def relative(expected: Host, units: float) -> Host:
    """So many unit roundoffs of the answer, for what is rounded at the end of a few steps that lose less."""
    bound: Host = units * U * np.abs(expected) + TINY * (expected != 0)
    return bound


def _abs(array: Host) -> Host:
    return np.abs(array.astype(np.float64))


def _overlap(kernel: tuple[int, ...], stride: Pair) -> int:
    """Windows that one element can be in."""
    return math.prod(-(-size // step) for size, step in zip(kernel, stride, strict=True))
