"""The CPU as a device: its memory and its threads, which every group of operations builds on."""

from typing import Any

import numpy as np

from minidl.backends.arena import Arena
from minidl.backends.cpu.threads import Workers, available_cores
from minidl.backends.host import HostMemory
from minidl.backends.registered import Registered


class CpuDevice(HostMemory, Registered):
    """Float32 arrays from an arena, and `threads` threads (all cores by default)."""

    name = "cpu"
    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, threads: int | None = None) -> None:
        self.key = self.name, threads
        self.workers = Workers(available_cores() if threads is None else threads)
        self.arena = Arena()

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        return self.arena.empty(shape, self.dtype if dtype is None else dtype)

    def describe(self) -> str:
        threads = self.workers.threads
        return f"cpu, {threads} thread{'s' if threads != 1 else ''}"
