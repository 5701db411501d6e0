"""How the CPU kernels are compiled: machine code from Numba, kept on disk between runs."""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import config, event
from numba.core.registry import CPUDispatcher

from minidl.backends.compilation import COMPILATION
from minidl.backends.cpu.cache import Cache

Function = TypeVar("Function", bound=Callable[..., Any])

_ALLOCATES = {"empty", "zeros", "ones", "full"}  # NumPy's, where a kernel uses them
_kernels: "weakref.WeakSet[Any]" = weakref.WeakSet()


def compiled(function: Function) -> Function:
    """Compile at first call, release the GIL, keep the machine code on disk.

    Fast-math stays off: it would drop NaN, and forward and backward must round the same expression the same way.
    What would take time to compile and is not needed is left out: calls by address from elsewhere and, where no array
    is made (by NumPy's names; not by assigning one to a slice of another), the counting of references: whoever owns the
    arrays waits for the kernel.
    """
    return cast(Function, _compiled(function, no_cpython_wrapper=False))


def _compiled(function: Callable[..., Any], no_cpython_wrapper: bool) -> Any:
    counts = not _ALLOCATES.isdisjoint(function.__code__.co_names)
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": counts}
    options["no_cpython_wrapper"] = no_cpython_wrapper
    kernel = njit(**options)(function)
    _kernels.add(kernel)
    with contextlib.suppress(RuntimeError):  # no folder can be written to: each start compiles anew, and says so
        kernel._cache = Cache(function, **options)  # as Numba's `cache=True` sets its own
    return kernel


def called(function: Function) -> Function:
    """`compiled`, for what only kernels call: without the part for Python, that takes less time."""
    kernel = _compiled(function, no_cpython_wrapper=True)
    if isinstance(kernel, CPUDispatcher):
        kernel.__class__ = _Called
    return cast(Function, kernel)


class _Called(CPUDispatcher):  # type: ignore[misc]
    """Fails where Numba would jump to address 0."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self.py_func.__qualname__} is compiled for kernels alone and cannot be called from Python")


def inlined(function: Function) -> Function:
    """A function that becomes part of the kernels that call it."""
    return cast(Function, njit(inline="always", error_model="numpy")(function))


class _Listener(event.Listener):  # type: ignore[misc]
    """Hears from Numba, which lets one thread compile at a time.

    What is ours is optimized at LLVM's level 2: level 3 takes longer, and what it is for is not left to it here.
    """

    def __init__(self) -> None:
        self._ours: list[bool] = []  # of the functions that are being compiled, each within the one before
        self._level: Any = None  # Numba's own

    def on_start(self, event: Any) -> None:
        self._ours.append(event.data["dispatcher"] in _kernels)
        if self._ours[-1]:
            if self._level is None:
                self._level = config.OPT
                config.OPT = type(config.OPT)(min(config.OPT, 2))
            COMPILATION.begin()

    def on_end(self, _event: Any) -> None:
        if self._ours.pop():
            COMPILATION.end()
            if not any(self._ours):
                config.OPT, self._level = self._level, None


event.register("numba:compile", _Listener())
