"""Arrays as arguments of kernels: what they must be, and where they lie in the memory of their device."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray in the emulator, cupy.ndarray on a GPU


def wide(*arrays: Array) -> bool:
    """Whether all of them start at a multiple of 16 bytes, as loads of four floats must."""
    return all(address(array) % 16 == 0 for array in arrays)


def check_array(value: Any, dtype: Any, array_type: Any, what: str) -> None:
    """Raise, as `Kernel.check` does, unless `value` is a C-contiguous `array_type` of this dtype; `what` names it."""
    if not isinstance(value, array_type):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        wanted = f"{array_type.__module__}.{array_type.__qualname__}"
        raise TypeError(f"{what} is a {kind}, expected a {wanted} on this device")
    if value.dtype != dtype:
        raise TypeError(f"{what} has dtype {value.dtype}, expected {np.dtype(dtype)}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{what} of shape {value.shape} is not C-contiguous (its strides are {value.strides} bytes); copy it first"
        )


def addresses_of(arrays: Sequence[Array], dtype: Any, array_type: Any) -> list[int]:
    """Where each array starts. Raises as `check_array` does."""
    for i, array in enumerate(arrays):
        check_array(array, dtype, array_type, f"array {i} of a table of addresses")
    return [address(array) for array in arrays]


def address(array: Array) -> int:
    """Where an array starts in the memory of its device."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
