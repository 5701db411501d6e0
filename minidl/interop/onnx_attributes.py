"""What an ONNX node says of itself: attributes, and the geometry of the window that convolution and pooling share."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minidl.interop.onnx_package import require_onnx

Pair = tuple[int, int]


class UnsupportedError(Exception):
    """Why a node is beyond minidl, without the node's name."""


class Window(NamedTuple):
    """A window over an image; pads are (top, left, bottom, right)."""

    kernel: Pair
    stride: Pair
    pads: tuple[int, int, int, int]
    dilation: Pair
    ceil_mode: bool

    @property
    def is_symmetric(self) -> bool:
        """Whether opposite sides are padded alike, as minidl's own windows are."""
        top, left, bottom, right = self.pads
        return top == bottom and left == right

    @property
    def fits_pooling(self) -> bool:
        """Whether minidl's pooling pads so by itself: opposite sides alike, by at most half the window."""
        return self.is_symmetric and all(2 * pad <= size for pad, size in zip(self.padding, self.kernel, strict=True))

    @property
    def padding(self) -> Pair:
        """(height, width) of a symmetric one."""
        return self.pads[0], self.pads[1]


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes by name as Python's numbers, text and lists; floats are those that the file's writer meant."""
    onnx = require_onnx()
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == onnx.AttributeProto.FLOAT:
            value = decimal(value)
        values[attribute.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return values


def decimal(value: float) -> float:
    """The shortest decimal number that float32 rounds to `value`: 1e-05 for what a file holds as 9.99999974738e-06."""
    return float(str(np.float32(value)))


def window_of(attributes: Mapping[str, Any], kernel: tuple[int, ...] | None, size: Pair | None) -> Window:
    """The window that a Conv or pooling node means.

    Args:
        attributes: The node's.
        kernel: Of the weights of a convolution; None where the attribute kernel_shape alone says it.
        size: (height, width) of the image, where it is known; only auto_pad needs it.

    Raises:
        UnsupportedError: It is not a window over an image, or auto_pad needs a size that is not known.
    """
    given = tuple(attributes.get("kernel_shape") or kernel or ())
    if len(given) != 2:
        raise UnsupportedError(f"it works on {len(given)}-dimensional data, minidl on images")
    if kernel is not None and given != kernel:
        raise UnsupportedError(f"its kernel_shape {given} is not that of its weights, {kernel}")
    axes = [tuple(attributes.get(name) or (1, 1)) for name in ("strides", "dilations")]
    stride, dilation = ((int(first), int(second)) for first, second in axes)
    ceil_mode, auto = bool(attributes.get("ceil_mode", 0)), attributes.get("auto_pad", "NOTSET")
    height, width = given
    if auto == "NOTSET":
        top, left, bottom, right = (int(pad) for pad in attributes.get("pads") or (0, 0, 0, 0))
    elif auto == "VALID":
        top = left = bottom = right = 0
    elif auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad is {auto!r}")
    elif size is None:
        raise UnsupportedError(f"auto_pad is {auto}, and the size of the images is not fixed")
    else:
        top, bottom = _same(size[0], height, stride[0], dilation[0], auto)
        left, right = _same(size[1], width, stride[1], dilation[1], auto)
        ceil_mode = False  # the padding makes it fit
    if min(top, left, bottom, right) < 0:
        raise UnsupportedError("its padding is negative")
    return Window((int(height), int(width)), stride, (top, left, bottom, right), dilation, ceil_mode)


def _same(size: int, kernel: int, stride: int, dilation: int, auto: str) -> Pair:
    """Padding before and after, so that there are ceil(size / stride) positions; an odd one goes after, for UPPER."""
    positions = -(-size // stride)
    total = max(0, (positions - 1) * stride + (kernel - 1) * dilation + 1 - size)
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)
