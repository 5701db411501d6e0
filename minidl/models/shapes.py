"""A forward pass without arithmetic: what shapes a network makes, what it would compute, what it keeps."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from minidl.backends import Array, Backend
from minidl.nn import Module
from minidl.nn.counts import Count


class ShapeBackend:
    """A backend whose arrays have a shape and a dtype, and no memory; its operations do nothing.

    For forward passes alone. Its arrays are NumPy's, every element at the same address.

    Args:
        like: The device whose operations are fused as here; none are if not given.

    Attributes:
        flops: Of the operations so far. A multiply-add is two; only those of convolutions and linear layers are
            counted, with those on padding but without biases, as `torch.utils.flop_counter` counts.
    """

    name = "shapes"
    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, like: Backend | None = None) -> None:
        self.like, self.flops = like, 0

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """See `Backend`."""
        return np.broadcast_to(np.zeros((), self.dtype if dtype is None else dtype), shape)

    zeros = empty

    @property
    def activations(self) -> np.dtype[Any]:
        """See `Backend`."""
        return self.dtype

    def accept(self, array: Array, name: str, dtype: Any = None) -> Array:
        """See `Backend`."""
        del name, dtype
        return array

    def conv2d_forward(self, x: Array, w: Array, bias: Array | None, y: Array, *_: Any) -> None:
        """See `Backend`."""
        del x, bias
        self.flops += 2 * y.size * w[..., 0].size

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        """See `Backend`."""
        return self.like is not None and self.like.fuses_normalization(c_in, c_out)

    def fuses_pooling(self) -> bool:
        """See `Backend`."""
        return self.like is not None and self.like.fuses_pooling()

    def linear_forward(self, x: Array, w: Array, bias: Array | None, y: Array) -> None:
        """See `Backend`."""
        del x, bias
        self.flops += 2 * y.size * w.shape[1]

    def __getattr__(self, operation: str) -> Any:
        if operation.startswith("_") or not hasattr(Backend, operation):
            raise AttributeError(f"{type(self).__name__} has no {operation}")
        return _nothing


def _nothing(*_: Any, **__: Any) -> None:
    pass


@contextlib.contextmanager
def on_shapes(model: Module) -> Iterator[ShapeBackend]:
    """Inside, `model` is in training mode and on a `ShapeBackend` like its device; outside, nothing has changed.

    Parameters stay where they are: of them only the shapes are read.
    """
    backend = ShapeBackend(model.backend)
    modules = [module for _, module in model.named_modules()]
    counts = [value for module in modules for value in vars(module).values() if isinstance(value, Count)]
    before = [dict(vars(changed)) for changed in (*modules, *counts)]
    try:
        for module in modules:
            module.backend = cast(Backend, backend)
        model.train()
        yield backend
    finally:
        for changed, attributes in zip((*modules, *counts), before, strict=True):
            vars(changed).clear()
            vars(changed).update(attributes)
