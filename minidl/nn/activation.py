"""Layers without parameters that keep the shape: ReLU and Dropout."""

from minidl.backends import Array, Backend
from minidl.nn.arguments import real_number
from minidl.nn.counts import Count
from minidl.nn.init import seed_for_layer
from minidl.nn.module import Module


class ReLU(Module):
    """y = max(x, 0), for any shape. NaN passes; the derivative at 0 is 0."""

    def forward(self, x: Array) -> Array:
        """See the class."""
        x = self.accept_stored(x, "ReLU: the input")
        y = self.backend.empty(x.shape, x.dtype)
        self.backend.relu_forward(x, y)
        self.keep(y)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (y,) = self.kept()
        dy = self.accept_gradient(dy, y.shape)
        dx = self.backend.empty(y.shape, y.dtype)
        self.backend.relu_backward(dy, y, dx)
        return dx


class Dropout(Module):
    """In training, zero each element with probability p and scale the rest by 1 / (1 - p); otherwise the identity.

    The mask is a function of (seed, calls, index): counter-based, the same on every device.

    Attributes:
        seed: Drawn when the layer is made (see `manual_seed`).
        calls: Forward passes in training so far; a run that continues another sets it.
    """

    def __init__(self, p: float = 0.5, *, device: str | Backend | None = None) -> None:
        super().__init__(device)
        if not 0 <= real_number(self, "p", p) <= 1:
            raise ValueError(f"Dropout: p is a probability, expected 0 to 1, got {p}")
        self.p, self.seed, self._count = p, seed_for_layer(), Count()

    @property
    def calls(self) -> int:
        """See the class."""
        return self._count.value

    @calls.setter
    def calls(self, calls: int) -> None:
        self._count.value = calls

    def forward(self, x: Array) -> Array:
        """See the class."""
        x = self.accept_stored(x, "Dropout: the input")
        if not self.training or self.p == 0:
            self.keep(None, x.shape)
            return x
        y = self.backend.empty(x.shape, x.dtype)
        call = self._count.draw(self.backend)
        self.backend.dropout(x, y, self.p, self.seed, 0, call)
        self.keep(call, x.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        call, shape = self.kept()
        dy = self.accept_gradient(dy, shape)
        if call is None:
            return dy
        dx = self.backend.empty(shape, dy.dtype)
        self.backend.dropout(dy, dx, self.p, self.seed, 0, call)
        return dx

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return f"p={self.p}"
