"""The language that kernels are written in: positions, branches, loops, tuples, functions, arguments."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int64
from one_block import run

from kernels.emulator import emulate
from kernels.launch import Float, Floats, Int64


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
