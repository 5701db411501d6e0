"""A kernel made ready to be launched many times: what follows from its numbers alone is worked out once.

A training step launches the same kernels with the same numbers over and over, so the grid and the numbers in the types
that a driver takes are kept. What is left for each launch is one pass over the arrays.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from kernels.driver import Start
from kernels.launch import Kernel

KEPT = 256  # sets of numbers of a kernel


class _Known(NamedTuple):
    """What follows from a launch's whole numbers."""

    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]  # with holes, where arrays and other numbers belong


def _nothing(values: Sequence[Any]) -> None:
    del values


class Prepared:
    """See the module.

    Attributes:
        start: Launches the kernel; None until it is loaded.
        pointers: Place and dtype of each parameter that is an array.
    """

    __slots__ = ("_by_numbers", "_floats", "_integers", "_key", "kernel", "pointers", "start")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.start: Start | None = None
        kinds = list(enumerate(kernel.parameters.values()))
        self.pointers = [(i, kind.dtype) for i, kind in kinds if kind.is_pointer]
        self._integers = [i for i, kind in kinds if not kind.is_pointer and kind.dtype.kind != "f"]
        self._floats = [(i, kind.dtype.type) for i, kind in kinds if not kind.is_pointer and kind.dtype.kind == "f"]
        self._key = operator.itemgetter(*self._integers) if self._integers else _nothing
        self._by_numbers: dict[Any, _Known] = {}

    def numbers(self, values: Sequence[Any]) -> tuple[tuple[int, int, int], list[Any]]:
        """The grid, and the arguments as a driver takes them but for the arrays.

        Raises:
            TypeError, OverflowError: A number does not fit its parameter.
            ValueError: No GPU runs so many blocks.
        """
        key = self._key(values)
        known = self._by_numbers.get(key)
        if known is None:
            known = self._work_out(values)
            if len(self._by_numbers) >= KEPT:
                self._by_numbers.clear()
            if all(type(values[i]) is int for i in self._integers):  # 1.0 and 1 are one key
                self._by_numbers[key] = known
        grid, ready = known
        arguments = list(ready)
        for i, kind in self._floats:
            arguments[i] = kind(values[i])
        return grid, arguments

    def _work_out(self, values: Sequence[Any]) -> _Known:
        arguments: list[Any] = [None] * len(values)
        kinds = list(self.kernel.parameters.values())
        for i in self._integers:
            arguments[i] = kinds[i].number(values[i])
        return _Known(self.kernel.grid(values), tuple(arguments))
