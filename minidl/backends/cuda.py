"""A GPU as a device: the kernels of kernels/ over CuPy arrays."""

from typing import Any

import numpy as np

from kernels.run_gpu import GpuRunner
from minidl.backends.device import DeviceBackend
from minidl.backends.protocol import Array, Shape


class CudaBackend(DeviceBackend):
    """`Backend` on the GPU that is current in CuPy. Memory comes from CuPy's pool, which keeps what is dropped.

    Convolutions and linear layers are in TF32 unless "fp32" is asked for, as PyTorch's convolutions are.
    """

    name = "cuda"
    run: GpuRunner

    def __init__(self, run: GpuRunner | None = None, precision: str = "tf32") -> None:
        super().__init__(GpuRunner() if run is None else run, precision)
        self.cupy = self.run.cupy

    def describe(self) -> str:
        return f"cuda, {self.run.describe()}, in {self.precision.upper()}"

    def empty(self, shape: Shape, dtype: Any = None) -> Array:
        return self.run.empty(shape, self.dtype if dtype is None else dtype)

    def zeros(self, shape: Shape, dtype: Any = None) -> Array:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def array(self, host: np.ndarray, dtype: Any = None) -> Array:
        host = np.asarray(host, dtype=self.dtype if dtype is None else dtype, order="C")
        array = self.empty(host.shape, host.dtype)
        array.set(host)
        return array

    def numpy(self, array: Array) -> np.ndarray:
        return np.array(self.cupy.asnumpy(array), order="C")

    def copy(self, source: Array, target: Array) -> None:
        target[...] = source

    def accept(self, array: Any, name: str, dtype: Any = None) -> Array:
        wanted = np.dtype(self.dtype if dtype is None else dtype)
        if not isinstance(array, self.cupy.ndarray):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise TypeError(f"{name} is a {kind}, expected a cupy.ndarray; copy it with backend.array")
        if array.dtype != wanted:
            raise TypeError(f"{name} has dtype {array.dtype}, expected {wanted}; convert it with .astype('{wanted}')")
        if array.size and array.data.device_id != self.run.device:
            raise TypeError(f"{name} lies on GPU {array.data.device_id}, expected GPU {self.run.device}")
        if array.flags.c_contiguous:
            return array
        copied = self.empty(array.shape, wanted)
        copied[...] = array
        return copied
