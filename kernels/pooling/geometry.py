"""The shapes of a pooling: what its kernels close over, and the device functions that find places and windows."""

from typing import Any, NamedTuple

from kernels.device import inlined
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array, blocks_for
from kernels.window import Pair, output_size


class Geometry(NamedTuple):
    """Images (height, width, c) and the window that moves over them."""

    height: int
    width: int
    c: int
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def output(self) -> Pair:
        """(ho, wo): where the window can be."""
        height, width = (
            output_size(*axis, operation="pooling")
            for axis in zip((self.height, self.width), self.kernel, self.stride, self.padding, strict=True)
        )
        return height, width

    @property
    def overlap(self) -> Pair:
        """In how many windows an element can be, along each axis."""
        down, across = (blocks_for(kernel, stride) for kernel, stride in zip(self.kernel, self.stride, strict=True))
        return down, across


def geometry_of(
    operation: str, image: tuple[str, Array], pooled: dict[str, Array], kernel: Pair, stride: Pair, padding: Pair
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
    geometry = Geometry(height, width, c, kernel, stride, padding)
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
