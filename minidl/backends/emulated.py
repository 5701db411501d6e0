"""The emulator as a device: the GPU's kernels, run from their Python source, over NumPy arrays."""

from typing import Any

import numpy as np

from kernels.run_emulated import EmulatorRunner
from minidl.backends.device import DeviceBackend
from minidl.backends.host import HostMemory


class EmulatorBackend(DeviceBackend, HostMemory):
    """`Backend` for tests and for study: slow, and every access of every kernel is checked."""

    name = "emulator"
    key = (name,)
    run: EmulatorRunner

    def __init__(self, run: EmulatorRunner | None = None) -> None:
        super().__init__(EmulatorRunner() if run is None else run)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        """Full of NaN or -1, so that whoever reads what nobody wrote is found out."""
        return self.run.empty(shape, self.dtype if dtype is None else dtype)

    def describe(self) -> str:
        return "emulator, the GPU's kernels without a GPU"
