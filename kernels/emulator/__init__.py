"""Runs CUDA kernels written for Numba without a GPU, checks them, and counts what they do.

`emulate(kernel, grid, block, *args)` runs a kernel's Python source, unchanged, over NumPy vectors with one element a
thread. What the kernel does wrong is a `KernelFault`: out of bounds, a race, a barrier that not all threads reach.

Results are those of the GPU but for rounding: a compiler there contracts a * b + c into one operation that rounds once,
and its functions (exp, sin, ...) may be some units in the last place away. Wide accesses to shared memory are checked
against a layout in the order of the source, without gaps that Numba does not ask for; ptxas may choose another. An
order that a fence and a flag in memory establish is known only where `add_release` and `load_acquire` of
kernels.intrinsics do: others are reported as races.
"""

from kernels.emulator.faults import (
    DataRace,
    DivergentBarrier,
    Float64Promotion,
    KernelFault,
    MisalignedAccess,
    MissingFence,
    ModifiedInput,
    OutOfBounds,
    UndefinedArithmetic,
    UninitialisedRead,
    UnsupportedFeature,
    UnwrittenOutput,
)
from kernels.emulator.launch import Report, emulate

__all__ = [
    "DataRace",
    "DivergentBarrier",
    "Float64Promotion",
    "KernelFault",
    "MisalignedAccess",
    "MissingFence",
    "ModifiedInput",
    "OutOfBounds",
    "Report",
    "UndefinedArithmetic",
    "UninitialisedRead",
    "UnsupportedFeature",
    "UnwrittenOutput",
    "emulate",
]
