"""Softmax and LogSoftmax, over the channels."""

from typing import Any

from kernels.errors import ShapeError
from minidl.backends import Array, Backend
from minidl.nn.module import Module


class _OverChannels(Module):
    """Of arrays (..., c), a function of the last axis."""

    def __init__(self, dim: int = -1, *, device: str | Backend | None = None) -> None:
        super().__init__(device)
        if dim != -1 or isinstance(dim, bool):
            raise ValueError(
                f"{type(self).__name__}: dim is {dim!r}, expected -1, the last axis: it holds the classes or channels "
                "(arrays are channels last, so it takes the place of PyTorch's dim=1)"
            )
        self.dim = dim

    def forward(self, x: Array) -> Array:
        """See the class. Raises ShapeError or TypeError for another input."""
        x = self.backend.accept(x, f"{type(self).__name__}: the input")
        if x.ndim == 0:
            raise ShapeError(f"{type(self).__name__}: the input has shape (), expected (..., c)")
        y = self.backend.empty(x.shape)
        self._run_forward(x, y)
        self.keep(y)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (y,) = self.kept()
        dy = self.accept_gradient(dy, y.shape)
        dx = self.backend.empty(y.shape)
        self._run_backward(dy, y, dx)
        return dx

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return f"dim={self.dim}"

    def _run_forward(self, x: Any, y: Any) -> None:
        raise NotImplementedError

    def _run_backward(self, dy: Any, y: Any, dx: Any) -> None:
        raise NotImplementedError


class Softmax(_OverChannels):
    """y = exp(x) / sum(exp(x)) over the last axis: (n, classes), or any shape with its channels last.

    For training a classifier, `CrossEntropyLoss` takes logits as they are.
    """

    def _run_forward(self, x: Any, y: Any) -> None:
        self.backend.softmax_forward(x, y)

    def _run_backward(self, dy: Any, y: Any, dx: Any) -> None:
        self.backend.softmax_backward(dy, y, dx)


class LogSoftmax(_OverChannels):
    """y = x - log(sum(exp(x))) over the last axis, without the overflow and the cancellation of that formula."""

    def _run_forward(self, x: Any, y: Any) -> None:
        self.backend.log_softmax_forward(x, y)

    def _run_backward(self, dy: Any, y: Any, dx: Any) -> None:
        self.backend.log_softmax_backward(dy, y, dx)
