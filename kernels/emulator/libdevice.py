"""Twins of the scalar functions of `numba.cuda` and `numba.cuda.libdevice`, on NumPy scalars and vectors.

Arguments come in the types that Numba declares. A float32 function is computed in float64 and rounded once, so that it
is the nearest float32 but for one in about 2**28 arguments; the GPU's may be some units in the last place (ulp) away
("CUDA C++ Programming Guide", Mathematical Functions). What is exact there is exact here: sqrt, fma, division,
conversions, and the functions with a rounding mode in their name: _rn nearest even, _rz towards zero, _rd down, _ru up.

The fast_ functions are composed as on the GPU of exp2 and log2, with float32 between, and so have the errors that stem
from that, such as |1.173 x| + 2 ulp of fast_expf; the approximation of exp2 and log2 themselves (2 ulp; for log2
between 0.5 and 2 an absolute 2**-22) is not modelled.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import libdevice

Value = Any  # a NumPy scalar or vector
Twin = Callable[..., Value]

FUNCTIONS: dict[Any, Twin] = {}  # by the object that a kernel calls


def fma(a: Value, b: Value, c: Value) -> Value:
    """The float32 a * b + c, rounded once, to nearest even."""
    with np.errstate(invalid="ignore"):
        return rounded(_odd_sum(_wide(a) * _wide(b), _wide(c)), "rn")


def fma_double(a: Value, b: Value, c: Value) -> Value:
    """The float64 a * b + c, rounded once, to nearest even; in Python's fractions, and so slow."""

    def one(x: float, y: float, z: float) -> float:
        if not all(map(math.isfinite, (x, y, z))) or 0.0 in (x, y):
            return x * y + z
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            return float(exact) if exact else x * y + z
        except OverflowError:
            return math.inf if exact > 0 else -math.inf

    with np.errstate(all="ignore"):
        return np.vectorize(one, otypes=[np.float64])(a, b, c)[()]


def rounded(x: Value, mode: str) -> Value:
    """float64 as float32, by a rounding mode: "rn", "rz", "rd" or "ru"."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = np.asarray(x, np.float64).astype(np.float32)
    if mode != "rn":
        back = nearest.astype(np.float64)
        above, below = back > x, back < x
        down = {"rz": above & (x > 0), "rd": above, "ru": False}[mode]
        up = {"rz": below & (x < 0), "rd": False, "ru": below}[mode]
        nearest = np.where(down, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        nearest = np.where(up, np.nextafter(nearest, np.float32(np.inf)), nearest)
    return nearest[()]


def _wide(x: Value) -> Value:
    return np.asarray(x).astype(np.float64)


def _odd_sum(a: Value, b: Value) -> Value:
    """The float64 a + b, rounded to odd: cut off, and the last bit set where that was not exact.

    What is then rounded to float32, in any way, is as if it had been rounded but once (S. Boldo, G. Melquiond,
    "Emulation of FMA and correctly rounded sums", IEEE Transactions on Computers 57, 2008). The rest of the sum is that
    of D. Knuth, "The Art of Computer Programming" 2, 4.2.2, theorem B.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.asarray(a + b)
        part = total - a
        rest = (a - (total - part)) + (b - part)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & np.isfinite(rest) & (rest != 0) & (bits & 1 == 0)
    towards = np.where((rest > 0) == (total > 0), 1, -1)  # in magnitude
    return np.where(inexact, bits + towards, bits).view(np.float64)


def _single(function: Twin) -> Twin:
    """Of a function on float64 the float32 one."""

    def twin(*arguments: Value) -> Value:
        with np.errstate(all="ignore"):
            return rounded(function(*(_wide(argument) for argument in arguments)), "rn")

    return twin


def _quiet(function: Twin) -> Twin:
    def twin(*arguments: Value) -> Value:
        with np.errstate(all="ignore"):
            return np.asarray(function(*arguments))[()]

    return twin


def _by_type(single: Twin, double: Twin) -> Twin:
    return lambda *arguments: (single if arguments[0].dtype == np.float32 else double)(*arguments)


def _elementwise(function: Callable[[float], float]) -> Twin:
    vectorized = np.vectorize(function, otypes=[np.float64])  # refuses vectors without elements
    return lambda x: vectorized(x) if np.size(x) else np.asarray(x, np.float64)


def _round(x: Value) -> Value:
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1.0, x), whole)


def _sinpi(x: Value) -> Value:
    y = x - 2.0 * np.rint(x / 2.0)  # exact, -1 to 1
    folded = np.where(np.abs(y) > 0.5, np.copysign(1.0, y) - y, y)
    return np.copysign(np.sin(np.pi * folded), np.where(folded == 0, x, folded))


def _cospi(x: Value) -> Value:
    y = np.abs(x - 2.0 * np.rint(x / 2.0))
    return np.sin(np.pi * (0.5 - y))


def _saturate(x: Value) -> Value:
    return np.where(x > 0, np.minimum(x, 1.0), 0.0)  # NaN becomes 0


def float_power(base: Value, exponent: Value) -> Value:
    """A power by C's rules; NumPy takes the square root for an exponent of 0.5, which is NaN of -inf and keeps -0."""
    result = np.power(base, exponent)
    half = exponent == 0.5
    if np.any(half):
        whole = np.isinf(base) | (base == 0)
        result = np.asarray(np.where(half & whole, np.abs(base), result), result.dtype)[()]
    return result


_REAL: dict[str, Twin] = {
    **{name: getattr(np, name) for name in (
        "cbrt", "ceil", "copysign", "cos", "cosh", "exp", "exp2", "expm1", "fabs", "floor", "fmax", "fmin", "fmod",
        "hypot", "log", "log10", "log1p", "log2", "rint", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
    )},
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("cos", "cosh", "sin", "sinh", "tan", "tan2", "tanh")},
    "nearbyint": np.rint,
    "pow": float_power,
    "round": _round,
    "exp10": lambda x: np.power(10.0, x),
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "rcbrt": lambda x: 1.0 / np.cbrt(x),
    "fdim": lambda x, y: np.where(x <= y, 0.0, x - y),
    "sinpi": _sinpi,
    "cospi": _cospi,
    "erf": _elementwise(math.erf),
    "erfc": _elementwise(math.erfc),
}  # fmt: skip


def _in_single(*steps: Twin) -> Twin:
    """Functions on float64 one after the other, with float32 between."""

    def twin(*arguments: Value) -> Value:
        value: Value = arguments
        for step in steps:
            value = (_single(step)(*value),)
        return value[0]

    return twin


_LOG2_E, _LOG2_10 = (float(np.float32(c)) for c in (1 / math.log(2), math.log2(10)))
_LN_2, _LOG10_2 = (float(np.float32(c)) for c in (math.log(2), math.log10(2)))


def _fast_divide(x: Value, y: Value) -> Value:
    quotient = _single(np.multiply)(x, _single(np.reciprocal)(y))
    huge = (np.abs(y) > np.float32(2.0**126)) & np.isfinite(y)  # whose reciprocal is subnormal, and taken as 0
    return np.asarray(np.where(huge, _quiet(np.multiply)(x, np.float32(0)), quotient))[()]


_FAST: dict[str, Twin] = {
    "expf": _in_single(lambda x: x * _LOG2_E, np.exp2),
    "exp10f": _in_single(lambda x: x * _LOG2_10, np.exp2),
    "logf": _in_single(np.log2, lambda x: x * _LN_2),
    "log10f": _in_single(np.log2, lambda x: x * _LOG10_2),
    "log2f": _single(np.log2),
    "powf": lambda x, y: _in_single(lambda a, b: a * b, np.exp2)(_single(np.log2)(x), y),
    "sinf": _single(np.sin),
    "cosf": _single(np.cos),
    "tanf": lambda x: _fast_divide(_single(np.sin)(x), _single(np.cos)(x)),
    "fdividef": _fast_divide,
}


def _with_mode(mode: str) -> dict[str, Twin]:
    """float32 arithmetic that is rounded by a mode."""

    def exact(function: Twin) -> Twin:
        # A quotient or root of float32 that float64 does not hold lies too far from any float32, or the middle between
        # two, for rounding twice to matter.
        def twin(*arguments: Value) -> Value:
            with np.errstate(all="ignore"):
                return rounded(function(*(_wide(argument) for argument in arguments)), mode)

        return twin

    return {
        "fadd_": exact(_odd_sum),
        "fsub_": exact(lambda a, b: _odd_sum(a, -b)),
        "fmul_": exact(np.multiply),
        "fdiv_": exact(np.divide),
        "frcp_": exact(np.reciprocal),
        "fsqrt_": exact(np.sqrt),
        "fmaf_": exact(lambda a, b, c: _odd_sum(a * b, c)),
    }


def _to_integer(mode: str, dtype: type[np.integer[Any]]) -> Twin:
    """From float to integer: saturated, NaN becomes 0 (PTX ISA, cvt)."""
    whole = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}[mode]
    info = np.iinfo(dtype)

    def twin(x: Value) -> Value:
        with np.errstate(invalid="ignore"):
            value = whole(_wide(x))
            result = np.where(np.isnan(value), 0.0, value).astype(dtype)
        result = np.where(value <= float(info.min), info.min, result)
        return np.where(value >= float(info.max), info.max, result).astype(dtype)[()]

    return twin


def _bits(dtype: Any) -> Twin:
    return lambda x: np.asarray(x).view(dtype)[()]


def _unsigned(x: Value) -> Value:
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "i" else x


def _leading_zeros(x: Value) -> Value:
    x = _unsigned(x)
    zeros = np.full(x.shape, 8 * x.dtype.itemsize, np.int32)
    for bit in range(8 * x.dtype.itemsize):
        zeros = np.where(x >> x.dtype.type(bit) != 0, 8 * x.dtype.itemsize - 1 - bit, zeros)
    return zeros.astype(np.int32)[()]


def _ones(x: Value) -> Value:
    return np.bitwise_count(_unsigned(x)).astype(np.int32)[()]


def _first_set(x: Value) -> Value:
    """The number of the lowest bit that is set, from 1; 0 where none is."""
    x = _unsigned(x)
    lowest = x & (~x + x.dtype.type(1))
    return np.where(x == 0, 0, 8 * x.dtype.itemsize - _leading_zeros(lowest)).astype(np.int32)[()]


def _reversed(x: Value) -> Value:
    given = np.asarray(x)
    x = _unsigned(given)
    width, result = 8 * x.dtype.itemsize, np.zeros_like(x)
    for bit in range(width):
        result |= ((x >> x.dtype.type(bit)) & x.dtype.type(1)) << x.dtype.type(width - 1 - bit)
    return result.view(given.dtype)[()]


def _high(unsigned: bool) -> Twin:
    """The upper 32 bits of a product of 32-bit integers."""

    def twin(a: Value, b: Value) -> Value:
        a, b = np.asarray(a), np.asarray(b)
        if unsigned:
            wide = _unsigned(a).astype(np.uint64) * _unsigned(b).astype(np.uint64)
        else:
            wide = a.astype(np.int64) * b.astype(np.int64)
        return (wide >> wide.dtype.type(32)).astype(a.dtype)[()]

    return twin


def _as_unsigned(function: Twin) -> Twin:
    return lambda a, b: np.asarray(function(_unsigned(a), _unsigned(b))).view(np.asarray(a).dtype)[()]


_INTEGER: dict[str, Twin] = {
    "abs": _quiet(np.abs),
    "llabs": _quiet(np.abs),
    "max": np.maximum,
    "llmax": np.maximum,
    "umax": _as_unsigned(np.maximum),
    "ullmax": _as_unsigned(np.maximum),
    "min": np.minimum,
    "llmin": np.minimum,
    "umin": _as_unsigned(np.minimum),
    "ullmin": _as_unsigned(np.minimum),
    "mulhi": _high(unsigned=False),
    "umulhi": _high(unsigned=True),
    "popc": _ones,
    "popcll": _ones,
    "clz": _leading_zeros,
    "clzll": _leading_zeros,
    "ffs": _first_set,
    "ffsll": _first_set,
    "brev": _reversed,
    "brevll": _reversed,
}

_CONVERSIONS: dict[str, Twin] = {
    "float_as_int": _bits(np.int32),
    "int_as_float": _bits(np.float32),
    "double_as_longlong": _bits(np.int64),
    "longlong_as_double": _bits(np.float64),
    "int2float_rn": lambda x: np.asarray(x).astype(np.float32)[()],
    "uint2float_rn": lambda x: _unsigned(x).astype(np.float32)[()],
    "ll2float_rn": lambda x: np.asarray(x).astype(np.float32)[()],
    "ull2float_rn": lambda x: _unsigned(x).astype(np.float32)[()],
    "finitef": lambda x: np.isfinite(x).astype(np.int32)[()],
    "isinff": lambda x: np.isinf(x).astype(np.int32)[()],
    "isnanf": lambda x: np.isnan(x).astype(np.int32)[()],
    "signbitf": lambda x: np.signbit(x).astype(np.int32)[()],
}


def _table() -> dict[str, Twin]:
    table: dict[str, Twin] = {}
    for name, real in _REAL.items():
        table[name], table[f"{name}f"] = _quiet(real), _single(real)
    table["saturatef"] = _single(_saturate)
    table["nextafter"] = table["nextafterf"] = _quiet(np.nextafter)
    table["fma"], table["fmaf"] = fma_double, fma
    table["frsqrt_rn"] = table["rsqrtf"]
    table.update({f"fast_{name}": fast for name, fast in _FAST.items()})
    for mode in ("rn", "rz", "rd", "ru"):
        table.update({name + mode: twin for name, twin in _with_mode(mode).items()})
        for name, dtype in (("int", np.int32), ("ll", np.int64)):
            table[f"float2{name}_{mode}"] = _to_integer(mode, dtype)
    return table | _INTEGER | _CONVERSIONS


FUNCTIONS.update({getattr(libdevice, name): twin for name, twin in _table().items()})
FUNCTIONS.update(
    {
        cuda.fma: _by_type(fma, fma_double),
        cuda.cbrt: _by_type(_single(np.cbrt), np.cbrt),
        cuda.popc: _ones,
        cuda.clz: _leading_zeros,
        cuda.ffs: _first_set,
        cuda.brev: _reversed,
        cuda.selp: lambda condition, a, b: np.asarray(np.where(condition, a, b))[()],
    }
)
