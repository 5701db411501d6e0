"""Runs no kernel: a host function checks its arguments, chooses, allocates, and what it would launch is noted.

Nothing is compiled or computed. Memory that is asked for is not touched, so that it costs addresses and no room: the
choices of a large network's training step take seconds and little memory on any machine.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from kernels.arrays import addresses_of
from kernels.chip import Chip
from kernels.choice import Chosen
from kernels.launch import Kernel


class DryRunner:
    """A `kernels.launch.Runner` for NumPy arrays that runs nothing.

    Attributes:
        launched: Every kernel that would have run, in order. Clear it as you like.
        chosen: Every choice of a technique (kernels/choice.py), in order. Likewise.
        chip: Of the GPU for which techniques are chosen; None, for those that suit any.
    """

    name = "dry"
    capturing = False

    def __init__(self, chip: Chip | None = None) -> None:
        self.chip = chip
        self.launched: list[Kernel] = []
        self.chosen: list[Chosen] = []
        self.on_choice = self.chosen.append

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        """Note `kernel`; raises as `Kernel.check` does."""
        kernel.check(values, np.ndarray)
        if 0 not in kernel.grid(values):
            self.launched.append(kernel)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Memory that nobody has touched yet."""
        return np.empty(shape, dtype)

    def upload(self, host: np.ndarray) -> np.ndarray:
        """A copy."""
        return np.array(host, order="C")

    def addresses(self, arrays: Sequence[np.ndarray], dtype: Any = np.float32) -> np.ndarray:
        """Where the arrays start."""
        return np.array(addresses_of(arrays, dtype, np.ndarray), np.uint64)

    def table(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:  # noqa: ARG002
        """The numbers."""
        return make()

    def barrier(self) -> np.ndarray:
        """What barriers of the grid would count in."""
        return np.zeros(1, np.uint32)

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> "DryRunner":
        """Do what `function` does, as often; there is nothing to record."""
        for _ in range(warm_up + 1):
            function()
        return self

    def replay(self) -> None:
        """Nothing."""

    def synchronize(self) -> None:
        """Nothing is ever under way."""
