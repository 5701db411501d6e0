"""Shared and local arrays: whose they are, how large they may be, what lies where."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int32, int64
from one_block import run

from kernels.emulator import OutOfBounds, UnsupportedFeature, emulate


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
