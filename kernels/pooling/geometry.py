"""The shapes of a pooling: what its kernels close over, and the device functions that find places and windows."""

from typing import Any, NamedTuple

from kernels.device import inlined
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array, blocks_for
from kernels.window import Pair, pooled_size, span_of


class Geometry(NamedTuple):
    """Images (height, width, c) and the window that moves over them."""

    height: int
    width: int
    c: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def output(self) -> Pair:
        """(ho, wo): where the window can be. Raises ShapeError as `pooled_size`."""
        axes = zip((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (pooled_size(*axis, self.ceil_mode) for axis in axes)
        return height, width

    @property
    def span(self) -> Pair:
        """From a window's first tap to its last."""
        down, across = (span_of(*axis) for axis in zip(self.kernel, self.dilation, strict=True))
        return down, across

    @property
    def overlap(self) -> Pair:
        """Windows that begin within a span, along each axis: no more can hold an element."""
        down, across = (blocks_for(span, stride) for span, stride in zip(self.span, self.stride, strict=True))
        return down, across

    @property
    def beyond(self) -> Pair:
        """How far the last window reaches beyond the padding, which only ceil_mode lets it."""
        axes = zip((self.height, self.width), self.output, self.span, self.stride, self.padding, strict=True)
        down, across = (
            max((positions - 1) * stride + span - (size + 2 * padding), 0)
            for size, positions, span, stride, padding in axes
        )
        return down, across


def geometry_of(
    operation: str,
    image: tuple[str, Array],
    pooled: dict[str, Array],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Geometry:
    """Of an array (n, h, w, c) and those that must have the output's shape, by name; raises ShapeError."""
    name, x = image
    if x.ndim != 4:
        raise ShapeError(f"{operation}: {name} has shape {tuple(x.shape)}, expected (n, h, w, c)")
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise ShapeError(
            f"{operation}: padding {padding} with a kernel of {kernel}; expected at most half of it, or windows could "
            "be all padding"
        )
    n, height, width, c = x.shape
    geometry = Geometry(height, width, c, kernel, stride, padding, dilation, bool(ceil_mode))
    for pooled_name, array in pooled.items():
        require_shape(operation, pooled_name, array, (n, *geometry.output, c))
    return geometry


def places(index: Any, height: int, width: int, channels: int) -> Any:
    """A device function: (image, row, column, channel) of element i of an array (n, height, width, channels)."""

    @inlined
    def place(i):
        pixel = index(i // channels)
        line = index(pixel // width)
        return index(line // height), index(line % height), index(pixel % width), index(i % channels)

    return place
