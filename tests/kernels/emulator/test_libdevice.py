"""Twins of libdevice: against Python's fractions, known bits, and the C library's float32 functions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from numba import cuda, float32, uint32
from numba.cuda import libdevice

from kernels.emulator import UnsupportedFeature, emulate
from kernels.emulator.libdevice import FUNCTIONS, fma, fma_double

F = np.float32
SPECIAL = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-45, 3.4028235e38], F)


def nearest_float32(exact: Fraction, mode: str) -> np.float32:
    """An exact number as float32, rounded by a mode, by search among the neighbours of a guess."""
    guess = F(float(exact))
    while Fraction(float(guess)) > exact:
        guess = np.nextafter(guess, F(-np.inf))
    above = np.nextafter(guess, F(np.inf))
    if Fraction(float(guess)) == exact:
        return guess
    if mode in ("rd", "ru"):
        return guess if mode == "rd" else above
    if mode == "rz":
        return guess if exact > 0 else above
    low, high = exact - Fraction(float(guess)), Fraction(float(above)) - exact
    even = guess if guess.view(np.int32) % 2 == 0 else above
    return guess if low < high else above if high < low else even


def hostile(rng: np.random.Generator, n: int) -> np.ndarray:
    """float32 of many magnitudes, with short fractions, so that sums and products fall on ties."""
    fraction = rng.integers(-(2**24), 2**24, n) >> rng.integers(0, 23, n)
    return np.ldexp(fraction.astype(np.float64), rng.integers(-30, 30, n)).astype(F)


def test_fma_rounds_once(rng) -> None:
    a, b = hostile(rng, 3000), hostile(rng, 3000)
    a[:1000] *= F(2.0**-60)  # whose products are subnormal
    b[:1000] *= F(2.0**-60)
    c = np.where(rng.random(3000) < 0.5, -(a * b) * F(1 + 2.0**-22), hostile(rng, 3000)).astype(F)
    result = fma(a, b, c)
    assert result.dtype == F
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    expected = np.array([nearest_float32(value, "rn") for value in exact])
    np.testing.assert_array_equal(result, expected)


def test_fma_where_float64_would_round_twice() -> None:
    # a b + c lies just above the middle between two float32; float64 drops the 2**-60 and the tie goes to even, down
    a, b, c = F(1 + 2.0**-12), F(1 + 2.0**-12), F(2.0**-60)
    assert float(F(float(a) * float(b) + float(c))) == 1 + 2.0**-11
    assert fma(a, b, c) == F(1 + 2.0**-11 + 2.0**-23)
    assert fma(a, b, -c) == F(1 + 2.0**-11)


def test_fma_specials() -> None:
    x = SPECIAL
    with np.errstate(all="ignore"):
        expected = (x.astype(np.float64) * 2 + 1).astype(F)
        np.testing.assert_array_equal(fma(x, F(2), F(1)), expected)
    assert np.isnan(fma(F(np.inf), F(0), F(1)))
    assert fma_double(1e308, 10.0, 0.0) == math.inf
    assert fma_double(1 + 2.0**-30, 1 + 2.0**-30, -1.0) == 2.0**-29 + 2.0**-60


@pytest.mark.parametrize("mode", ["rn", "rz", "rd", "ru"])
def test_rounding_modes(rng, mode: str) -> None:
    a, b = hostile(rng, 400), hostile(rng, 400)
    a[a == 0], b[b == 0] = 2, 3
    operations = {"fadd": lambda x, y: x + y, "fsub": lambda x, y: x - y, "fmul": lambda x, y: x * y,
                  "fdiv": lambda x, y: x / y}  # fmt: skip
    for name, exact in operations.items():
        result = FUNCTIONS[getattr(libdevice, f"{name}_{mode}")](a, b)
        expected = [
            nearest_float32(exact(Fraction(float(x)), Fraction(float(y))), mode) for x, y in zip(a, b, strict=True)
        ]
        np.testing.assert_array_equal(result, np.array(expected), err_msg=name)
    root = FUNCTIONS[getattr(libdevice, f"fsqrt_{mode}")](np.abs(a))
    for x, r in zip(np.abs(a), root, strict=True):
        low, high = (Fraction(float(np.nextafter(r, F(limit)))) for limit in (-np.inf, np.inf))
        square, value = Fraction(float(r)) ** 2, Fraction(float(x))
        if mode == "rn":
            assert ((low + Fraction(float(r))) / 2) ** 2 <= value <= ((high + Fraction(float(r))) / 2) ** 2
        elif mode == "ru":
            assert max(low, 0) ** 2 < value <= square or value == square
        else:
            assert square <= value < high**2


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("expf", math.exp), ("logf", math.log), ("log1pf", math.log1p), ("sinf", math.sin), ("cosf", math.cos),
        ("tanhf", math.tanh), ("sqrtf", math.sqrt), ("cbrtf", lambda x: x ** (1 / 3)), ("rsqrtf", lambda x: x**-0.5),
        ("erff", math.erf), ("exp2f", lambda x: 2.0**x), ("log2f", math.log2), ("log10f", math.log10),
        ("expm1f", math.expm1), ("exp10f", lambda x: 10.0**x), ("asinhf", math.asinh),
        ("rcbrtf", lambda x: x ** (-1 / 3)),
        ("sinpif", lambda x: math.sin(math.pi * x)), ("cospif", lambda x: math.cos(math.pi * x)),
        ("erfcf", math.erfc), ("atanf", math.atan), ("frsqrt_rn", lambda x: x**-0.5),
    ],
)  # fmt: skip
def test_functions_are_within_half_an_ulp(rng, name: str, reference) -> None:
    x = rng.uniform(0.01, 9, 500).astype(F)
    result = FUNCTIONS[getattr(libdevice, name)](x)
    assert result.dtype == F
    exact = np.array([reference(float(value)) for value in x])
    slack = np.spacing(np.maximum(np.abs(result), F(2.0**-24)))  # near a zero the reference is not exact itself
    assert np.all(np.abs(result - exact) <= 0.5001 * slack)
    scalar = FUNCTIONS[getattr(libdevice, name)](x[0])
    assert isinstance(scalar, F)
    assert scalar == result[0]


def test_maximum_and_minimum_ignore_one_nan() -> None:
    for name, one, both in (("fmaxf", 2.0, 2.0), ("fminf", 2.0, 1.0)):
        function = FUNCTIONS[getattr(libdevice, name)]
        assert function(F(np.nan), F(2)) == one
        assert function(F(2), F(np.nan)) == one
        assert function(F(1), F(2)) == both
        assert np.isnan(function(F(np.nan), F(np.nan)))


def test_saturate_and_round() -> None:
    np.testing.assert_array_equal(FUNCTIONS[libdevice.saturatef](np.array([-1, 0.25, 7, np.nan, np.inf], F)),
                                  np.array([0, 0.25, 1, 0, 1], F))  # fmt: skip
    x = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 8388609.0, np.inf], F)
    np.testing.assert_array_equal(FUNCTIONS[libdevice.roundf](x), np.array([1, -1, 2, 3, -3, 0, 8388609, np.inf], F))
    np.testing.assert_array_equal(FUNCTIONS[libdevice.rintf](x), np.array([0, 0, 2, 2, -2, 0, 8388609, np.inf], F))


def test_fast_functions_err_as_documented(rng) -> None:
    """fast_expf: at most 2 + floor(|1.173 x|) ulp, and more than the accurate function for large x."""
    x = rng.uniform(-80, 80, 4000).astype(F)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(FUNCTIONS[libdevice.fast_expf](x) - exact) / np.spacing(exact.astype(F))
    assert np.all(error <= 2 + np.floor(np.abs(1.173 * x)))
    assert error.max() > 10
    y = rng.uniform(3, 1e6, 4000).astype(F)
    logarithm = FUNCTIONS[libdevice.fast_logf](y)
    assert np.all(np.abs(logarithm - np.log(y.astype(np.float64))) <= 3 * np.spacing(logarithm))
    power = FUNCTIONS[libdevice.fast_powf](F(3), F(4))
    assert abs(power - 81) < 1e-4
    divide = FUNCTIONS[libdevice.fast_fdividef]
    assert divide(F(3), F(2)) == F(1.5)
    assert divide(F(1), F(2.0**127)) == 0  # documented: 0 where the reciprocal is subnormal
    assert np.isnan(divide(F(np.inf), F(2.0**127)))


def test_integers() -> None:
    i = np.array([0, 1, 2, 0x00F0_0000, -1, -(2**31)], np.int32)
    u = i.view(np.uint32)
    assert FUNCTIONS[cuda.popc](u).tolist() == [0, 1, 1, 4, 32, 1]
    assert FUNCTIONS[libdevice.popc](i).tolist() == [0, 1, 1, 4, 32, 1]
    assert FUNCTIONS[cuda.clz](i).tolist() == [32, 31, 30, 8, 0, 0]
    assert FUNCTIONS[libdevice.clzll](np.array([0, 1, -1])).tolist() == [64, 63, 0]
    assert FUNCTIONS[cuda.ffs](i).tolist() == [0, 1, 2, 21, 1, 32]
    assert FUNCTIONS[libdevice.ffsll](np.int64(2**40)) == 41
    assert FUNCTIONS[cuda.brev](u).tolist() == [0, 2**31, 2**30, 0x0000_0F00, 2**32 - 1, 1]
    assert FUNCTIONS[cuda.brev](np.uint64(1)) == np.uint64(2**63)
    a, b = np.int32(-5), np.int32(7)
    assert FUNCTIONS[libdevice.mulhi](a, b) == -1
    assert FUNCTIONS[libdevice.umulhi](a, b) == (2**32 - 5) * 7 >> 32
    assert FUNCTIONS[libdevice.umax](a, b) == a
    assert FUNCTIONS[libdevice.umin](a, b) == b
    assert FUNCTIONS[cuda.selp](np.array([True, False]), np.int32(1), np.int32(2)).tolist() == [1, 2]


def test_conversions() -> None:
    x = np.array([1.5, 2.5, -1.5, np.nan, np.inf, -np.inf, 3e9, 0.4], F)
    low, high = -(2**31), 2**31 - 1
    expected = {
        "rn": [2, 2, -2, 0, high, low, high, 0],
        "rz": [1, 2, -1, 0, high, low, high, 0],
        "rd": [1, 2, -2, 0, high, low, high, 0],
        "ru": [2, 3, -1, 0, high, low, high, 1],
    }
    for mode, values in expected.items():
        result = FUNCTIONS[getattr(libdevice, f"float2int_{mode}")](x)
        assert result.dtype == np.int32
        assert result.tolist() == values
    assert FUNCTIONS[libdevice.float_as_int](F(1)) == 0x3F80_0000
    assert FUNCTIONS[libdevice.int_as_float](np.int32(0x3F80_0000)) == F(1)
    assert FUNCTIONS[libdevice.int2float_rn](np.int32(2**24 + 1)) == F(2**24)
    assert FUNCTIONS[libdevice.uint2float_rn](np.int32(-1)) == F(2**32)


def test_all_take_scalars_and_vectors_and_warn_of_nothing() -> None:
    """Each function, on special values, gives what Numba declares: shape, and a dtype of the declared kind."""
    from numba.cuda.libdevicefuncs import functions

    for function, twin in FUNCTIONS.items():
        declared = functions.get(f"__nv_{getattr(function, '__name__', '')}")
        if declared is None or function.__module__ != "numba.cuda.libdevice":
            continue
        result_type, parameters = declared
        vectors = [SPECIAL.astype(parameter.ty.name) if parameter.ty.name.startswith("float")
                   else np.arange(-4, 5).astype(parameter.ty.name) for parameter in parameters]  # fmt: skip
        result = twin(*vectors)
        assert result.shape == SPECIAL.shape, function
        assert result.dtype == np.dtype(result_type.name), function
        assert twin(*(vector[2] for vector in vectors)).shape == (), function


def test_in_a_kernel() -> None:
    def kernel(x, y, bits):
        i = cuda.threadIdx.x
        v = x[i]
        y[0, i] = libdevice.rsqrtf(v)
        y[1, i] = cuda.fma(v, v, float32(-1))
        y[2, i] = libdevice.fminf(v, libdevice.int_as_float(libdevice.float_as_int(float32(2))))
        y[3, i] = libdevice.fadd_rz(v, float32(1e-7))
        y[4, i] = cuda.selp(v > float32(2), v, float32(0))
        y[5, i] = math.exp(v) - libdevice.expf(v)
        y[6, i] = libdevice.fast_fdividef(v, float32(4))
        y[7, i] = libdevice.float2int_rd(v)
        bits[i] = cuda.popc(uint32(i)) + cuda.clz(uint32(i)) + cuda.ffs(uint32(i)) + libdevice.umulhi(-1, i)

    x = np.array([0.5, 1, 1.5, 4], F)
    y, bits = np.zeros((8, 4), F), np.zeros(4, np.int64)
    emulate(kernel, 1, 4, x, y, bits)
    np.testing.assert_allclose(y[0], 1 / np.sqrt(x), rtol=1e-7)
    np.testing.assert_array_equal(y[1], x * x - 1)
    np.testing.assert_array_equal(y[2], [0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(y[3], [np.nextafter(F(0.5), F(1)), 1, 1.5, 4])
    np.testing.assert_array_equal(y[4], [0, 0, 0, 4])
    np.testing.assert_array_equal(y[5], 0)
    np.testing.assert_array_equal(y[6], x / 4)
    np.testing.assert_array_equal(y[7], [0, 1, 1, 4])
    assert bits.tolist() == [0 + 32 + 0 + 0, 1 + 31 + 1 + 0, 1 + 30 + 2 + 1, 2 + 30 + 1 + 2]


def test_a_function_without_a_twin_is_refused_by_name() -> None:
    def kernel(y):
        y[0] = libdevice.j0f(float32(1))

    with pytest.raises(UnsupportedFeature, match="j0f"):
        emulate(kernel, 1, 1, np.zeros(1, F))
