"""Convolution in two dimensions: the definition in NumPy, one matrix product a tap.

With xp = x after `padding` zeros on each side, and (i, j) over the taps of the kernel:

    y[n, p, q, :]                   = bias + sum over i, j of  xp[n, p*sh + i, q*sw + j, :] @ w[i, j]
    dw[i, j]                        = sum over n, p, q of      outer(xp[n, p*sh + i, q*sw + j, :], dy[n, p, q, :])
    dxp[n, p*sh + i, q*sw + j, :]  += w[i, j] @ dy[n, p, q, :]       for all n, p, q, i, j; dx is dxp without padding
    db                              = sum over n, p, q of      dy[n, p, q, :]

Signal processing calls this correlation: the kernel is not mirrored, as in every deep-learning library.

Shapes   x, dx (n, h, w, c_in); w, dw (kh, kw, c_in, c_out); bias, db (c_out,); y, dy (n, ho, wo, c_out) with
         ho = floor((h + 2*ph - kh) / sh) + 1 and wo alike; stride (sh, sw) and padding (ph, pw) in elements.
Work     2 * n * ho * wo * kh * kw * c_in * c_out floating-point operations for y, and again for dx and for dw.
Edges    The padding takes part in the sums as zeros: 0 * NaN and 0 * infinity are NaN. A NaN of dy therefore reaches
         all of dw[:, :, :, its channel], also from positions where a tap lies in the padding. Elements of x that no
         window covers have dx = 0. No images: y and dx are empty, dw = db = 0.
Source   V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.window import Pair, cropped, padded, windows_of

Array = NDArray[Any]
Shape4 = tuple[int, int, int, int]


@np.errstate(invalid="ignore", over="ignore")
def conv2d_forward_reference(x: Array, w: Array, bias: Array | None, stride: Pair, padding: Pair) -> Array:
    """The output y (n, ho, wo, c_out)."""
    kh, kw, _, c_out = w.shape
    windows = windows_of(padded(x, padding), (kh, kw), stride)
    y = np.zeros((*windows.shape[:3], c_out), x.dtype)
    for i in range(kh):
        for j in range(kw):
            y += (_rows(windows[..., i, j]) @ w[i, j]).reshape(y.shape)
    return y if bias is None else y + bias


@np.errstate(invalid="ignore", over="ignore")
def conv2d_backward_input_reference(dy: Array, w: Array, dx_shape: Shape4, stride: Pair, padding: Pair) -> Array:
    """The gradient dx, of shape `dx_shape` (n, h, w, c_in): with a stride, dy alone does not tell it."""
    kh, kw = w.shape[:2]
    dxp = padded(np.zeros(dx_shape, dy.dtype), padding)
    windows = windows_of(dxp, (kh, kw), stride)
    for i in range(kh):
        for j in range(kw):
            tap = windows[..., i, j]  # within one tap no two windows overlap
            tap += (_rows(dy) @ w[i, j].T).reshape(tap.shape)
    return cropped(dxp, padding)


@np.errstate(invalid="ignore", over="ignore")
def conv2d_backward_weight_reference(x: Array, dy: Array, dw_shape: Shape4, stride: Pair, padding: Pair) -> Array:
    """The gradient dw, of shape `dw_shape` (kh, kw, c_in, c_out), over the padded x, zeros included."""
    kh, kw = dw_shape[:2]
    windows = windows_of(padded(x, padding), (kh, kw), stride)
    dw = np.empty(dw_shape, x.dtype)
    for i in range(kh):
        for j in range(kw):
            dw[i, j] = _rows(windows[..., i, j]).T @ _rows(dy)
    return dw


@np.errstate(invalid="ignore", over="ignore")
def bias_backward_reference(dy: Array) -> Array:
    """The gradient db (c,), the sum of the rows of dy (..., c); for convolution and linear alike."""
    return dy.sum(axis=tuple(range(dy.ndim - 1)))


def _rows(x: Array) -> Array:
    """The matrix of c columns that x (..., c) is."""
    return x.reshape(-1, x.shape[-1])
