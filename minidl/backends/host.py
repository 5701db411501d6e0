"""Arrays in host memory: what the backends share whose arrays are NumPy's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.launch import Graph
from kernels.loss_scale import settle_loss_scale_reference, unscale_reference


class HostMemory:
    """The memory part of `Backend` for NumPy arrays."""

    name: str
    dtype: np.dtype[Any]
    captures = False

    @property
    def capturing(self) -> bool:
        """Never."""
        return False

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> Graph:
        """See `Backend`."""
        del function, warm_up
        raise RuntimeError(f"device {self.name} has nothing to capture: its operations are done when they return")

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, self.dtype if dtype is None else dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def array(self, host: np.ndarray, dtype: Any = None) -> np.ndarray:
        return np.array(host, dtype=self.dtype if dtype is None else dtype, order="C")

    def numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        target[...] = source

    def accept(self, array: Any, name: str, dtype: Any = None) -> np.ndarray:
        wanted = np.dtype(self.dtype if dtype is None else dtype)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is a {type(array).__module__}.{type(array).__name__}, expected a numpy.ndarray")
        if array.dtype != wanted:
            raise TypeError(f"{name} has dtype {array.dtype}, expected {wanted}; convert it with .astype('{wanted}')")
        # A read-only array would make Numba compile each kernel once more, for seconds; a copy takes microseconds.
        return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


class HostLossScale:
    """Loss scaling by its definition, for backends that store nothing in 16 bits; see `Backend` for the operations."""

    def settle_loss_scale(
        self,
        norm: np.ndarray,
        state: np.ndarray,
        factor: np.ndarray,
        numbers: np.ndarray,
        still: np.ndarray,
        interval: int,
    ) -> None:
        settle_loss_scale_reference(norm, state, factor, numbers, still, interval)

    def unscale(self, arrays: Sequence[np.ndarray], factor: np.ndarray) -> None:
        for array in arrays:
            array[...] = unscale_reference(array, factor)
