"""What a compiled function follows from: its bytecode, what it closes over and what it calls.

Files say less: a function may be made by a factory, call what lies in another file, or have been edited since it was
imported.
"""

import builtins
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Their code is known by their version.
VERSIONED = {
    "numba",
    "numba_cuda",
    "numpy",
    "llvmlite",
    "cuda",
    "math",
    "operator",
    "builtins",
    *sys.stdlib_module_names,
}

_IMPORT = re.compile(r"^from ([\w.]+) import ", re.MULTILINE)


class UncacheableError(Exception):
    """A function depends on something whose changes cannot be seen."""


def fingerprint(function: Callable[..., Any], *others: object) -> str:
    """A SHA-256 of all that the function's machine code follows from in Python, and of the other values' repr.

    Raises:
        UncacheableError: It uses something whose changes cannot be seen.
    """
    digest = hashlib.sha256(repr(others).encode())
    for part in _describe(function, {}):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def fingerprint_of_module(name: str, *others: object) -> str:
    """A SHA-256 of the module's source, as it lies there now, that of the modules it uses, and the others' repr.

    Raises:
        UncacheableError: There is no source.
    """
    digest = hashlib.sha256(repr(others).encode())
    for part in _describe_module(name, {}):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _describe(value: Any, seen: dict[int, int]) -> Iterator[bytes]:
    """What distinguishes a value that a kernel uses, in parts."""
    module = getattr(value, "__module__", None) or type(value).__module__
    if id(value) in seen:
        yield f"number {seen[id(value)]} again".encode()  # which of them it is tells f(g(f(x))) from f(g(g(x)))
    elif isinstance(value, types.ModuleType):
        yield from _describe_module(value.__name__, seen)
    elif value is None or isinstance(value, bool | int | float | str | bytes | np.generic | np.dtype):
        yield f"{type(value).__qualname__} {value!r}".encode()
    elif isinstance(value, tuple | list):
        yield f"{type(value).__qualname__} of {len(value)}".encode()
        for element in value:
            yield from _describe(element, seen)
    elif hasattr(value, "py_func"):  # a device function
        yield repr(sorted((name, str(option)) for name, option in value.targetoptions.items())).encode()
        yield from _describe(value.py_func, seen)
    elif hasattr(value, "_defn"):  # an intrinsic; it may use anything in its module
        yield from _describe_module(value._defn.__module__, seen)
        yield from _describe_closure(value._defn, seen)
    elif _is_versioned(module) and hasattr(value, "__qualname__"):  # functions and classes
        yield f"{module} {value.__qualname__}".encode()
    elif module.partition(".")[0] in ("numba", "numba_cuda"):  # Numba's types
        yield f"{module} {value!r}".encode()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, types.FunctionType):
        seen[id(value)] = len(seen)
        yield from _describe_function(value, seen)
    else:
        raise UncacheableError(f"cannot tell whether {value!r} changes")


def _describe_function(function: types.FunctionType, seen: dict[int, int]) -> Iterator[bytes]:
    yield from _describe_code(function.__code__)
    yield from _describe(function.__defaults__ or (), seen)
    yield from _describe_closure(function, seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name.encode()
            yield from _describe(function.__globals__[name], seen)
        elif hasattr(builtins, name):
            yield name.encode()


def _describe_closure(function: types.FunctionType, seen: dict[int, int]) -> Iterator[bytes]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name.encode()
        yield from _describe(cell.cell_contents, seen)


def _describe_module(name: str, seen: dict[int, int]) -> Iterator[bytes]:
    """Its name where the version tells the rest; else its source, and that of the modules that it takes from."""
    yield name.encode()
    module = sys.modules[name]
    if _is_versioned(name) or id(module) in seen:
        return
    seen[id(module)] = len(seen)
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise UncacheableError(f"{name} has no source") from error
    yield source.encode()
    used = {
        value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        for value in vars(module).values()
    }
    used |= {one for one in _IMPORT.findall(source) if not hasattr(sys.modules.get(one), "__path__")}  # numbers, tables
    for other in sorted(one for one in used if isinstance(one, str) and one in sys.modules):
        yield from _describe_module(other, seen)


def _describe_code(code: types.CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _describe_code(constant)
        else:
            yield f"{type(constant).__qualname__} {constant!r}".encode()


def _names(code: types.CodeType) -> set[str]:
    """Names that this code or a function inside it may look up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_versioned(module: str) -> bool:
    return module.partition(".")[0] in VERSIONED
