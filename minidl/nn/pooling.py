"""Pooling layers and Flatten: what makes an image smaller."""

import numpy as np

from kernels.window import pooled_size
from minidl.backends import Array, Backend, Pair, PendingGradient
from minidl.nn.arguments import whole_pair
from minidl.nn.module import Module
from minidl.nn.pending import PendingActivation


class _Pool2d(Module):
    """A window of kernel_size moves over each channel of (n, h, w, c).

    Args:
        kernel_size: Taps of the window, along each axis.
        stride: From one window to the next; kernel_size unless given.
        padding: On all sides; at most half of kernel_size.
        dilation: From one tap to the next.
        ceil_mode: Whether a window that reaches beyond the padding is taken too, if it begins within the image or in
            the padding before it.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None,
        padding: int | tuple[int, int],
        dilation: int | tuple[int, int],
        ceil_mode: bool,
        device: str | Backend | None,
    ) -> None:
        super().__init__(device)
        self.kernel_size = whole_pair(self, "kernel_size", kernel_size)
        self.padding, self.dilation = whole_pair(self, "padding", padding), whole_pair(self, "dilation", dilation)
        self.stride = self.kernel_size if stride is None else whole_pair(self, "stride", stride)
        self.ceil_mode = bool(ceil_mode)
        given = _Pool2d.extra_repr(self)
        if min(self.kernel_size) < 1 or min(self.stride) < 1:
            raise ValueError(f"{type(self).__name__}: kernel_size and stride must be at least 1, got {given}")
        if min(self.dilation) < 1:
            raise ValueError(f"{type(self).__name__}: dilation must be at least 1, got {given}")
        if any(not 0 <= p <= k // 2 for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"{type(self).__name__}: padding must be at most half of kernel_size, or windows could be all padding; "
                f"got {given}"
            )

    def output_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Forward's output shape. Raises ShapeError if the window does not fit, or would hold padding alone."""
        sizes = zip(x_shape[1:3], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        ho, wo = (pooled_size(*axis, self.ceil_mode, operation=type(self).__name__) for axis in sizes)
        return x_shape[0], ho, wo, x_shape[3]

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them; those that are rare, where they are used."""
        dilation = f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        ceil_mode = ", ceil_mode=True" if self.ceil_mode else ""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}{dilation}{ceil_mode}"


class MaxPool2d(_Pool2d):
    """The largest value of each window. The gradient goes to the first of equal ones; NaN wins over any number."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        ceil_mode: bool = False,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, device)
        self._passes = 0

    @property
    def passes(self) -> int:
        """How often forward has run; see `Conv2d.passes`."""
        return self._passes

    def forward(self, x: Array) -> Array:
        """(n, h, w, c) -> (n, ho, wo, c). Raises ShapeError or TypeError for another input."""
        x = self.accept(x, "n h w c")
        y = self.backend.empty(self.output_shape(x.shape), x.dtype)
        index = self.backend.empty(y.shape, np.int32)
        self.backend.max_pool2d_forward(x, y, index, *self._window())
        self.keep(index, x.shape, None)
        self._passes += 1
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        index, shape, pending = self.kept()
        if pending is not None:
            raise RuntimeError(
                "MaxPool2d.backward: forward ran as the end of a fused chain; go back through the model that it ran "
                "in, or run both without fusion (minidl.nn.fusion.unfused)"
            )
        dy = self.accept_gradient(dy, index.shape)
        dx = self.backend.empty(shape, dy.dtype)
        self.backend.max_pool2d_backward(dy, index, dx, *self._window())
        return dx

    def forward_in_chain(self, x: PendingActivation) -> Array:
        """Forward of what is yet to be normalized. Raises as `forward` does."""
        raw = self.accept(x.x, "n h w c")
        y = self.backend.empty(self.output_shape(raw.shape), raw.dtype)
        index = self.backend.empty(y.shape, np.int32)
        self.backend.max_pool2d_normalized_forward(raw, x.normalization, y, index, *self._window())
        self.keep(index, raw.shape, x)
        self._passes += 1
        return y

    def backward_in_chain(self, dy: Array) -> Array | PendingGradient:
        """Back through `forward_in_chain` or `forward`: the gradient of x, pending where x was."""
        index, shape, pending = self.kept()
        if pending is None:
            return self.backward(dy)
        dy = self.accept_gradient(dy, index.shape)
        dx, sums = self.backend.empty(shape, dy.dtype), pending.batchnorm.empty_sums()
        given = pending.x, pending.normalization, sums
        self.backend.max_pool2d_normalized_backward(dy, index, dx, *self._window(), *given)
        return PendingGradient(dx, pending.x, pending.normalization._replace(relu=False), sums)  # ReLU's part is done

    def _window(self) -> tuple[Pair, Pair, Pair, Pair, bool]:
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode


class AvgPool2d(_Pool2d):
    """The mean of each window. count_include_pad says whether padding counts as elements of value 0."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode, device)
        self.count_include_pad = count_include_pad

    def forward(self, x: Array) -> Array:
        """(n, h, w, c) -> (n, ho, wo, c). Raises ShapeError or TypeError for another input."""
        x = self.accept(x, "n h w c")
        y = self.backend.empty(self.output_shape(x.shape), x.dtype)
        self.backend.avg_pool2d_forward(x, y, *self._window())
        self.keep(x.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (shape,) = self.kept()
        dy = self.accept_gradient(dy, self.output_shape(shape))
        dx = self.backend.empty(shape, dy.dtype)
        self.backend.avg_pool2d_backward(dy, dx, *self._window())
        return dx

    def _window(self) -> tuple[Pair, Pair, Pair, bool, bool]:
        return self.kernel_size, self.stride, self.padding, self.count_include_pad, self.ceil_mode

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them; those that are rare, where they are used."""
        return super().extra_repr() + ("" if self.count_include_pad else ", count_include_pad=False")


class GlobalAvgPool2d(Module):
    """The mean of each channel over the whole image: (n, h, w, c) -> (n, c), of the device's dtype."""

    def forward(self, x: Array) -> Array:
        """See the class."""
        x = self.accept(x, "n h w c")
        y = self.backend.empty((x.shape[0], x.shape[3]))
        self.backend.global_avg_pool2d_forward(x, y)
        self.keep(x.shape, x.dtype)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        shape, dtype = self.kept()
        dy = self.accept_gradient(dy, (shape[0], shape[3]))
        dx = self.backend.empty(shape, dtype)
        self.backend.global_avg_pool2d_backward(dy, dx)
        return dx


class Flatten(Module):
    """(n, h, w, c) -> (n, c*h*w), in PyTorch's order (channel, height, width), whatever the layout in memory.

    So the weights of a following Linear mean the same here and in PyTorch. The output is of the device's dtype.
    """

    def forward(self, x: Array) -> Array:
        """See the class."""
        x = self.accept(x, "n h w c")
        n, h, w, c = x.shape
        y = self.backend.empty((n, c * h * w))
        self.backend.channels_first(x, y)
        self.keep(x.shape, x.dtype)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        shape, dtype = self.kept()
        n, h, w, c = shape
        dy = self.accept_gradient(dy, (n, c * h * w))
        dx = self.backend.empty(shape, dtype)
        self.backend.channels_last(dy, dx)
        return dx
