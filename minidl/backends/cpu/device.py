"""The CPU as a device: its memory and its threads, which every group of operations builds on."""

from typing import Any

import numpy as np

from kernels.choice import Listener
from minidl.backends.arena import Arena
from minidl.backends.cpu.threads import Workers, available_cores
from minidl.backends.host import HostMemory
from minidl.backends.registered import Registered
from minidl.backends.techniques import DIRECT, WINOGRAD, Techniques

_CONVOLUTIONS = {
    f"conv2d_{kind}{product}"
    for kind in ("", "normalized_")
    for product in ("forward", "backward_input", "backward_weight")
}


class CpuDevice(HostMemory, Registered, Techniques):
    """Float32 arrays from an arena, and `threads` threads (all cores by default).

    With precision "winograd" convolutions of 3x3 without a stride are done by that technique where it is faster; with
    "fp32" all are the sums that define them. Techniques can be asked for by name besides.
    """

    name = "cpu"
    dtype: np.dtype[Any] = np.dtype(np.float32)

    on_choice: Listener | None = None  # told of each choice of a technique (kernels/choice.py)

    def __init__(self, threads: int | None = None, precision: str = WINOGRAD) -> None:
        self.key = self.name, threads, precision
        self.precision = precision
        self.asked_for: dict[str, str] = {}
        self.workers = Workers(available_cores() if threads is None else threads)
        self.arena = Arena()

    def techniques(self, operation: str) -> tuple[str, ...]:
        """The techniques that an operation has; none where there is no choice."""
        return (DIRECT, WINOGRAD) if operation in _CONVOLUTIONS else ()

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        return self.arena.empty(shape, self.dtype if dtype is None else dtype)

    def describe(self) -> str:
        threads = self.workers.threads
        direct = ", in FP32" if self.precision == "fp32" else ""
        return f"cpu, {threads} thread{'s' if threads != 1 else ''}{direct}"
