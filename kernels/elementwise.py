"""Operations that compute each element by itself, or only move it: sums, channels, layouts, dropout, image batches.

    add             out = a + b
    concat, split   parts (..., c_i) <-> whole (..., sum of c_i), along the channels
    channels_first  (n, h, w, c) -> (n, c*h*w), PyTorch's flattening order; channels_last is its inverse
    dropout         y = x / (1 - p) where kept, else 0; the mask is a function of (seed, stream, call, index) alone, so
                    backward is the same operation on dy
    gather_images   out[b] = (image index[b] of the data set, flipped and shifted - mean) / std
    gather_labels   out = labels[index]

Edges    Nothing here spreads a NaN to another element. Dropout: where dropped, a NaN or an infinity becomes 0; p = 1
         gives zeros.
Source   dropout, scaled in training ("inverted"): N. Srivastava et al., "Dropout", JMLR 15, 2014, section 10.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.random import dropout_keep_reference, keep_threshold

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore")
def add_reference(a: Array, b: Array) -> Array:
    """The sum a + b, of equal shapes."""
    return a + b


def concat_reference(parts: Sequence[Array]) -> Array:
    """(..., sum of c_i): the parts (..., c_i) side by side."""
    return np.concatenate(parts, axis=-1)


def split_reference(whole: Array, channels: Sequence[int]) -> list[Array]:
    """The inverse of `concat_reference`: parts (..., c_i), with c_i in `channels`."""
    ends = np.cumsum(channels)
    return [whole[..., end - c : end].copy() for c, end in zip(channels, ends, strict=True)]


def channels_first_reference(x: Array) -> Array:
    """From x (n, h, w, c) to (n, c*h*w), in the order channel, height, width."""
    n, height, width, c = x.shape
    return x.transpose(0, 3, 1, 2).copy().reshape(n, c * height * width)


def channels_last_reference(x: Array, y_shape: tuple[int, int, int, int]) -> Array:
    """The inverse of `channels_first_reference`: x (n, c*h*w) to `y_shape` (n, h, w, c)."""
    n, height, width, c = y_shape
    return x.reshape(n, c, height, width).transpose(0, 2, 3, 1).copy()


@np.errstate(over="ignore")
def dropout_reference(x: Array, p: float, seed: int, stream: int, call: int) -> Array:
    """What is kept of x times 1 / (1 - p), else 0; the factor is rounded once, from float64 to x's dtype.

    Raises:
        ValueError: p is not in [0, 1].
    """
    keep_threshold(p)
    if p == 1:
        return np.zeros_like(x)
    factor = x.dtype.type(1 / (1 - p))
    return np.where(dropout_keep_reference(x.shape, p, seed, stream, call), x * factor, 0)


def gather_images_reference(
    images: NDArray[np.uint8],
    index: NDArray[np.int64],
    shifts: NDArray[np.int32],
    flips: NDArray[np.bool_],
    mean: Array,
    std: Array,
) -> Array:
    """A batch (n, h, w, c) of normalized images, in the dtype of mean and std.

    images (N, h, w, c) uint8; index (n,); shifts (n, 2), (down, right) in pixels, may be negative or larger than the
    image; what moves in is raw 0, normalized as any pixel; flips (n,), left to right, before the shift; mean and std
    (c,) in the units of `images`.
    """
    height, width = images.shape[1:3]
    row = np.arange(height) - shifts[:, 0, None]  # (n, h): where each row of the output comes from
    column = np.arange(width) - shifts[:, 1, None]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    column = np.where(flips[:, None], width - 1 - column, column)
    raw = images[
        index[:, None, None],
        row.clip(0, height - 1)[:, :, None],
        column.clip(0, width - 1)[:, None, :],
    ]
    raw = np.where(inside[..., None], raw, 0)
    return (raw.astype(mean.dtype) - mean) / std


def gather_labels_reference(labels: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) int64: labels[index]."""
    return labels[index].astype(np.int64)
