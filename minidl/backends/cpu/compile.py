"""How the CPU kernels are compiled: machine code from Numba, kept on disk between runs."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at first call, release the GIL, keep the machine code on disk.

    Fast-math stays off: it would drop NaN, and forward and backward must round the same expression the same way.
    """
    try:
        return cast(Function, njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # no folder that Numba could write to: every start compiles anew; `minidl doctor` says so
        return cast(Function, njit(nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """A function that becomes part of the kernels that call it."""
    return cast(Function, njit(inline="always", error_model="numpy")(function))
