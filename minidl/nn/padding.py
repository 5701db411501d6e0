"""Padding of images by a constant, each side by itself; convolution and pooling pad opposite sides alike."""

from minidl.backends import Array, Backend
from minidl.nn.arguments import real_number, whole_number
from minidl.nn.module import Module


class ConstantPad2d(Module):
    """Rows and columns of one value around (n, h, w, c).

    Args:
        padding: One number for all sides, or (left, right, top, bottom), as in PyTorch; none negative.
        value: What the new elements hold.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self, padding: int | tuple[int, int, int, int], value: float, *, device: str | Backend | None = None
    ) -> None:
        super().__init__(device)
        sides = tuple(padding) if isinstance(padding, tuple | list) else (padding,) * 4
        if len(sides) != 4:
            raise ValueError(
                f"{type(self).__name__}: padding is one number or (left, right, top, bottom), got {padding!r}"
            )
        left, right, top, bottom = (whole_number(self, "padding", side) for side in sides)
        if min(left, right, top, bottom) < 0:
            raise ValueError(f"{type(self).__name__}: padding must not be negative, got {padding!r}")
        self.padding, self.value = (left, right, top, bottom), real_number(self, "value", value)

    def output_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Forward's output shape."""
        n, h, w, c = x_shape
        left, right, top, bottom = self.padding
        return n, top + h + bottom, left + w + right, c

    def forward(self, x: Array) -> Array:
        """(n, h, w, c) -> (n, top + h + bottom, left + w + right, c). Raises ShapeError or TypeError otherwise."""
        x = self.accept(x, "n h w c")
        y = self.backend.zeros(self.output_shape(x.shape), x.dtype)
        if self.value != 0 and x.dtype == self.backend.dtype:
            y[...] = self.value
        elif self.value != 0:
            from kernels.storage import storage_of  # with it comes Numba

            y[...] = storage_of(x).encode(self.value)
        self.backend.copy(x, self._inside(y, x.shape))
        self.keep(x.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (shape,) = self.kept()
        dy = self.accept_gradient(dy, self.output_shape(shape))
        dx = self.backend.empty(shape, dy.dtype)
        self.backend.copy(self._inside(dy, shape), dx)
        return dx

    def _inside(self, y: Array, x_shape: tuple[int, ...]) -> Array:
        """The part of `y` that is not padding."""
        _, h, w, _ = x_shape
        left, _, top, _ = self.padding
        return y[:, top : top + h, left : left + w]

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return f"padding={self.padding}, value={self.value}"


class ZeroPad2d(ConstantPad2d):
    """Rows and columns of zeros around (n, h, w, c); see ConstantPad2d."""

    def __init__(self, padding: int | tuple[int, int, int, int], *, device: str | Backend | None = None) -> None:
        super().__init__(padding, 0.0, device=device)

    def extra_repr(self) -> str:
        """The argument, as PyTorch prints it."""
        return f"{self.padding}"
