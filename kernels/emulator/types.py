"""Types as Numba gives them: what an operator makes of its operands, and what a variable is where branches meet.

Numba is asked, not imitated: int32 + int32 is int64, uint32 + 1 is int64, float32 * 2 is float64, float32 ** 2 float32.
"""

import functools
from typing import Any

import numpy as np
from numba import cuda, types
from numba.core.errors import NumbaError
from numba.core.target_extension import target_override
from numba.cuda import libdevice
from numba.cuda.cudadrv.error import CudaDriverError
from numba.cuda.descriptor import cuda_target

Type = Any  # a numba.types.Type

NONE = types.none
BOOLEAN = types.boolean
INT64 = types.int64
FLOAT32 = types.float32
FLOAT64 = types.float64


class UntypedError(Exception):
    """Numba gives an expression no type."""


@functools.cache
def _context() -> Any:
    context = cuda_target.typing_context
    with target_override("cuda"):
        context.refresh()
    return context


@functools.cache
def signature(function: Any, arguments: tuple[Type, ...]) -> tuple[tuple[Type, ...], Type]:
    """The types to which Numba converts the arguments of a function or operator, and that of the result.

    Raises:
        UntypedError: Numba does not know the function for these arguments.
    """
    with target_override("cuda"):
        try:
            kind = _function_type(function)
            found = _context().resolve_function_type(kind, arguments, {})
        except (NumbaError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise UntypedError(str(error).split("\n")[0]) from error
        except (ImportError, CudaDriverError) as error:  # it would compile a function of its own, with a driver
            raise UntypedError("Numba has no instruction for these types") from error
    if found is None:
        raise UntypedError("no signature of it takes these types")
    return tuple(plain(argument) for argument in found.args), plain(found.return_type)


def _function_type(function: Any) -> Any:
    if getattr(function, "__module__", "") == "_operator":
        return function
    if isinstance(function, type) and function.__module__.endswith("cuda.stubs"):
        kind: Type = types.Module(cuda)  # stubs have types as the module's attributes only
        for name in function.__qualname__.split("."):
            kind = _context().resolve_getattr(kind, name)
        return kind
    if getattr(function, "__module__", "").endswith("cuda.libdevice"):
        return _context().resolve_getattr(types.Module(libdevice), function.__name__)
    return _context().resolve_value_type(function)


@functools.cache
def attribute(path: str) -> Type:
    """The type of an attribute of `numba.cuda`, such as "threadIdx.x"."""
    with target_override("cuda"):
        kind: Type = types.Module(cuda)
        for name in path.split("."):
            kind = _context().resolve_getattr(kind, name)
    return plain(kind)


@functools.cache
def unify(a: Type, b: Type) -> Type:
    """The type of a variable that is an `a` on one path and a `b` on another; None where there is none."""
    if a == b:
        return a
    with target_override("cuda"):
        found = _context().unify_types(a, b)
    return None if found is None else plain(found)


def plain(kind: Type) -> Type:
    """A type without the value of a literal."""
    return types.unliteral(kind)


def literal(value: int) -> Type:
    """The type of an integer that is spelled out, for signatures that depend on its value."""
    return types.IntegerLiteral(value)


def of_constant(value: Any) -> Type:
    """The type of a number or tuple that a kernel closes over or spells out; None for anything else."""
    if isinstance(value, bool | np.bool_):
        return BOOLEAN
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return INT64
        return types.uint64 if 0 <= value < 2**64 else None
    if isinstance(value, float):
        return FLOAT64
    if isinstance(value, np.number):
        return of_dtype(value.dtype)
    if isinstance(value, tuple):
        items = [of_constant(item) for item in value]
        return None if None in items else types.BaseTuple.from_types(tuple(items))
    return NONE if value is None else None


@functools.cache
def of_dtype(dtype: np.dtype[Any]) -> Type:
    """The type of an array's element."""
    return BOOLEAN if dtype == np.bool_ else getattr(types, dtype.name, None)


_DTYPES = {
    getattr(types, name): np.dtype(name)
    for name in (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    )
} | {BOOLEAN: np.dtype(np.bool_)}  # fmt: skip


def is_number(kind: Type) -> bool:
    """Whether a type is that of a number or boolean, of which lanes make a vector."""
    return kind in _DTYPES


def is_integer(kind: Type) -> bool:
    """Whether a type is an integer's, signed or not."""
    return kind in _DTYPES and _DTYPES[kind].kind in "iu"


def is_float(kind: Type) -> bool:
    """Whether a type is that of a floating-point number."""
    return kind in _DTYPES and _DTYPES[kind].kind == "f"


def dtype_of(kind: Type) -> np.dtype[Any]:
    """The NumPy dtype of a number's type."""
    return _DTYPES[kind]


def constant(value: Any, kind: Type) -> Any:
    """A constant as its NumPy scalar, or tuple of them."""
    if isinstance(kind, types.BaseTuple):
        return tuple(constant(item, item_type) for item, item_type in zip(value, kind, strict=True))
    return None if kind == NONE else dtype_of(kind).type(value)


def convert(value: Any, dtype: np.dtype[Any]) -> Any:
    """A scalar or vector as another dtype; floats become integers as the instruction that Numba uses makes them.

    That is cvt.rzi: towards zero, saturated at the least and the greatest number. PTX converts no float32 or float64
    to 8 bits: Numba saturates at 16 and keeps the lower half. A float16 goes through cvt.rni, to the nearest integer
    (half to even), with 8 bits of its own. NaN becomes 0, but the top bit alone where 64 bits are on either side (PTX
    ISA, cvt).
    """
    if value.dtype == dtype:
        return value
    if value.dtype.kind != "f" or dtype.kind not in "iu":
        return value.astype(dtype)
    half = value.dtype == np.float16
    target = np.dtype(f"{dtype.kind}2") if dtype.itemsize == 1 and not half else dtype
    info = np.iinfo(target)
    wide = (np.rint if half else np.trunc)(np.asarray(value, np.float64))
    inside = (wide >= float(info.min)) & (wide < float(info.max) + (1.0 if info.bits < 64 else 0.0))
    limit = np.where(wide > 0, info.max, info.min).astype(target)
    result = np.where(inside, np.where(inside, wide, 0.0).astype(target), limit)
    if 8 in (value.dtype.itemsize, target.itemsize):
        nan = target.type(info.min if dtype.kind == "i" else 1 << (info.bits - 1))
    else:
        nan = target.type(0)
    result = np.where(np.isnan(wide), nan, result).astype(dtype)
    return result if isinstance(value, np.ndarray) else result[()]


def is_tuple(kind: Type) -> bool:
    """Whether a type is that of a tuple."""
    return isinstance(kind, types.BaseTuple)


def is_pointer(kind: Type) -> bool:
    """Whether a type is that of a flat pointer."""
    return isinstance(kind, types.CPointer)


def is_array(kind: Type) -> bool:
    """Whether a type is that of an array or pointer."""
    return isinstance(kind, types.Array | types.CPointer)


def pointer(dtype: np.dtype[Any]) -> Type:
    """The type of a flat pointer."""
    return types.CPointer(of_dtype(dtype))


def array(dtype: np.dtype[Any], ndim: int, contiguous: bool) -> Type:
    """The type of an array."""
    return types.Array(of_dtype(dtype), ndim, "C" if contiguous else "A")


def tuple_of(kinds: tuple[Type, ...]) -> Type:
    """The type of a tuple."""
    return types.BaseTuple.from_types(kinds)
