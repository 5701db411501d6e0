"""The emulator as a device: the GPU's kernels, run from their Python source, over NumPy arrays."""

from typing import Any

import numpy as np

from kernels.run_emulated import EmulatorRunner
from minidl.backends.device import DeviceBackend
from minidl.backends.host import HostMemory


class EmulatorBackend(DeviceBackend, HostMemory):
    """`Backend` for tests and for study: slow, and every access of every kernel is checked."""

    name = "emulator"
    run: EmulatorRunner

    def __init__(self, run: EmulatorRunner | None = None, precision: str = "fp32") -> None:
        super().__init__(EmulatorRunner() if run is None else run, precision)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        """Full of NaN or -1, so that whoever reads what nobody wrote is found out."""
        return self.run.empty(shape, self.dtype if dtype is None else dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        array = self.empty(shape, dtype)
        memory = array.view(np.ndarray)
        self.run.do(lambda: memory.fill(0))
        return array

    def array(self, host: np.ndarray, dtype: Any = None) -> np.ndarray:
        return self.run.upload(np.asarray(host, dtype=self.dtype if dtype is None else dtype))

    def numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array.copy(), order="C", subok=False)

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        taken, given = source.view(np.ndarray), target.view(np.ndarray)
        self.run.do(lambda: np.copyto(given, taken))

    def describe(self) -> str:
        exact = self.precision == "fp32"
        return "emulator, the GPU's kernels without a GPU" + ("" if exact else f", in {self.precision.upper()}")
