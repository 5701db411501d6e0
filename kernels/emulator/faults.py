"""What the emulator finds wrong with a kernel."""

import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

Position = tuple[int, int, int]


class KernelFault(Exception):  # noqa: N818  (it is what the kernel does, not an error of the caller)
    """A kernel does something undefined, or something that the emulator refuses.

    Attributes:
        kernel: The kernel's name.
        file: Where the line stands.
        line: Of the source, of the kernel or of a device function that it calls.
        array: The parameter or variable concerned, or None.
        block: (x, y, z) of the first thread concerned, or None.
        thread: (x, y, z) of that thread in its block, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        kernel: str,
        line: int,
        file: str = "",
        array: str | None = None,
        block: Position | None = None,
        thread: Position | None = None,
    ) -> None:
        self.what = what
        self.kernel = kernel
        self.file = file
        self.line = line
        self.array = array
        self.block = block
        self.thread = thread
        super().__init__(what, kernel, line, file, array, block, thread)

    def __str__(self) -> str:
        where = f"{self.kernel}, line {self.line}" + (f" of {Path(self.file).name}" if self.file else "")
        if self.block is not None:
            where += f", block {self.block}, thread {self.thread}"
        source = linecache.getline(self.file, self.line).strip()
        return f"{where}: {self.what}" + (f"\n    {source}" if source else "")

    def __reduce__(self) -> tuple[Callable[..., "KernelFault"], tuple[Any, ...]]:
        return _rebuild, (
            type(self), self.what, self.kernel, self.line, self.file, self.array, self.block, self.thread,
        )  # fmt: skip


def _rebuild(
    kind: type[KernelFault],
    what: str,
    kernel: str,
    line: int,
    file: str,
    array: str | None,
    block: Position | None,
    thread: Position | None,
) -> KernelFault:
    return kind(what, kernel=kernel, line=line, file=file, array=array, block=block, thread=thread)


class OutOfBounds(KernelFault):
    """An access beyond an array."""


class MisalignedAccess(KernelFault):
    """A wide access to an address that is no multiple of its width."""


class UninitialisedRead(KernelFault):
    """A read of a shared, local or output element, or of a variable, that was never written.

    So is reading what cp.async copies before waiting for it.
    """


class DataRace(KernelFault):
    """Two threads access one element, at least one writes, and no barrier orders them."""


class MissingFence(KernelFault):
    """Tensor cores or the copy engine use what ordinary accesses have changed, with no fence between."""


class DivergentBarrier(KernelFault):
    """A barrier that part of a block, or a warp's instruction that part of its warp, does not reach."""


class UnwrittenOutput(KernelFault):
    """An element of an output that no thread has written."""


class ModifiedInput(KernelFault):
    """A store to an array that is only to be read."""


class UndefinedArithmetic(KernelFault):
    """An integer division by zero, or a shift by more bits than there are."""


class UnsupportedFeature(KernelFault):
    """What the emulator does not do."""


class Float64Promotion(KernelFault, UserWarning):
    """Arithmetic on float32 that Numba does in float64, since the other operand is a float64 or an integer."""
