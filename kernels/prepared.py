"""A kernel made ready to be launched many times: what follows from its numbers alone is worked out once.

A training step launches the same kernels with the same numbers over and over, so for each set of numbers the grid, the
numbers in the types that a driver takes, and what starts the kernel with that grid are kept. Nothing of an array is:
what is left for each launch is one pass over them (kernels/run_gpu.py).
"""

import operator
from collections.abc import Sequence
from typing import Any

from kernels.driver import Loaded, Start
from kernels.launch import Kernel

KEPT = 256  # sets of numbers of a kernel


class Ready:
    """What follows from a launch's numbers.

    Attributes:
        grid: Blocks; with a 0 among them there is nothing to launch.
        arguments: As a driver takes them, with holes where arrays belong.
        start: Launches with that grid; None until the kernel is loaded, and of an empty grid.
    """

    __slots__ = ("arguments", "grid", "start")

    def __init__(self, grid: tuple[int, int, int], arguments: list[Any]) -> None:
        self.grid = grid
        self.arguments = arguments
        self.start: Start | None = None


def _nothing(values: Sequence[Any]) -> None:
    del values


class Prepared:
    """See the module.

    Attributes:
        kernel: Which.
        count: How many arguments it takes.
        pointers: Place and dtype of each parameter that is an array.
        key: The numbers among a launch's arguments.
        known: What follows from them, by `key`; `work_out` fills it.
        load: Makes, for a grid, what launches the kernel; None until it is loaded.
    """

    __slots__ = ("_numbers", "count", "kernel", "key", "known", "load", "pointers")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.load: Loaded | None = None
        kinds = list(enumerate(kernel.parameters.values()))
        self.count = len(kinds)
        self.pointers = [(i, kind.dtype) for i, kind in kinds if kind.is_pointer]
        self._numbers = [(i, kind) for i, kind in kinds if not kind.is_pointer]
        self.key = operator.itemgetter(*(i for i, _ in self._numbers)) if self._numbers else _nothing
        self.known: dict[Any, Ready] = {}

    def work_out(self, values: Sequence[Any]) -> Ready:
        """What follows from the numbers among a launch's arguments, which are as many as the kernel takes.

        Raises:
            TypeError, OverflowError: A number does not fit its parameter.
            ValueError: No GPU runs so many blocks.
        """
        arguments: list[Any] = [None] * len(values)
        for i, kind in self._numbers:
            arguments[i] = kind.number(values[i])
        ready = Ready(self.kernel.grid(values), arguments)
        if all(_is_plain(values[i], kind.dtype.kind) for i, kind in self._numbers):
            if len(self.known) >= KEPT:
                self.known.clear()
            self.known[self.key(values)] = ready
        return ready


def _is_plain(value: Any, kind: str) -> bool:
    """Whether all that is equal to this number is the same argument: 0.0 is not, since -0.0 is equal to it."""
    if kind == "f":
        return type(value) in (float, int) and value != 0
    return type(value) is int
