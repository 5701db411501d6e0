"""Batches from a data set in device memory: images flipped, shifted, normalized and cut, and their labels.

    gather_images   out[b] = (image index[b], flipped and shifted - mean) / std, but 0 in cutout's square
    gather_labels   out = labels[index]

Shapes   images (N, h, w, c) uint8; index (n,) int64, each in [0, N): not checked on the device; shifts (n, 2) int32,
         (down, right) in pixels, may be negative or larger than the image; flips (n,) bool, left to right, before the
         shift; centres (n, 2) int32, (row, column) in out; mean, std (c,) in the units of `images`; out (n, h, w, c).
         labels (N,) int64.
Traffic  reads each image of the batch at most once, a byte an element, and writes out once.
Edges    What moves in is raw 0, normalized as any pixel. What is cut is 0 after normalization, the data set's mean. The
         square is rows centre - cutout // 2 and the cutout - 1 below, columns alike, as far as they lie in the image;
         with cutout 0 there is none. (For an even side that is the square of cutout's authors; of an odd side they
         write a square one pixel smaller.)
Source   kernels/augmentation.py draws shifts, flips and centres, and names the sources.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.device import index_type
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Bytes, Cost, Floats, Int32s, Int64, Int64s, Launch, Runner, blocks_for, kernel

Array = NDArray[Any]
BLOCK = 256


def gather_images_reference(
    images: NDArray[np.uint8],
    index: NDArray[np.int64],
    shifts: NDArray[np.int32],
    flips: NDArray[np.bool_],
    centres: NDArray[np.int32],
    mean: Array,
    std: Array,
    cutout: int,
) -> Array:
    """A batch (n, h, w, c) of normalized images, in the dtype of mean and std.

    Raises:
        ValueError: cutout is negative.
    """
    check_cutout(cutout)
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
    below, right_of = (  # (n, h) and (n, w): pixels from the square's upper left corner
        np.arange(size) - (centres[:, axis, None].astype(np.int64) - cutout // 2)
        for axis, size in enumerate((height, width))
    )
    cut = ((below >= 0) & (below < cutout))[:, :, None] & ((right_of >= 0) & (right_of < cutout))[:, None, :]
    return np.where(cut[..., None], 0, (raw.astype(mean.dtype) - mean) / std)


def check_cutout(cutout: int) -> None:
    """Raise ValueError unless it is the side of a square."""
    if cutout < 0:
        raise ValueError(f"gather_images: cutout is {cutout}, expected a side of 0 or more pixels")


def gather_labels_reference(labels: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) int64: labels[index]."""
    return labels[index].astype(np.int64)


@kernel(
    traffic="images, chosen, shifts, flips, centres, mean, std -> out",
    registers=32,
    examples=[(uint32, 28, 28, 1, 0), (uint32, 28, 28, 1, 9), (int64, 32, 32, 3, 8)],
)
def gather_images_scalar(place: Any, height: int, width: int, c: int, cutout: int) -> Launch:
    """One element of out a thread: neighbours write neighbours, and read neighbours but for the ends of a row."""

    def gather_images(
        images: Bytes,
        chosen: Int64s,
        shifts: Int32s,
        flips: Bytes,
        centres: Int32s,
        mean: Floats,
        std: Floats,
        out: Floats,
        n: Int64,
    ):
        i = place(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            channel = place(i % c)
            pixel = place(i // c)
            line = place(pixel // width)
            image = place(line // height)
            row, column = int64(line % height), int64(pixel % width)
            cut = False
            if cutout > 0:
                below = row - (centres[2 * image] - cutout // 2)
                right_of = column - (centres[2 * image + 1] - cutout // 2)
                cut = 0 <= below < cutout and 0 <= right_of < cutout
            value = float32(0)
            if not cut:
                row -= shifts[2 * image]
                column -= shifts[2 * image + 1]
                raw = float32(0)
                if 0 <= row < height and 0 <= column < width:
                    if flips[image] != 0:
                        column = width - 1 - column
                    raw = float32(images[((chosen[image] * height + row) * width + column) * c + channel])
                value = (raw - mean[channel]) / std[channel]
            out[i] = value

    return Launch(gather_images, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(n, 4 * n, 2 * n))


@kernel(traffic="labels, chosen -> out", registers=16, examples=[(uint32,), (int64,)])
def gather_labels_scalar(place: Any) -> Launch:
    """One label a thread."""

    def gather_labels(labels: Int64s, chosen: Int64s, out: Int64s, n: Int64):
        i = place(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            out[i] = labels[chosen[i]]

    return Launch(gather_labels, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(16 * n, 8 * n))


def gather_images(
    run: Runner,
    images: DeviceArray,
    index: DeviceArray,
    shifts: DeviceArray,
    flips: DeviceArray,
    centres: DeviceArray,
    mean: DeviceArray,
    std: DeviceArray,
    out: DeviceArray,
    cutout: int,
) -> None:
    """Launch on `run`. All that changes from step to step is in device memory, where a replayed CUDA graph reads it.

    Raises:
        ShapeError: A shape is not as above.
        ValueError: cutout is negative.
    """
    if images.ndim != 4:
        raise ShapeError(f"gather_images: images has shape {tuple(images.shape)}, expected (N, h, w, c)")
    (height, width, c), n = images.shape[1:], len(index)
    require_shape("gather_images", "index", index, (n,))
    require_shape("gather_images", "shifts", shifts, (n, 2))
    require_shape("gather_images", "flips", flips, (n,))
    require_shape("gather_images", "centres", centres, (n, 2))
    require_shape("gather_images", "mean", mean, (c,))
    require_shape("gather_images", "std", std, (c,))
    require_shape("gather_images", "out", out, (n, height, width, c))
    check_cutout(cutout)
    if out.size:
        gather = gather_images_scalar(index_type(out.size), height, width, c, cutout)
        run(gather, images, index, shifts, flips.view(np.uint8), centres, mean, std, out, out.size)


def gather_labels(run: Runner, labels: DeviceArray, index: DeviceArray, out: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless labels is (N,) and index and out are both (n,)."""
    if labels.ndim != 1 or index.ndim != 1:
        raise ShapeError(
            f"gather_labels: labels has shape {tuple(labels.shape)} and index {tuple(index.shape)}, expected (N,) and "
            "(n,)"
        )
    require_shape("gather_labels", "out", out, tuple(index.shape))
    run(gather_labels_scalar(index_type(index.size)), labels, index, out, index.size)
