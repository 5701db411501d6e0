"""What a convolution's kernels close over, and where its elements are.

Rows, taps and phases number what a product runs over:

    row r of an output    r = (image * ho + p) * wo + q                       pixel (p, q)
    tap k of a window     k = (i * kw + j) * c_in + c                         element (i, j) of the kernel, channel c
    phase f               f = (h + ph) mod sh, times sw, plus (w + pw) mod sw of an input pixel (h, w)

With a stride, only every sh-th tap of a column of the kernel meets a given line of the input: those that agree with it
mod sh. So the input gradient takes phase by phase, and no product in it is known to be 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import float32

from kernels.device import inlined
from kernels.errors import ShapeError
from kernels.launch import Cost, blocks_for
from kernels.storage import Storage
from kernels.window import Pair, output_size

Shape = tuple[int, ...]


class Geometry(NamedTuple):
    """All of a convolution but the number of images."""

    h: int
    w: int
    c_in: int
    kh: int
    kw: int
    c_out: int
    sh: int
    sw: int
    ph: int
    pw: int

    @property
    def ho(self) -> int:
        """Lines of the output."""
        return output_size(self.h, self.kh, self.sh, self.ph, operation="conv2d")

    @property
    def wo(self) -> int:
        """Columns of the output."""
        return output_size(self.w, self.kw, self.sw, self.pw, operation="conv2d")

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return self.kh * self.kw * self.c_in

    @property
    def x_size(self) -> int:
        """Elements of an image."""
        return self.h * self.w * self.c_in

    @property
    def y_size(self) -> int:
        """Elements of an image's output."""
        return self.ho * self.wo * self.c_out

    @property
    def w_size(self) -> int:
        """Weights."""
        return self.taps * self.c_out

    def work(self, n: int) -> int:
        """Floating-point operations of each product for n images, those with the padding's zeros included."""
        return 2 * n * self.y_size * self.taps

    def forward_cost(self, n: int, slices: int = 1, x: int = 4, w: int = 4, y: int = 4) -> Cost:
        """Of y, as a sum of slices, from x and w; x, w, y: bytes of an element."""
        return Cost(n * self.x_size * x + self.w_size * w, slices * n * self.y_size * y, self.work(n))

    def backward_input_cost(self, n: int, slices: int = 1, dy: int = 4, w: int = 4, dx: int = 4) -> Cost:
        """Of dx, as a sum of slices, from dy and w; dy, w, dx: bytes of an element."""
        return Cost(n * self.y_size * dy + self.w_size * w, slices * n * self.x_size * dx, self.work(n))

    def backward_weight_cost(self, n: int, slices: int, x: int = 4, dy: int = 4) -> Cost:
        """Of dw, as a sum of slices, from x and dy; x, dy: bytes of an element."""
        return Cost(n * (self.x_size * x + self.y_size * dy), 4 * slices * self.w_size, self.work(n))

    def input_products(self) -> tuple[int, int, int]:
        """Of the input gradient, taken as matrix products: how many (the phases), rows for one image, depth."""
        rows = blocks_for(self.h, self.sh) * blocks_for(self.w, self.sw)
        depth = blocks_for(self.kh, self.sh) * blocks_for(self.kw, self.sw) * self.c_out
        return self.sh * self.sw, rows, depth


def geometry_of(operation: str, stride: Pair, padding: Pair, **shapes: Shape) -> Geometry:
    """The geometry that the shapes of input, weights and output agree on, given by name in this order.

    Raises:
        ShapeError: They do not agree; the message names the array that does not fit those before it.
    """
    (x_name, x), (w_name, w), (y_name, y) = ((name, tuple(shape)) for name, shape in shapes.items())
    if len(x) != 4:
        raise ShapeError(f"{operation}: {x_name} has shape {x}, expected (n, h, w, c_in)")
    if len(w) != 4 or w[2] != x[3]:
        raise ShapeError(f"{operation}: {w_name} has shape {w}, expected (kh, kw, {x[3]}, c_out) as {x_name} is {x}")
    if 0 in w:
        raise ShapeError(f"{operation}: {w_name} has shape {w}, expected no axis of length 0")
    sizes = zip(x[1:3], w[:2], stride, padding, strict=True)
    expected = (x[0], *(output_size(*axis, operation=operation) for axis in sizes), w[3])
    if y != expected:
        raise ShapeError(
            f"{operation}: {y_name} has shape {y}, expected {expected} for {x_name} {x}, {w_name} {w}, "
            f"stride {stride} and padding {padding}"
        )
    return Geometry(*x[1:], *w[:2], w[3], *stride, *padding)


def windows(geometry: Geometry, index: Any, storage: Storage) -> Callable[..., Any]:
    """Make a device function: element (row, tap) of the matrix of all windows of x, zero where it lies in the padding.

    So the convolution is that matrix times w, and the weight gradient its transpose times dy. It is never stored.
    """
    h, w, c_in, _, kw, _, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    load = storage.load

    @inlined
    def window_element(x, row, tap):
        line = row // wo % ho * sh + tap // (kw * c_in) - ph
        column = row % wo * sw + tap // c_in % kw - pw
        inside = 0 <= line < h and 0 <= column < w
        place = index(((row // (ho * wo) * h + line) * w + column) * c_in + tap % c_in)
        return load(x, place) if inside else float32(0)

    return window_element
