"""Sliding windows: the geometry that convolution and pooling share.

A window of `kernel` taps moves over an axis of `size` elements, `stride` at a time, with `padding` elements added at
both ends; it yields floor((size + 2 * padding - kernel) / stride) + 1 positions.
"""

from kernels.errors import ShapeError


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """One number for both axes, or a (height, width) pair as it is."""
    if isinstance(value, tuple):
        height, width = value
        return int(height), int(width)
    return int(value), int(value)


def output_size(size: int, kernel: int, stride: int, padding: int, *, operation: str = "window") -> int:
    """Positions of the window along one axis. Raises ShapeError where not even one fits."""
    positions = (size + 2 * padding - kernel) // stride + 1
    if positions < 1:
        raise ShapeError(
            f"{operation}: a kernel of {kernel} does not fit an axis of {size} elements with padding {padding}; "
            "use a smaller kernel, more padding or a larger input"
        )
    return positions
