"""Backends that are one object a process, however their owners are copied."""

from typing import Any, Self

import numpy as np


class Registered:
    """A backend that `get_backend(*key)` returns.

    A model holds its backend in every layer and parameter, and a backend holds threads or a GPU. A copy of a model is
    on the same device; pickled, it says which, and is on the device of that name where it is read.
    """

    key: tuple[Any, ...]  # what `get_backend` was given
    dtype: np.dtype[Any]
    precision: str = "fp32"  # of convolutions and linear layers

    @property
    def activations(self) -> np.dtype[Any]:
        """Of images' activations: as everything else, but on devices that store them in 16 bits."""
        return self.dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from minidl.backends import get_backend

        return get_backend, self.key
