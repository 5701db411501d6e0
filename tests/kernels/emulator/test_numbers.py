"""Numbers are what Numba makes of them: widths, wrap-around, rounding, conversions."""

import math
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int8, int16, int32, int64, uint8, uint16, uint32, uint64
from one_block import run

from kernels.emulator import emulate


def test_integers_wrap_around() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        y[0] = int64(uint32(t - 1))
        y[1] = int64(int32(2147483647 + t + 1))
        y[2] = int64(uint8(t + 300))
        y[3] = int64(int8(200 + t))
        y[4] = 9223372036854775807 + t + 1
        y[5] = int64(uint32(1) << uint32(31))
        y[6] = (t - 7) // 2
        y[7] = (t - 7) % 4
        y[8] = (t - 7) // 3 * 100 + (t - 7) % 3
        y[9] = (t - 8) >> 1

    y = np.zeros(10, np.int64)
    emulate(kernel, 1, 1, y)
    assert y.tolist() == [2**32 - 1, -(2**31), 44, -56, -(2**63), 2**31, -4, 1, -3 * 100 + 2, -4]


def test_narrow_integers_are_added_and_multiplied_in_64_bits() -> None:
    def kernel(y):
        a = int32(cuda.threadIdx.x + 2147483000)
        u = uint32(cuda.threadIdx.x + 4294967000)
        y[cuda.threadIdx.x, 0] = a + a
        y[cuda.threadIdx.x, 1] = a * a
        y[cuda.threadIdx.x, 2] = int64(u + u)
        y[cuda.threadIdx.x, 3] = -a - a
        y[cuda.threadIdx.x, 4] = a << 3

    y = np.zeros((3, 5), np.int64)
    emulate(kernel, 1, 3, y)
    for t in range(3):
        a, u = t + 2147483000, t + 4294967000
        assert y[t].tolist() == [2 * a, a * a, 2 * u, -2 * a, a << 3]


def test_hash_in_uint64() -> None:
    def kernel(y):
        z = uint64(cuda.threadIdx.x) * uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
        y[cuda.threadIdx.x] = z ^ (z >> uint64(27))

    def one(t: int) -> int:
        z = t * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        return z ^ z >> 27

    assert run(kernel, 40, dtype=np.uint64).tolist() == [one(t) for t in range(40)]


def test_float32_is_rounded_at_every_step() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = (x[t] + float32(1e8)) - float32(1e8)

    x = np.array([3, 5, 11], np.float32)
    assert run(kernel, 3, x, dtype=np.float32).tolist() == [0, 8, 8]


def test_floats_become_integers_towards_zero_and_saturate() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = int32(x[t])

    x = np.array([1.9, -1.9, 1e20, -1e20, np.nan, np.inf], np.float32)
    assert run(kernel, 6, x).tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 2**31 - 1]


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("to", "expected"),
    [
        (int8, [44, -44, -126, -56, -1, 0, -1, 0]),
        (uint8, [44, 0, 130, 200, 255, 0, 255, 0]),
        (int16, [300, -300, 130, 200, 32767, -32768, 32767, 0]),
        (uint16, [300, 0, 130, 200, 65535, 0, 65535, 0]),
        (int64, [300, -300, 130, 200, 10**12, -(10**12), 2**63 - 1, -(2**63)]),
        (uint64, [300, 0, 130, 200, 10**12, 0, 2**64 - 1, 2**63]),
    ],
)
def test_floats_become_narrow_and_wide_integers_as_in_ptx(source: Any, to: Any, expected: list[int]) -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = to(x[t])

    x = np.array([300.9, -300.9, 130, 200, 1e12, -1e12, np.inf, np.nan], source)
    result = run(kernel, 8, x, dtype=np.dtype(str(to)))
    if source is np.float32:  # which does not hold 1e12
        expected = [int(np.sign(v)) * int(np.float32(1e12)) if abs(v) == 10**12 else v for v in expected]
    elif str(to) in ("int16", "uint16"):
        expected = [*expected[:7], -(2**15) if to is int16 else 2**15]
    assert result.tolist() == expected


def test_float16_is_rounded_to_the_nearest_integer() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[0, t] = int8(x[t])
        y[1, t] = uint32(x[t])

    y = np.zeros((2, 5), np.int64)
    emulate(kernel, 1, 5, y, np.array([1.5, 2.5, -1.75, 300, np.nan], np.float16))
    assert y.tolist() == [[2, 2, -2, 127, 0], [2, 2, 0, 300, 0]]


def test_minus_and_complement_are_taken_in_the_operands_own_type() -> None:
    def kernel(y, small, unsigned, signed):
        t = cuda.threadIdx.x
        y[0, t] = -small[t] // 2
        y[1, t] = ~small[t]
        y[2, t] = (~unsigned[t]) >> 16
        y[3, t] = -unsigned[t]
        y[4, t] = -signed[t]
        y[5, t] = -uint8(5) + (~uint32(0) >> 28)  # constants

    y = np.zeros((6, 2), np.int64)
    emulate(kernel, 1, 2, y, np.array([5, 0], np.uint8), np.array([0, 1], np.uint32), np.array([-(2**31), 3], np.int32))
    assert y.tolist() == [[125, 0], [250, 255], [65535, 65535], [0, 2**32 - 1], [-(2**31), -3], [266, 266]]


def test_powers_of_infinity_and_zero_follow_c() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[0, t] = x[t] ** float32(0.5)
        y[1, t] = math.pow(x[t], float32(0.5))
        y[2, t] = x[t] ** float32(1.5)

    y = np.zeros((3, 4), np.float32)
    emulate(kernel, 1, 4, y, np.array([-np.inf, -0.0, 4, -4], np.float32))
    np.testing.assert_allclose(y, [[np.inf, 0, 2, np.nan], [np.inf, 0, 2, np.nan], [np.inf, 0, 8, np.nan]], rtol=1e-6)
    assert not np.signbit(y[:, 1]).any()


def test_min_max_abs_of_floats() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[0, t] = max(x[t], float32(0))
        y[1, t] = min(x[t], float32(0), float32(5))
        y[2, t] = abs(x[t])
        y[3, t] = round(x[t]) if x[t] == x[t] else 0

    x = np.array([-2.5, 3.5, np.nan, -0.0], np.float32)
    y = np.zeros((4, 4), np.float32)
    emulate(kernel, 1, 4, y, x)
    np.testing.assert_array_equal(
        y, np.array([[0, 3.5, 0, 0], [-2.5, 0, 0, -0.0], [2.5, 3.5, np.nan, 0], [-2, 4, 0, 0]])
    )
    assert not np.signbit(y[0, 3])
    assert np.signbit(y[1, 3])


def test_math_functions() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[0, t] = math.sqrt(x[t])
        y[1, t] = math.exp(-x[t])
        y[2, t] = math.log(x[t])
        y[3, t] = math.floor(x[t]) + math.ceil(x[t])
        y[4, t] = x[t] ** 3
        y[5, t] = float32(1) if math.isnan(x[t]) or math.isinf(x[t]) else float32(0)
        y[6, t] = math.pow(x[t], float32(0.5))

    x = np.array([0.25, 1.5, 9, np.inf], np.float32)
    y = np.zeros((7, 4), np.float32)
    emulate(kernel, 1, 4, y, x)
    wide = x.astype(np.float64)
    expected = [
        np.sqrt(wide),
        np.exp(-wide),
        np.log(wide),
        np.floor(wide) + np.ceil(wide),
        wide**3,
        wide == np.inf,
        wide**0.5,
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-6)
