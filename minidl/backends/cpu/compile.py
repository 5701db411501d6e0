"""How the CPU kernels are compiled: machine code from Numba, kept on disk between runs."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

from minidl.backends.cpu.cache import Cache

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at first call, release the GIL, keep the machine code on disk.

    Fast-math stays off: it would drop NaN, and forward and backward must round the same expression the same way.
    """
    kernel = njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # no folder can be written to: each start compiles anew, and doctor says so
        kernel._cache = Cache(function)  # as Numba's `cache=True` sets its own
    return cast(Function, kernel)


def inlined(function: Function) -> Function:
    """A function that becomes part of the kernels that call it."""
    return cast(Function, njit(inline="always", error_model="numpy")(function))
