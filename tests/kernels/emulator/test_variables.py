"""Variables that only some lanes assign, or only the trip before, or with another type."""

import numpy as np
import pytest
from numba import cuda, float32, float64
from one_block import run

from kernels.emulator import UnsupportedFeature, emulate
from kernels.launch import Floats


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
