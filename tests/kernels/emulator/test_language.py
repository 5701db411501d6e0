"""Every feature of the language that kernels are written in, one small kernel each."""

import math
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

from kernels.emulator import OutOfBounds, UnsupportedFeature, emulate
from kernels.launch import Float, Floats, Int64

Array = NDArray[Any]


def run(kernel: Any, n: int, *given: Any, dtype: Any = np.int64, **options: Any) -> Array:
    y = np.zeros(n, dtype)
    emulate(kernel, 1, n, y, *given, **options)
    return y


def test_positions_in_three_dimensions() -> None:
    def kernel(y, sizes):
        x, r, d = cuda.grid(3)
        y[d, r, x] = (
            ((cuda.blockIdx.z * 10 + cuda.blockIdx.y) * 10 + cuda.blockIdx.x) * 1000
            + (cuda.threadIdx.z * 10 + cuda.threadIdx.y) * 10
            + cuda.threadIdx.x
        )
        if x == 0 and r == 0 and d == 0:
            sizes[0], sizes[1], sizes[2] = cuda.gridsize(3)
            sizes[3] = cuda.blockDim.x * 100 + cuda.blockDim.y * 10 + cuda.blockDim.z
            sizes[4] = cuda.gridDim.x * 100 + cuda.gridDim.y * 10 + cuda.gridDim.z

    y, sizes = np.zeros((8, 3, 10), np.int64), np.zeros(5, np.int64)
    emulate(kernel, (2, 1, 4), (5, 3, 2), y, sizes, outputs=["y", "sizes"])
    for d in range(8):
        for r in range(3):
            for x in range(10):
                assert y[d, r, x] == (d // 2 * 100 + x // 5) * 1000 + d % 2 * 100 + r * 10 + x % 5
    assert sizes.tolist() == [10, 3, 8, 532, 214]


def test_blocks_run_in_batches_have_their_own_shared_memory() -> None:
    def kernel(y):
        s = cuda.shared.array(64, int64)
        t = cuda.threadIdx.x
        s[t] = cuda.blockIdx.x * 1000 + t
        cuda.syncthreads()
        y[cuda.blockIdx.x, t] = s[63 - t]

    y = np.zeros((2000, 64), np.int64)
    emulate(kernel, 2000, 64, y, outputs=["y"])
    np.testing.assert_array_equal(y, np.arange(2000)[:, None] * 1000 + np.arange(64)[::-1])


def test_if_elif_else() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        if t < 2:
            y[t] = 10
        elif t < 5:
            y[t] = 20 + t
        elif t == 7:
            pass
        else:
            y[t] = 30

    assert run(kernel, 9).tolist() == [10, 10, 22, 23, 24, 30, 30, 0, 30]


def test_while_with_break_and_continue() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        k = 0
        total = 0
        while True:
            k += 1
            if k > t:
                break
            if k % 2 == 0:
                continue
            total += k
        y[t] = total * 100 + k

    expected = [sum(k for k in range(1, t + 1) if k % 2) * 100 + t + 1 for t in range(12)]
    assert run(kernel, 12).tolist() == expected


def test_for_ranges() -> None:
    def kernel(y, n):
        t = cuda.threadIdx.x
        total = 0
        for i in range(n):
            total += i
        for i in range(t, 10):
            total += 100 * i
        for i in range(20, t, -3):
            total += 10000 * i
        for i in range(5, 5):
            total = -i
        y[t] = total + i

    def one(t: int) -> int:
        total = sum(range(4)) + 100 * sum(range(t, 10)) + 10000 * sum(range(20, t, -3))
        last = [*range(4), *range(t, 10), *range(20, t, -3)][-1]
        return total + last

    assert run(kernel, 12, 4).tolist() == [one(t) for t in range(12)]


def test_loop_over_a_tuple() -> None:
    steps = (3, 5)

    def kernel(y):
        total = 0
        for step in steps:
            for sign in (1, -1):
                total = total * 2 + step * sign * cuda.threadIdx.x
        y[cuda.threadIdx.x] = total

    assert run(kernel, 4).tolist() == [((((3 * t) * 2 - 3 * t) * 2 + 5 * t) * 2 - 5 * t) for t in range(4)]


def test_return_in_a_loop_takes_lanes_out() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        y[t] = -1
        for i in range(10):
            if i == t:
                return
            y[t] = i
        y[t] = 100

    assert run(kernel, 12).tolist() == [-1, *range(9), 100, 100]


def test_nested_loops_with_breaks() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        count = 0
        for i in range(t):
            for j in range(i):
                if j == 3:
                    break
                if (i + j) % 3 == 0:
                    continue
                count += 1
            if count > 10:
                break
        y[t] = count

    def one(t: int) -> int:
        count = 0
        for i in range(t):
            for j in range(i):
                if j == 3:
                    break
                if (i + j) % 3 == 0:
                    continue
                count += 1
            if count > 10:
                break
        return count

    assert run(kernel, 16).tolist() == [one(t) for t in range(16)]


def test_short_circuits_evaluate_only_what_they_need() -> None:
    def kernel(y, x, n):
        t = cuda.threadIdx.x
        y[t] = 1 if t < n and x[t] > 0 else 0
        if t >= n or x[t] > 5:
            y[t] += 10
        y[t] += 100 * (x[t] if t < n else 7)
        if 0 <= t - 1 < n and 0 < x[t - 1] < 6:
            y[t] += 10000

    x = np.array([0, 3, 9, -1])
    expected = [0, 301 + 0, 911 + 10000, -100, 710 + 0, 710]
    expected[4] = 710  # x[3] is not above 0
    assert run(kernel, 6, x, 4).tolist() == expected


def test_chained_comparison_reads_later_operands_only_where_needed() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = 1 if 2 <= t < x[t - 2] else 0

    assert run(kernel, 4, np.array([3, 3])).tolist() == [0, 0, 1, 0]


def test_tuples() -> None:
    shape = (3, (4, 5))

    def kernel(y):
        t = cuda.threadIdx.x
        pair = (t, t * 2)
        a, (b, c) = pair[0], (pair[1], shape[1][0])
        a, b = b, a
        triple = pair + (7,)  # noqa: RUF005
        y[t] = a * 1000 + b * 100 + c * 10 + triple[2] + len(triple)

    assert run(kernel, 5).tolist() == [t * 2000 + t * 100 + 40 + 7 + 3 for t in range(5)]


def test_tuple_indexed_by_a_variable() -> None:
    table = (5, 7, 11)

    def kernel(y):
        t = cuda.threadIdx.x
        y[t] = table[t % 3]

    assert run(kernel, 5).tolist() == [5, 7, 11, 5, 7]


def test_closures_and_pruned_branches() -> None:
    scale, fancy = 3, False

    def kernel(y):
        t = cuda.threadIdx.x
        if fancy:
            y[t] = undefined_anywhere(t)  # noqa: F821  (never compiled)
        else:
            y[t] = t * scale

    assert run(kernel, 3).tolist() == [0, 3, 6]


def factory(offset: int) -> Any:
    @cuda.jit(device=True, inline="always")
    def shifted(v, by=1):
        return v + offset * by

    def kernel(y):
        t = cuda.threadIdx.x
        y[t] = shifted(t) * 100 + shifted(v=t, by=2)

    return kernel


def test_device_functions_of_a_factory() -> None:
    assert run(factory(5), 3).tolist() == [510, 611, 712]
    assert run(factory(6), 3).tolist() == [612, 713, 814]


FACTOR = 3


def test_closures_and_globals_may_change_between_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    offset = 1

    def shifted(v):
        return v * FACTOR + offset

    device = cuda.jit(device=True)(shifted)

    def kernel(y):
        y[cuda.threadIdx.x] = device(cuda.threadIdx.x) + 100 * offset

    assert run(kernel, 3).tolist() == [101, 104, 107]
    offset = 2
    assert run(kernel, 3).tolist() == [202, 205, 208]
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert run(kernel, 3).tolist() == [202, 207, 212]


def test_device_function_with_divergent_returns() -> None:
    @cuda.jit(device=True)
    def find(x, wanted):
        for i in range(4):
            if x[i] == wanted:
                return i
        return -1

    def helper(y, t, v):
        y[t] = v

    def kernel(y, x):
        t = cuda.threadIdx.x
        helper(y, t, find(x, t))

    assert run(kernel, 5, np.array([3, 1, 0, 4])).tolist() == [2, 1, -1, 0, 3]


def test_device_function_returns_tuples_of_several_types() -> None:
    def split(v):
        if v % 2 == 0:
            return v, float32(1)
        return v // 2, float32(0.5)

    def kernel(y):
        t = cuda.threadIdx.x
        whole, part = split(t)
        y[t] = float32(whole) + part

    assert run(kernel, 4, dtype=np.float32).tolist() == [1, 0.5, 3, 1.5]


def test_static_and_dynamic_shared_arrays() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        s = cuda.shared.array(shape=(2, 8), dtype=int32)
        d = cuda.shared.array(0, int64)
        s[t % 2, t // 2] = t
        d[t] = t * 10
        cuda.syncthreads()
        y[t] = s[1 - t % 2, t // 2] + d[15 - t]

    assert run(kernel, 16, shared_bytes=128).tolist() == [(t ^ 1) + (15 - t) * 10 for t in range(16)]


def test_a_dynamic_shared_array_may_be_empty() -> None:
    def kernel(y):
        s = cuda.shared.array(0, int64)
        i = cuda.grid(1)
        if i < s.size:
            s[i] = 1
        cuda.syncthreads()
        y[i] = s.size + 1

    y = np.zeros(6, np.int64)
    emulate(kernel, 2, 3, y, outputs=["y"])
    assert y.tolist() == [1] * 6

    def with_store(y):
        s = cuda.shared.array(0, int64)
        s[0] = y[0]

    with pytest.raises(OutOfBounds):
        emulate(with_store, 1, 1, np.zeros(1, np.int64))


def test_more_shared_memory_than_a_gpu_has_is_refused() -> None:
    def make(size: int) -> Any:
        def kernel(y):
            s = cuda.shared.array(size, float32)
            s[cuda.threadIdx.x] = y[0]

        return kernel

    y = np.zeros(1, np.float32)
    emulate(make(12288), 1, 1, y, shared_bytes=227 * 1024 - 49152)
    with pytest.raises(UnsupportedFeature, match="49,156 bytes of static shared memory"):
        emulate(make(12289), 1, 1, y)
    with pytest.raises(ValueError, match="232,448"):
        emulate(make(12288), 1, 1, y, shared_bytes=227 * 1024 - 49151)
    with pytest.raises(ValueError, match="-4 bytes"):
        emulate(make(1), 1, 1, y, shared_bytes=-4)


def test_device_functions_that_are_not_inlined_share_an_array_of_one_size() -> None:
    @cuda.jit(device=True)
    def scratch(n):
        return cuda.shared.array(n, int64).size

    def kernel(y):
        y[0] = scratch(4) + scratch(5)

    with pytest.raises(UnsupportedFeature, match="differs by the call"):
        emulate(kernel, 1, 1, np.zeros(1, np.int64))


def test_shared_arrays_of_several_blocks_do_not_overlap() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        a = cuda.shared.array(8, int32)
        b = cuda.shared.array(8, int64)
        c = cuda.shared.array(0, int32)
        a[t], b[t], c[t] = t + 1, 10 * t + cuda.blockIdx.x, 1000 * t
        cuda.syncthreads()
        y[cuda.grid(1)] = a[7 - t] + b[7 - t] + c[7 - t]

    y = np.zeros(24, np.int64)
    emulate(kernel, 3, 8, y, shared_bytes=32, outputs=["y"])
    assert y.tolist() == [k + 1 + 10 * k + block + 1000 * k for block in range(3) for k in range(7, -1, -1)]


def test_dynamic_shared_arrays_share_their_bytes() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        f = cuda.shared.array(0, float32)
        i = cuda.shared.array(0, int32)
        f[t] = float32(1)
        y[t] = i[t]

    assert run(kernel, 4, shared_bytes=16).tolist() == [np.float32(1).view(np.int32)] * 4


def test_local_arrays_with_indices_that_differ_by_lane() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        a = cuda.local.array((2, 3), int64)
        for i in range(2):
            for j in range(3):
                a[i, j] = i * 10 + j
        if t < 4:
            a[t % 2, t % 3] = 100 + t
            a[0, 0] += 1
        else:
            a[1, 2] = t
        total = 0
        for i in range(2):
            for j in range(3):
                total += a[i, j]
        y[t] = total * 1000 + a[t % 2, (t + 1) % 3]

    def one(t: int) -> int:
        a = [[0, 1, 2], [10, 11, 12]]
        if t < 4:
            a[t % 2][t % 3] = 100 + t
            a[0][0] += 1
        else:
            a[1][2] = t
        return sum(map(sum, a)) * 1000 + a[t % 2][(t + 1) % 3]

    assert run(kernel, 7).tolist() == [one(t) for t in range(7)]


def test_local_arrays_are_copied_by_value_not_by_name() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        a = cuda.local.array(2, int64)
        a[0], a[1] = t, t * 10
        kept = a[0]
        a[0] = a[1]
        a[1] = kept
        y[t] = a[0] * 100 + a[1]

    assert run(kernel, 3).tolist() == [0, 1001, 2002]


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


def test_annotated_parameters_are_pointers_and_numbers_of_that_type() -> None:
    def kernel(y: Floats, x: Floats, scale: Float, n: Int64):
        i = cuda.blockIdx.x * 4 + cuda.threadIdx.x
        if i < n:
            y[i] = x[i] * scale

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = np.zeros((2, 3), np.float32)
    emulate(kernel, 2, 4, y, x, 0.5, np.int32(6), outputs=["y"], inputs=["x"])
    np.testing.assert_array_equal(y, x / 2)


def test_strided_and_reversed_arrays() -> None:
    def kernel(y, x, z):
        i, j = cuda.threadIdx.y, cuda.threadIdx.x
        y[i, j] = x[i, j] + z[j] + x.shape[0] * 100 + x.ndim * 1000 + len(z) * 10000 + x.size * 100000

    x = np.arange(60).reshape(6, 10)[::2, ::-3]
    z = np.arange(20)[::-5]
    y = np.zeros((4, 3), np.int64).T
    emulate(kernel, 1, (4, 3), y, x, z, outputs=["y"])
    np.testing.assert_array_equal(y, x + z + 300 + 2000 + 40000 + 1200000)


def test_a_constant_negative_index_counts_from_the_end() -> None:
    def kernel(y, x):
        y[cuda.threadIdx.x] = x[-1]

    assert run(kernel, 2, np.array([4, 5, 6])).tolist() == [6, 6]


def test_cuda_jit_kernels_run_too() -> None:
    @cuda.jit
    def kernel(y):
        """Has a docstring."""
        y[cuda.grid(1)] = cuda.threadIdx.x

    assert run(kernel, 3).tolist() == [0, 1, 2]


def test_a_variable_that_only_some_lanes_assign_may_be_used_by_those() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        if t > 1:
            v = t * 2
        cuda.syncthreads()
        if t > 2:
            y[t] = v

    assert run(kernel, 5).tolist() == [0, 0, 0, 6, 8]


def test_a_variable_of_the_trip_before() -> None:
    def kernel(y):
        i = cuda.threadIdx.x
        r = 0
        for j in range(3):
            if j > 0:
                r += prev  # noqa: F821
            prev = i + j  # noqa: F841
        y[i] = r

    assert run(kernel, 5).tolist() == [2 * i + 1 for i in range(5)]


def test_a_variable_of_the_trip_before_in_an_inner_loop() -> None:
    def kernel(y, trips):
        i = cuda.threadIdx.x
        total = 0.0
        for j in range(4):
            k = 0
            while k < trips[i]:
                if j > i % 2:
                    scaled = prev * 0.5  # noqa: F821
                    total += scaled
                k += 1
            if j >= i % 2:
                prev = i + j  # noqa: F841
        y[i] = total

    trips = np.array([0, 1, 2, 3, 1])
    expected = [trips[i] * sum(0.5 * (i + j - 1) for j in range(i % 2 + 1, 4)) for i in range(5)]
    assert run(kernel, 5, trips, dtype=np.float64).tolist() == expected


def test_a_variable_of_the_trip_before_that_an_inner_loop_computes() -> None:
    def kernel(y):
        i = cuda.threadIdx.x
        r = 0
        for j in range(3):
            for k in range(2):
                last = 10 * j + k
                if j > 0:
                    r += prev  # noqa: F821
            prev = last + i  # noqa: F841
        y[i] = r

    assert run(kernel, 5).tolist() == [2 * (1 + i) + 2 * (11 + i) for i in range(5)]


@pytest.mark.filterwarnings("error")
def test_a_variable_of_the_trip_before_leaves_other_types_as_they_are() -> None:
    def kernel(y, x):
        i = cuda.threadIdx.x
        r = float32(0)
        for j in range(3):
            z = 0
            if j > 0:
                z = prev  # noqa: F821
                r = z
            prev = x[i] * float32(0.1)  # noqa: F841
        y[i] = r * float32(0.1)

    x = np.array([3], np.float32)
    assert run(kernel, 1, x, dtype=np.float32).tolist() == [x[0] * np.float32(0.1) * np.float32(0.1)]


def test_a_variable_that_no_trip_before_assigned_is_refused() -> None:
    def kernel(y):
        for j in range(3):
            if j > 0:
                prev = prev + 1  # noqa: F821, F841
            y[j] = j

    with pytest.raises(
        UnsupportedFeature, match="the variable prev, read before it is assigned on some path"
    ) as caught:
        emulate(kernel, 1, 1, np.zeros(3, np.int64))
    assert caught.value.line == kernel.__code__.co_firstlineno + 3


def test_a_variable_changes_its_type_where_paths_meet() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        v = 0
        for _ in range(t):
            v = v + 0.5
        y[t] = v / 2

    assert run(kernel, 4, dtype=np.float64).tolist() == [0, 0.25, 0.5, 0.75]


def test_float64_on_purpose_is_no_fault() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        total = float64(0)
        for _ in range(3):
            total += float64(x[t]) * float64(0.1)
        y[t] = float32(total)

    assert run(kernel, 2, np.ones(2, np.float32), dtype=np.float32).tolist() == [np.float32(0.1 + 0.1 + 0.1)] * 2


def lambda_kernel() -> Any:
    return lambda y: None


def with_list(y):
    v = [1, 2]
    y[0] = v[0]


def with_slice(y):
    y[0:2] = 1


def with_print(y):
    print(y[0])


def with_try(y):
    try:  # noqa: SIM105
        y[0] = 1
    except ValueError:
        pass


def with_comprehension(y):
    y[0] = sum(i for i in range(3))


def with_unknown_call(y):
    y[0] = np.linalg.norm(y)


def with_unset_variable(y):
    y[0] = v  # noqa: F821
    v = 1  # noqa: F841


def with_array_choice(y):
    a = cuda.local.array(2, int64)
    b = cuda.local.array(2, int64)
    c = a if y[0] > 0 else b
    y[0] = c[0]


def with_variable_shape(y):
    a = cuda.local.array(y[0], int64)
    y[0] = a[0]


def with_else_of_loop(y):
    for i in range(3):
        y[0] = i
    else:
        y[0] = 5


def with_recursion(y):
    with_recursion(y)


def with_value(y):
    return 3


def with_atomic_on_pointer(y: Floats):
    cuda.atomic.add(y, 0, float32(1))


def with_float_index(y):
    y[y[0] / 2] = 1


def with_minimum_of_a_boolean(y):
    y[0] = min(int32(y[0]), y[0] > 0)


def with_mixed_and(y):
    y[0] = y[0] and 3


@pytest.mark.parametrize(
    ("kernel", "line", "what"),
    [
        (with_list, 1, "List"),
        (with_slice, 1, "slice"),
        (with_print, 1, "print"),
        (with_try, 1, "Try"),
        (with_comprehension, 1, "GeneratorExp"),
        (with_unknown_call, 1, "norm"),
        (with_unset_variable, 1, "the variable v"),
        (with_array_choice, 3, "arrays"),
        (with_variable_shape, 1, "no constant"),
        (with_else_of_loop, 1, "else"),
        (with_recursion, 1, "calling itself"),
        (with_value, 0, "returns a value"),
        (with_atomic_on_pointer, 1, "atomic.add"),
        (with_float_index, 1, "float64"),
        (with_minimum_of_a_boolean, 1, "min of"),
        (with_mixed_and, 1, "and/or"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_its_line(kernel: Any, line: int, what: str) -> None:
    dtype = np.float32 if kernel is with_atomic_on_pointer else np.int64
    with pytest.raises(UnsupportedFeature, match=what) as caught:
        emulate(kernel, 1, 1, np.zeros(4, dtype))
    assert caught.value.line == kernel.__code__.co_firstlineno + line
    assert caught.value.kernel == kernel.__name__
    assert caught.value.file == __file__


def test_a_thread_that_waits_for_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(y):
        while cuda.atomic.cas(y, 0, 0, 1) != 0:
            pass
        cuda.atomic.exch(y, 0, 0)

    monkeypatch.setattr("kernels.emulator.loops.LONGEST", 1000)
    with pytest.raises(UnsupportedFeature, match="wait") as caught:
        emulate(kernel, 1, 2, np.zeros(1, np.int64))
    assert caught.value.line == kernel.__code__.co_firstlineno + 1


def test_a_tuple_that_only_some_lanes_assign_may_be_used_by_those() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        if t > 1:
            pair = (t, float32(0.5))
        if t > 2:
            y[t] = float32(pair[0]) + pair[1]

    assert run(kernel, 5, dtype=np.float32).tolist() == [0, 0, 0, 3.5, 4.5]


def test_a_choice_of_pointers() -> None:
    def kernel(y: Floats, a: Floats, b: Floats):
        t = cuda.threadIdx.x
        source = a if t % 2 == 0 else b
        y[t] = source[t]

    a, b = (np.arange(8, dtype=np.float32) * factor for factor in (1, 10))
    y = np.zeros(8, np.float32)
    emulate(kernel, 1, 8, y, a, b, outputs=["y"])
    assert y.tolist() == [t if t % 2 == 0 else 10 * t for t in range(8)]


def test_bad_arguments_are_refused_before_anything_runs() -> None:
    def kernel(y: Floats, n: Int64):
        y[0] = 1

    y = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="1 arguments were given, expected y, n"):
        emulate(kernel, 1, 1, y)
    with pytest.raises(TypeError, match="float64"):
        emulate(kernel, 1, 1, y.astype(np.float64), 3)
    with pytest.raises(TypeError, match="strides"):
        emulate(kernel, 1, 1, y[::2], 3)
    with pytest.raises(TypeError, match="expected an array"):
        emulate(kernel, 1, 1, 3, 3)
    with pytest.raises(ValueError, match="1024"):
        emulate(kernel, 1, 2048, y, 3)
    with pytest.raises(ValueError, match="at least 1"):
        emulate(kernel, 0, 1, y, 3)
    for grid in ("2", 2.0, (1, "2"), {1}):
        with pytest.raises(TypeError, match="expected a number or a tuple of numbers"):
            emulate(kernel, grid, 1, y, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no array parameter"):
        emulate(kernel, 1, 1, y, 3, outputs=["z"])
    with pytest.raises(TypeError, match="no kernel"):
        emulate("kernel", 1, 1)  # type: ignore[arg-type]
    assert not y.any()
