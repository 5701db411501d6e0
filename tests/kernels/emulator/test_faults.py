"""Every fault: a kernel that has it, and a near-identical one that has not."""

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int32, int64, uint32

from kernels.emulator import (
    DataRace,
    DivergentBarrier,
    Float64Promotion,
    KernelFault,
    MisalignedAccess,
    ModifiedInput,
    OutOfBounds,
    UndefinedArithmetic,
    UninitialisedRead,
    UnsupportedFeature,
    UnwrittenOutput,
    emulate,
)
from kernels.intrinsics import load4, store4
from kernels.launch import Floats

THREADS = 64


def floats(n: int = 256) -> Any:
    return np.arange(n, dtype=np.float32)


def out_of_bounds(bad: bool) -> Any:
    limit = 257 if bad else 256

    def kernel(x, y):
        i = cuda.grid(1)
        if i + 5 < limit:
            y[i] = x[i + 5]

    return kernel


def before_the_start(bad: bool) -> Any:
    first = 0 if bad else 1

    def kernel(x, y):
        i = cuda.grid(1)
        if i >= first:
            y[i] = x[i - 1]

    return kernel


def beyond_shared(bad: bool) -> Any:
    size = 63 if bad else 64

    def kernel(x, y):
        s = cuda.shared.array(size, float32)
        t = cuda.threadIdx.x
        s[t] = x[t]
        cuda.syncthreads()
        y[cuda.grid(1)] = s[0]

    return kernel


def beyond_local(bad: bool) -> Any:
    trips = 5 if bad else 4

    def kernel(x, y):
        a = cuda.local.array(4, float32)
        for i in range(trips):
            a[i] = x[i]
        y[cuda.grid(1)] = a[0]

    return kernel


def beyond_an_axis(bad: bool) -> Any:
    column = 2 if bad else 1

    def kernel(x, y):
        s = cuda.shared.array((64, 2), float32)
        t = cuda.threadIdx.x
        s[t, 0] = x[t]
        if t < 63:
            s[t, column] = x[t]
        y[cuda.grid(1)] = s[t, 0]

    return kernel


def misaligned(bad: bool) -> Any:
    first = 2 if bad else 4

    def kernel(x: Floats, y: Floats):
        i = 4 * cuda.grid(1)
        if i + first + 3 < 256:
            a, b, c, d = load4(x, i + first)
            store4(y, i, a, b, c, d)

    return kernel


def misaligned_shared(bad: bool) -> Any:
    shift = 1 if bad else 0

    def kernel(x, y):
        s = cuda.shared.array(260, float32)
        t = cuda.threadIdx.x
        store4(s, 4 * t + shift, x[t], x[t], x[t], x[t])
        y[cuda.grid(1)] = s[4 * t + shift]

    return kernel


def uninitialised_shared(bad: bool) -> Any:
    written = 63 if bad else 64

    def kernel(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        if t < written:
            s[t] = x[t]
        cuda.syncthreads()
        y[cuda.grid(1)] = s[63 - t]

    return kernel


def uninitialised_local(bad: bool) -> Any:
    def kernel(x, y):
        a = cuda.local.array(2, float32)
        t = cuda.threadIdx.x
        if t != 5 or not bad:
            a[1] = x[t]
        y[cuda.grid(1)] = a[1]

    return kernel


def uninitialised_variable(bad: bool) -> Any:
    limit = 63 if bad else 64

    def kernel(x, y):
        t = cuda.threadIdx.x
        if t < limit:
            v = x[t]
        y[cuda.grid(1)] = v

    return kernel


def uninitialised_output(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        if bad:
            y[i] += x[i]
        else:
            y[i] = x[i]
            y[i] += x[i]

    return kernel


def unwritten_output(bad: bool) -> Any:
    last = 255 if bad else 256

    def kernel(x, y):
        i = cuda.grid(1)
        if i < last:
            y[i] = x[i]

    return kernel


def modified_input(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        if bad and i == 7:
            x[i] = float32(0)

    return kernel


def race_in_shared(bad: bool) -> Any:
    def kernel(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        s[t] = x[t]
        if not bad:
            cuda.syncthreads()
        y[cuda.grid(1)] = s[t ^ 32] if t < 32 else s[t]

    return kernel


def race_of_the_second_barrier(bad: bool) -> Any:
    def kernel(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        total = float32(0)
        for k in range(3):
            s[t] = x[t] + float32(k)
            cuda.syncthreads()
            total += s[63 - t]
            if not bad:
                cuda.syncthreads()
        y[cuda.grid(1)] = total

    return kernel


def race_within_a_warp(bad: bool) -> Any:
    def kernel(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        s[t] = x[t]
        if not bad:
            cuda.syncwarp()
        y[cuda.grid(1)] = s[t ^ 1]

    return kernel


def race_between_warps(bad: bool) -> Any:
    other = 32 if bad else 16

    def kernel(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        s[t] = x[t]
        cuda.syncwarp()
        y[cuda.grid(1)] = s[t ^ other]

    return kernel


def race_of_two_writers(bad: bool) -> Any:
    def kernel(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        s[t // 2 if bad else t] = x[t]
        y[cuda.grid(1)] = x[t]

    return kernel


def race_of_all_writers(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        cuda.syncthreads()
        if i == 0 or bad:
            y[0] = float32(1)

    return kernel


def race_between_blocks(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        cuda.syncthreads()
        j = i ^ (64 if bad else 63)
        v = y[j]
        cuda.syncthreads()
        y[i] = v

    return kernel


def race_in_global_memory_of_a_block(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        if not bad:
            cuda.syncthreads()
        v = y[i ^ 1]
        cuda.syncthreads()
        y[i] = v

    return kernel


def race_of_write_after_read(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        cuda.syncthreads()
        v = y[i ^ 1]
        if not bad:
            cuda.syncthreads()
        y[i] = v

    return kernel


def race_without_grid_sync(bad: bool) -> Any:
    def kernel(x, y):
        grid = cuda.cg.this_grid()
        i = cuda.grid(1)
        y[i] = x[i]
        if bad:
            cuda.syncthreads()
        else:
            grid.sync()
        v = y[255 - i]
        grid.sync()
        y[i] = v

    return kernel


def race_of_two_calls(bad: bool) -> Any:
    @cuda.jit(device=True, inline="never" if bad else "always")
    def reversed_in_block(v):
        s = cuda.shared.array(64, float32)
        s[cuda.threadIdx.x] = v
        cuda.syncthreads()
        return s[63 - cuda.threadIdx.x]

    def kernel(x, y):
        t = cuda.threadIdx.x
        a = reversed_in_block(x[t])
        b = reversed_in_block(x[t + 64])
        y[cuda.grid(1)] = a + b

    return kernel


def race_of_two_calls_with_other_constants(bad: bool) -> Any:
    @cuda.jit(device=True, inline="never" if bad else "always")
    def reversed_in_block(v, shift):
        s = cuda.shared.array(64, float32)
        s[cuda.threadIdx.x] = v
        cuda.syncthreads()
        return s[(63 + shift - cuda.threadIdx.x) % 64]

    def kernel(x, y):
        t = cuda.threadIdx.x
        y[cuda.grid(1)] = reversed_in_block(x[t], 0) + reversed_in_block(x[t], 1)

    return kernel


def race_of_two_calls_through_another(bad: bool) -> Any:
    @cuda.jit(device=True, inline="never" if bad else "always")
    def reversed_in_block(v):
        s = cuda.shared.array(64, float32)
        s[cuda.threadIdx.x] = v
        cuda.syncthreads()
        return s[63 - cuda.threadIdx.x]

    @cuda.jit(device=True, inline="always")
    def twice(v):
        return float32(2) * reversed_in_block(v)

    def kernel(x, y):
        t = cuda.threadIdx.x
        a = twice(x[t])
        y[cuda.grid(1)] = a + twice(x[t + 64])

    return kernel


def unset_in_the_first_trip(bad: bool) -> Any:
    lane = 5 if bad else -1

    def kernel(x, y):
        t = cuda.threadIdx.x
        total = float32(0)
        for j in range(3):
            if j > 0 or t == lane:
                total += before  # noqa: F821
            before = x[t + j]  # noqa: F841
        y[cuda.grid(1)] = total

    return kernel


def race_with_an_atomic(bad: bool) -> Any:
    def kernel(x, y):
        s = cuda.shared.array(1, float32)
        t = cuda.threadIdx.x
        if t == 0:
            s[0] = float32(0)
        cuda.syncthreads()
        cuda.atomic.add(s, 0, x[t])
        if not bad:
            cuda.syncthreads()
        y[cuda.grid(1)] = s[0]

    return kernel


def race_across_aliases(bad: bool) -> Any:
    def kernel(x, y):
        i = cuda.grid(1)
        if i < 128:
            y[i] = x[i + (64 if bad else 128)]

    return kernel


def divergent_barrier(bad: bool) -> Any:
    def kernel(x, y):
        t = cuda.threadIdx.x
        limit = 40 if bad else 64
        if t < limit:
            cuda.syncthreads()
        y[cuda.grid(1)] = x[t]

    return kernel


def barrier_after_some_returned(bad: bool) -> Any:
    last = 200 if bad else 192

    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        if i >= last:
            return
        cuda.syncthreads()

    return kernel


def barrier_in_a_loop_of_different_length(bad: bool) -> Any:
    def kernel(x, y):
        t = cuda.threadIdx.x
        for _ in range(2 + (t // 32 if bad else cuda.blockIdx.x)):
            cuda.syncthreads()
        y[cuda.grid(1)] = x[t]

    return kernel


def divergent_shuffle(bad: bool) -> Any:
    limit = 40 if bad else 32

    def kernel(x, y):
        t = cuda.threadIdx.x
        v = x[t]
        if t < limit:
            v += cuda.shfl_down_sync(0xFFFFFFFF, v, 1)
        y[cuda.grid(1)] = v

    return kernel


def divergent_grid_barrier(bad: bool) -> Any:
    def kernel(x, y):
        grid = cuda.cg.this_grid()
        if cuda.blockIdx.x < 3 or not bad:
            grid.sync()
        y[cuda.grid(1)] = x[cuda.threadIdx.x]

    return kernel


def division_by_zero(bad: bool) -> Any:
    first = 0 if bad else 1

    def kernel(x, y):
        t = cuda.threadIdx.x
        y[cuda.grid(1)] = float32(100 // (t + first))

    return kernel


def shift_too_far(bad: bool) -> Any:
    first = 1 if bad else 0

    def kernel(x, y):
        t = cuda.threadIdx.x
        y[cuda.grid(1)] = float32((1 << (t + first)) & 1)

    return kernel


def partial_warp_mask(bad: bool) -> Any:
    mask = 0xFFFF if bad else 0xFFFFFFFF

    def kernel(x, y):
        t = cuda.threadIdx.x
        cuda.syncwarp(mask)
        y[cuda.grid(1)] = x[t]

    return kernel


CASES: list[tuple[Callable[[bool], Any], type[KernelFault], str | None, int]] = [
    (out_of_bounds, OutOfBounds, "x", 251),
    (before_the_start, OutOfBounds, "x", 0),
    (beyond_shared, OutOfBounds, "s", 63),
    (beyond_local, OutOfBounds, "a", 0),
    (beyond_an_axis, OutOfBounds, "s", 0),
    (misaligned, MisalignedAccess, "x", 0),
    (misaligned_shared, MisalignedAccess, "s", 0),
    (uninitialised_shared, UninitialisedRead, "s", 0),
    (uninitialised_local, UninitialisedRead, "a", 5),
    (uninitialised_variable, UninitialisedRead, "v", 63),
    (uninitialised_output, UninitialisedRead, "y", 0),
    (unwritten_output, UnwrittenOutput, "y", -1),
    (modified_input, ModifiedInput, "x", 7),
    (race_in_shared, DataRace, "s", 0),
    (race_of_the_second_barrier, DataRace, "s", 0),
    (race_within_a_warp, DataRace, "s", 0),
    (race_between_warps, DataRace, "s", 0),
    (race_of_two_writers, DataRace, "s", 0),
    (race_of_all_writers, DataRace, "y", 0),
    (race_between_blocks, DataRace, "y", 0),
    (race_in_global_memory_of_a_block, DataRace, "y", 0),
    (race_of_write_after_read, DataRace, "y", 0),
    (race_without_grid_sync, DataRace, "y", 0),
    (race_of_two_calls, DataRace, "s", 0),
    (race_of_two_calls_with_other_constants, DataRace, "s", 0),
    (race_of_two_calls_through_another, DataRace, "s", 0),
    (unset_in_the_first_trip, UninitialisedRead, "before", 5),
    (race_with_an_atomic, DataRace, "s", 0),
    (race_across_aliases, DataRace, None, 0),
    (divergent_barrier, DivergentBarrier, None, 0),
    (barrier_after_some_returned, DivergentBarrier, None, 192),
    (barrier_in_a_loop_of_different_length, DivergentBarrier, None, 32),
    (divergent_shuffle, DivergentBarrier, None, 32),
    (divergent_grid_barrier, DivergentBarrier, None, 0),
    (division_by_zero, UndefinedArithmetic, None, 0),
    (shift_too_far, UndefinedArithmetic, None, 63),
    (partial_warp_mask, UnsupportedFeature, None, -1),
]


def launch(make: Callable[[bool], Any], bad: bool) -> None:
    x, y = floats(), np.zeros(256, np.float32)
    options: dict[str, Any] = {"inputs": ["x"]}
    if make in (unwritten_output, uninitialised_output):
        options["outputs"] = ["y"]
    if make is race_across_aliases:
        options, y = {}, x
    emulate(make(bad), 4, THREADS, x, y, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_fault(case: Any) -> None:
    make, kind, array, first = case
    with pytest.raises(kind) as caught:
        launch(make, True)
    fault = caught.value
    assert fault.kernel == "kernel"
    assert make.__code__.co_firstlineno < fault.line < make.__code__.co_firstlineno + 25
    assert array is None or fault.array == array
    if first >= 0:
        assert fault.block is not None
        assert fault.thread is not None
        code = fault.block[0] * THREADS + fault.thread[0]
        assert code == first if kind is not DataRace else 0 <= code < 256
    assert f"kernel, line {fault.line} of test_faults.py" in str(fault)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_the_kernel_without_the_fault_passes(case: Any) -> None:
    launch(case[0], False)


def test_a_race_between_arrays_that_overlap_in_part() -> None:
    def kernel(x, y):
        i = cuda.grid(1)
        y[i] = x[i]

    memory = floats(512)
    emulate(kernel, 4, THREADS, memory[:256], memory[256:])
    emulate(kernel, 4, THREADS, memory[:256], memory[:256])  # each thread stays with its element
    with pytest.raises(DataRace):
        emulate(kernel, 4, THREADS, memory[:256], memory[200:456])


def test_the_line_is_that_of_the_access() -> None:
    def kernel(x, y):
        i = cuda.grid(1)
        v = (
            float32(1)
            + x[i]
            + x[i + 1]
        )  # fmt: skip
        y[i] = v

    with pytest.raises(OutOfBounds) as caught:
        emulate(kernel, 4, THREADS, floats(), floats())
    assert caught.value.line == kernel.__code__.co_firstlineno + 5
    assert caught.value.block == (3, 0, 0)
    assert caught.value.thread == (63, 0, 0)
    assert "+ x[i + 1]" in str(caught.value)


def test_a_fault_in_a_device_function_names_its_line_there() -> None:
    @cuda.jit(device=True)
    def element(x, i):
        return x[i]

    def kernel(x, y):
        y[cuda.grid(1)] = element(x, cuda.grid(1) + 1)

    with pytest.raises(OutOfBounds) as caught:
        emulate(kernel, 4, THREADS, floats(), floats())
    assert caught.value.line == element.py_func.__code__.co_firstlineno + 2
    assert caught.value.kernel == "kernel"


def test_a_race_names_both_threads_and_the_line_of_the_second_access() -> None:
    def kernel(y):
        s = cuda.shared.array(8, int64)
        t = cuda.threadIdx.x
        s[t] = t
        y[t, cuda.threadIdx.y] = s[7 - t]

    with pytest.raises(DataRace) as caught:
        emulate(kernel, 1, (8, 1), np.zeros((8, 1), np.int64))
    assert caught.value.line == kernel.__code__.co_firstlineno + 4
    assert "(0, 0, 0)" in str(caught.value)
    assert "(7, 0, 0)" in str(caught.value)


def test_a_read_only_array_is_an_input() -> None:
    def kernel(x):
        x[0] = float32(1)

    x = floats()
    x.flags.writeable = False
    with pytest.raises(ModifiedInput):
        emulate(kernel, 1, 1, x)


def test_float64_promotion_warns_once_a_line_and_can_be_an_error() -> None:
    def kernel(x, y, n):
        i = cuda.grid(1)
        y[i] = x[i] * 0.5 + x[i] / n
        if x[i] > 0:
            y[i] = max(y[i], 0.0)

    first = kernel.__code__.co_firstlineno
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        emulate(kernel, 4, THREADS, floats(), np.zeros(256, np.float32), 3)
    assert sorted(warning.lineno for warning in caught) == [first + 2, first + 3, first + 4]
    assert all(warning.category is Float64Promotion for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Float64Promotion, match="float32 and float64") as fault:
            emulate(kernel, 4, THREADS, floats(), np.zeros(256, np.float32), 3)
    assert fault.value.line == first + 2


@pytest.mark.filterwarnings("error")
def test_float32_arithmetic_does_not_warn() -> None:
    def kernel(x, y, n):
        i = cuda.grid(1)
        y[i] = x[i] * float32(0.5) + x[i] / float32(n)
        if x[i] > float32(0):
            y[i] = max(y[i], float32(0))

    emulate(kernel, 4, THREADS, floats(), np.zeros(256, np.float32), 3)


def test_comparing_unsigned_with_signed_integers_in_float64_warns() -> None:
    def kernel(y, n):
        i = uint32(cuda.threadIdx.x) + uint32(1)  # uint64 in Numba
        if i < n:
            y[i] = 1

    with pytest.warns(Float64Promotion, match="uint64 and int64"):
        emulate(kernel, 1, 4, np.zeros(8, np.int32), 5)


def test_faults_survive_pickling() -> None:
    fault = OutOfBounds("index 5 is outside x", kernel="k", line=3, array="x", block=(1, 0, 0), thread=(2, 0, 0))
    copy = pickle.loads(pickle.dumps(fault))
    assert type(copy) is OutOfBounds
    assert vars(copy) == vars(fault)


def test_without_checks_races_pass_but_bounds_hold() -> None:
    emulate(race_in_shared(True), 4, THREADS, floats(), np.zeros(256, np.float32), checks=False)
    with pytest.raises(OutOfBounds):
        emulate(out_of_bounds(True), 4, THREADS, floats(), np.zeros(256, np.float32), checks=False)


def test_uninitialised_shared_memory_holds_nothing_sensible() -> None:
    def kernel(y):
        s = cuda.shared.array(4, int32)
        y[cuda.threadIdx.x] = s[cuda.threadIdx.x]

    y = np.zeros(4, np.int32)
    emulate(kernel, 1, 4, y, checks=False)
    assert y.all()
