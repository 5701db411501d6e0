"""Layers with a weight: Conv2d and Linear."""

from kernels.window import output_size
from minidl.backends import Array, Backend, BatchStatistics, PendingGradient
from minidl.nn.arguments import whole_number, whole_pair
from minidl.nn.init import uniform_by_fan_in
from minidl.nn.module import Module, Parameter
from minidl.nn.pending import PendingActivation


class Conv2d(Module):
    """Two-dimensional cross-correlation, as PyTorch's Conv2d, channels last.

    Shapes: input (n, h, w, in_channels); output (n, ho, wo, out_channels) with
    ho = floor((h + 2 * padding - kernel_size) / stride) + 1. The output is stored as the device's activations are, the
    input so or, as images that come from outside are, in its dtype. Weights are held as (kh, kw, in, out) and appear in
    `state_dict` as PyTorch's (out, in, kh, kw).

    Attributes:
        input_gradient: Set to False where nobody needs the gradient of the input (the first layer of a network);
            `backward` then returns None and saves the work.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(device)
        self.in_channels = whole_number(self, "in_channels", in_channels)
        self.out_channels = whole_number(self, "out_channels", out_channels)
        self.kernel_size = whole_pair(self, "kernel_size", kernel_size)
        self.stride, self.padding = whole_pair(self, "stride", stride), whole_pair(self, "padding", padding)
        _positive(self, in_channels=in_channels, out_channels=out_channels)
        _positive(self, kernel_size=min(self.kernel_size), stride=min(self.stride), padding=min(self.padding) + 1)
        kh, kw = self.kernel_size
        fan_in = kh * kw * in_channels
        # Drawn in PyTorch's layout, so that a permutation of axes is all that lies between the two.
        weight = uniform_by_fan_in((out_channels, in_channels, kh, kw), fan_in).transpose(2, 3, 1, 0)
        self.weight = Parameter(self.backend, weight, decay=True, axes=(3, 2, 0, 1))
        self.bias: Parameter | None = None
        if bias:
            self.bias = Parameter(self.backend, uniform_by_fan_in((out_channels,), fan_in), decay=False)
        self.input_gradient = True
        self._passes = 0

    @property
    def passes(self) -> int:
        """How often forward has run: a step of a chain tells by it whether it was what ran this layer last."""
        return self._passes

    def output_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Forward's output shape. Raises ShapeError if the kernel does not fit."""
        sizes = zip(x_shape[1:3], self.kernel_size, self.stride, self.padding, strict=True)
        ho, wo = (output_size(*axis, operation="Conv2d") for axis in sizes)
        return x_shape[0], ho, wo, self.out_channels

    def forward(self, x: Array) -> Array:
        """(n, h, w, in_channels) -> (n, ho, wo, out_channels). Raises ShapeError or TypeError for another input."""
        x = self.accept(x, "n h w c", c=self.in_channels)
        y = self.backend.empty(self.output_shape(x.shape), self.backend.activations)
        bias = None if self.bias is None else self.bias.value
        self.backend.conv2d_forward(x, self.weight.value, bias, y, self.stride, self.padding)
        self.keep(x)
        self._passes += 1
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (x,) = self.kept()
        if isinstance(x, PendingActivation):  # not of a wrong type: the calls are in a wrong order
            raise RuntimeError(  # noqa: TRY004
                "Conv2d.backward: forward ran as a step of a fused chain; go back through the model that it ran in, or "
                "run both without fusion (minidl.nn.fusion.unfused)"
            )
        dy = self.accept_gradient(dy, self.output_shape(x.shape))
        with self.weight.gradient() as dw:
            self.backend.conv2d_backward_weight(x, dy, dw, self.stride, self.padding)
        if self.bias is not None:
            with self.bias.gradient() as db:
                self.backend.bias_backward(dy, db)
        if not self.input_gradient:
            return None
        dx = self.backend.empty(x.shape, x.dtype)
        self.backend.conv2d_backward_input(dy, self.weight.value, dx, self.stride, self.padding)
        return dx

    def forward_in_chain(self, x: Array | PendingActivation, eps: float, out: BatchStatistics) -> Array:
        """Forward of a convolution without a bias, of what may be yet to be normalized; `out` becomes y's statistics.

        y has at least one row. Raises as `forward` does.
        """
        raw, before = (x.x, x.normalization) if isinstance(x, PendingActivation) else (x, None)
        raw = self.accept(raw, "n h w c", c=self.in_channels)
        y = self.backend.empty(self.output_shape(raw.shape), self.backend.activations)
        window = self.stride, self.padding
        self.backend.conv2d_normalized_forward(raw, before, self.weight.value, y, *window, eps, out)
        self.keep(x)
        self._passes += 1
        return y

    def backward_in_chain(self, dy: PendingGradient) -> Array | PendingGradient:
        """Back through `forward_in_chain`: the gradient of x, pending where x was."""
        (x,) = self.kept()
        self.accept_gradient(dy.dy, self.output_shape(x.shape))
        raw, before = (x.x, x.normalization) if isinstance(x, PendingActivation) else (x, None)
        window = self.stride, self.padding
        with self.weight.gradient() as dw:
            self.backend.conv2d_normalized_backward_weight(raw, before, dy, dw, *window)
        if not self.input_gradient:
            return None
        dx = self.backend.empty(raw.shape, raw.dtype)
        if not isinstance(x, PendingActivation):
            self.backend.conv2d_normalized_backward_input(dy, self.weight.value, dx, *window, None, None, None)
            return dx
        sums = x.batchnorm.empty_sums()
        self.backend.conv2d_normalized_backward_input(dy, self.weight.value, dx, *window, raw, before, sums)
        return PendingGradient(dx, raw, x.normalization._replace(relu=False), sums)  # ReLU's part is done

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as PyTorch prints them."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        return text + (", bias=False" if self.bias is None else "")


class Linear(Module):
    """y = x @ weight.T + bias. Shapes: x (n, in_features), weight (out_features, in_features), y (n, out_features).

    Attributes:
        input_gradient: As in Conv2d.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, device: str | Backend | None = None
    ) -> None:
        super().__init__(device)
        self.in_features = whole_number(self, "in_features", in_features)
        self.out_features = whole_number(self, "out_features", out_features)
        _positive(self, in_features=in_features, out_features=out_features)
        weight = uniform_by_fan_in((out_features, in_features), in_features)
        self.weight = Parameter(self.backend, weight, decay=True)
        self.bias: Parameter | None = None
        if bias:
            self.bias = Parameter(self.backend, uniform_by_fan_in((out_features,), in_features), decay=False)
        self.input_gradient = True

    def forward(self, x: Array) -> Array:
        """(n, in_features) -> (n, out_features). Raises ShapeError or TypeError for another input."""
        x = self.accept(x, "n c", c=self.in_features)
        y = self.backend.empty((x.shape[0], self.out_features))
        self.backend.linear_forward(x, self.weight.value, None if self.bias is None else self.bias.value, y)
        self.keep(x)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (x,) = self.kept()
        dy = self.accept_gradient(dy, (x.shape[0], self.out_features))
        with self.weight.gradient() as dw:
            self.backend.linear_backward_weight(x, dy, dw)
        if self.bias is not None:
            with self.bias.gradient() as db:
                self.backend.bias_backward(dy, db)
        if not self.input_gradient:
            return None
        dx = self.backend.empty(x.shape)
        self.backend.linear_backward_input(dy, self.weight.value, dx)
        return dx

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _positive(layer: Module, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            if name == "padding":
                raise ValueError(f"{type(layer).__name__}: padding must not be negative")
            raise ValueError(f"{type(layer).__name__}: {name} must be at least 1, got {value}")
