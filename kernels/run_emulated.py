"""Runs kernels without a GPU: each launch goes through the emulator, which checks every access."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.emulator import Report, emulate
from kernels.launch import Kernel, addresses_of


class Addresses(np.ndarray):
    """A table of addresses that knows the arrays they are of."""

    arrays: tuple[np.ndarray, ...] = ()

    def __array_finalize__(self, source: Any) -> None:
        self.arrays = getattr(source, "arrays", ())  # a part of the table may reach what the whole may


class Launched(NamedTuple):
    """A launch and what the emulator saw of it."""

    kernel: Kernel
    grid: tuple[int, int, int]
    report: Report


class EmulatorRunner:
    """A `kernels.launch.Runner` for NumPy arrays.

    Attributes:
        launched: With `counts`, every launch and its report, in order. Clear it as you like.
    """

    name = "emulator"

    def __init__(self, checks: bool = True, counts: bool = False) -> None:
        """With `checks` a kernel that breaks a rule or a promise raises KernelFault; `counts` keeps reports."""
        self.checks = checks
        self.counts = counts
        self.launched: list[Launched] = []

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        """Run `kernel`; raises as `Kernel.check` does, and KernelFault."""
        kernel.check(values, np.ndarray)
        arguments = [
            np.asarray(value) if parameter.is_pointer else parameter.number(value)
            for parameter, value in zip(kernel.parameters.values(), values, strict=True)
        ]
        grid = kernel.grid(arguments)
        if 0 in grid:
            return
        promises = kernel.promises
        report = emulate(
            kernel.function,
            grid,
            kernel.block,
            *arguments,
            shared_bytes=kernel.shared_bytes,
            checks=self.checks,
            counts=self.counts,
            inputs=[name for name in promises.reads if name not in promises.writes],
            outputs=[name for name in promises.writes if name not in (*promises.reads, *promises.partial)],
            reachable=[array for value in values for array in getattr(value, "arrays", ())],
            name=repr(kernel),
        )
        if self.counts:
            self.launched.append(Launched(kernel, grid, report))

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Memory that holds NaN, or -1, so that whoever reads what nobody wrote is found out."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.full(size, 255, np.uint8).view(dtype).reshape(shape)

    def upload(self, host: np.ndarray) -> np.ndarray:
        """A copy."""
        return np.array(host, order="C")

    def addresses(self, arrays: Sequence[np.ndarray], dtype: Any = np.float32) -> np.ndarray:
        """Where the arrays start; a kernel that gets the table may use these arrays and no others."""
        table = np.array(addresses_of(arrays, dtype, np.ndarray), np.uint64).view(Addresses)
        table.arrays = tuple(arrays)
        return table

    def synchronize(self) -> None:
        """Nothing is ever under way."""
