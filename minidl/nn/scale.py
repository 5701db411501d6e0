"""Scale: one learned factor for a whole activation."""

import math

import numpy as np

from minidl.backends import Array, Backend
from minidl.nn.arguments import real_number
from minidl.nn.module import Module, Parameter


class Scale(Module):
    """y = weight * x for any shape, with one learned number, `weight` of shape ().

    At the end of a residual branch, with the weight 0 at first, it is SkipInit (De and Smith 2020, arXiv:2002.10444):
    the block starts as the identity, and deep networks train without normalization. In PyTorch it is a module with
    `self.weight = nn.Parameter(torch.zeros(()))`.

    Args:
        initial: The weight's first value.
        device: Where it computes; the CPU unless given.
    """

    def __init__(self, initial: float = 0.0, *, device: str | Backend | None = None) -> None:
        super().__init__(device)
        if not math.isfinite(real_number(self, "initial", initial)):
            raise ValueError(f"Scale: initial must be a finite number, got {initial}")
        self.initial = initial
        self.weight = Parameter(self.backend, np.array(initial), decay=False)

    def forward(self, x: Array) -> Array:
        """See the class."""
        x = self.accept_stored(x, "Scale: the input")
        y = self.backend.empty(x.shape, x.dtype)
        self.backend.scale_forward(x, self.weight.value, y)
        self.keep(x)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (x,) = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        dx = self.backend.empty(x.shape, x.dtype)
        with self.weight.gradient() as dweight:
            self.backend.scale_backward(x, dy, self.weight.value, dx, dweight)
        return dx

    def extra_repr(self) -> str:
        """The argument that differs from its default."""
        return "" if self.initial == 0 else f"initial={self.initial:g}"
