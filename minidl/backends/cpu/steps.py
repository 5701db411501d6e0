"""What changes from step to step, on the CPU: it is counted and looked up where the definitions do it."""

import numpy as np

from kernels.steps import append_number_reference, begin_step_reference, count_call_reference
from minidl.backends.cpu.device import CpuDevice


class StepOps(CpuDevice):
    """What a training step begins with and leaves behind; see `Backend` for the operations."""

    def begin_step(
        self,
        order: np.ndarray,
        plan: np.ndarray,
        step: np.ndarray,
        size: int,
        index: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        begin_step_reference(order, plan, step, size, index, numbers)

    def count_call(self, count: np.ndarray, call: np.ndarray) -> None:
        count_call_reference(count, call)

    def append_number(self, value: np.ndarray, count: np.ndarray, log: np.ndarray) -> None:
        append_number_reference(value, count, log)
