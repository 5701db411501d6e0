"""Warp functions, voting barriers and atomics, against Python."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int64, uint32

from kernels.emulator import DivergentBarrier, UnsupportedFeature, emulate

FULL = 0xFFFFFFFF


def run(kernel: Any, n: int, *given: Any, dtype: Any = np.int64, grid: int = 1) -> Any:
    y = np.zeros(grid * n, dtype)
    emulate(kernel, grid, n, y, *given, outputs=["y"])
    return y


def down(y, x, by):
    i = cuda.grid(1)
    y[i] = cuda.shfl_down_sync(FULL, x[i], by)


def up(y, x, by):
    i = cuda.grid(1)
    y[i] = cuda.shfl_up_sync(FULL, x[i], by)


def across(y, x, by):
    i = cuda.grid(1)
    y[i] = cuda.shfl_xor_sync(FULL, x[i], by)


def chosen(y, x, by):
    i = cuda.grid(1)
    y[i] = cuda.shfl_sync(FULL, x[i], by)


SOURCES = {
    down: lambda lane, by: lane + by if lane + by < 32 else lane,
    up: lambda lane, by: lane - by if lane >= by else lane,
    across: lambda lane, by: lane ^ by,
    chosen: lambda lane, by: by % 32,
}


@pytest.mark.parametrize("by", [0, 1, 7, 16, 31])
@pytest.mark.parametrize("kernel", SOURCES)
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.float64])
def test_shuffles(kernel: Any, by: int, dtype: Any) -> None:
    x = np.random.default_rng(by).integers(-1000, 1000, 192).astype(dtype)
    expected = [x[i // 32 * 32 + SOURCES[kernel](i % 32, by)] for i in range(192)]
    np.testing.assert_array_equal(run(kernel, 96, x, by, dtype=dtype, grid=2), expected)


def test_shuffle_from_lanes_that_differ() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = cuda.shfl_sync(FULL, x[t], (t * 5 + 3) % 32)

    x = np.arange(64) * 10
    assert run(kernel, 64, x).tolist() == [x[t // 32 * 32 + (t * 5 + 3) % 32] for t in range(64)]


@pytest.mark.parametrize("kernel", SOURCES)
def test_shuffles_take_the_low_five_bits_of_a_lane(kernel: Any) -> None:
    x = np.arange(64) * 10
    for by in (33, 32, -31, 69):
        assert run(kernel, 64, x, by).tolist() == run(kernel, 64, x, by % 32).tolist()
        per_lane = np.full(64, by)

        def varying(y, x, per_lane):
            t = cuda.threadIdx.x
            y[t] = cuda.shfl_xor_sync(FULL, x[t], per_lane[t])

        assert run(varying, 64, x, per_lane).tolist() == run(across, 64, x, by % 32).tolist()


@pytest.mark.parametrize("uniform", [False, True])
def test_a_shuffle_from_beyond_a_short_warp_is_a_fault_for_any_value(uniform: bool) -> None:
    def kernel(y, by):
        t = cuda.threadIdx.x
        y[t] = cuda.shfl_down_sync(0xFFFF, 7 if uniform else t, by)

    with pytest.raises(DivergentBarrier, match="lane 16"):
        emulate(kernel, 1, 16, np.zeros(16, np.int64), 1)
    assert run(kernel, 16, 0).tolist() == ([7] * 16 if uniform else list(range(16)))


def test_reduction_of_a_warp_by_shuffles() -> None:
    def kernel(y, x):
        i = cuda.grid(1)
        v = x[i]
        offset = 16
        while offset > 0:
            v += cuda.shfl_down_sync(FULL, v, offset)
            offset //= 2
        if cuda.laneid == 0:
            y[i // 32] = v

    x = np.random.default_rng(0).integers(0, 100, 256)
    y = np.zeros(8, np.int64)
    emulate(kernel, 4, 64, y, x, outputs=["y"])
    assert y.tolist() == x.reshape(8, 32).sum(axis=1).tolist()


def test_warps_of_a_branch_may_shuffle_alone() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        v = t
        if t >= 32:
            v = cuda.shfl_xor_sync(FULL, v, 1)
        y[t] = v

    assert run(kernel, 64).tolist() == [*range(32), *(t ^ 1 for t in range(32, 64))]


def test_votes() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        p = x[t] > 3
        y[t] = (
            int64(uint32(cuda.ballot_sync(FULL, p))) * 8
            + (4 if cuda.all_sync(FULL, p) else 0)
            + (2 if cuda.any_sync(FULL, p) else 0)
            + (1 if cuda.eq_sync(FULL, p) else 0)
        )

    x = np.concatenate([np.full(32, 9), np.zeros(32), np.arange(32)]).astype(np.int64)
    bits = [sum(1 << k for k in range(32) if v[k] > 3) for v in x.reshape(3, 32)]
    expected = [bits[0] * 8 + 7, bits[1] * 8 + 1, bits[2] * 8 + 2]
    assert run(kernel, 96, x).tolist() == [v for v in expected for _ in range(32)]


def test_active_lanes_and_lower_lanes() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        y[t] = 0
        if t % 3 == 0:
            active = uint32(cuda.activemask())
            y[t] = cuda.popc(active & uint32(cuda.lanemask_lt()))

    assert run(kernel, 64).tolist() == [
        sum(1 for k in range(t // 32 * 32, t) if k % 3 == 0) if t % 3 == 0 else 0 for t in range(64)
    ]


def test_match_any() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = int64(uint32(cuda.match_any_sync(FULL, x[t])))

    x = np.random.default_rng(0).integers(0, 4, 32).astype(np.int32)
    assert run(kernel, 32, x).tolist() == [sum(1 << k for k in range(32) if x[k] == v) for v in x]


def test_voting_barriers() -> None:
    def kernel(y, x):
        i, t = cuda.grid(1), cuda.threadIdx.x
        count = cuda.syncthreads_count(x[i] > 3)
        some = cuda.syncthreads_or(x[i] > 8)
        every = cuda.syncthreads_and(t >= 0)
        y[i] = count * 100 + (10 if some != 0 else 0) + (1 if every != 0 else 0)

    x = np.array([0, 4, 5, 6, 1, 2, 3, 9])
    assert run(kernel, 4, x, grid=2).tolist() == [301] * 4 + [111] * 4


def test_a_last_warp_that_is_not_full() -> None:
    def kernel(y, x):
        t = cuda.threadIdx.x
        y[t] = cuda.shfl_xor_sync(FULL, x[t], 1) + 100 * cuda.popc(uint32(cuda.ballot_sync(FULL, x[t] >= 0)))

    x = np.arange(40)
    assert run(kernel, 40, x).tolist() == [(t ^ 1) + (3200 if t < 32 else 800) for t in range(40)]


def test_a_shuffle_from_a_lane_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(DivergentBarrier, match="does not have"):
        run(down, 40, np.arange(40), 1)


def test_other_masks_are_refused() -> None:
    def kernel(y):
        t = cuda.threadIdx.x
        if t < 16:
            y[t] = cuda.shfl_down_sync(0xFFFF, t, 1)

    with pytest.raises(UnsupportedFeature, match="mask"):
        emulate(kernel, 1, 32, np.zeros(32, np.int64))


ATOMICS: dict[str, Any] = {
    "add": lambda old, v: old + v,
    "sub": lambda old, v: old - v,
    "max": max,
    "min": min,
    "exch": lambda old, v: v,
    "and_": lambda old, v: old & v,
    "or_": lambda old, v: old | v,
    "xor": lambda old, v: old ^ v,
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(name: str, space: str) -> None:
    function = getattr(cuda.atomic, name)
    shared = space == "shared"

    def kernel(y, x, at, old):
        t = cuda.threadIdx.x
        if shared:
            s = cuda.shared.array(5, uint32)
            if t < 5:
                s[t] = y[t]
            cuda.syncthreads()
            old[t] = function(s, at[t], x[t])
            cuda.syncthreads()
            if t < 5:
                y[t] = s[t]
        else:
            old[t] = function(y, at[t], x[t])

    rng = np.random.default_rng(1)
    x, at = rng.integers(0, 50, 64).astype(np.uint32), rng.integers(0, 5, 64)
    y, old = np.full(5, 1000, np.uint32), np.zeros(64, np.uint32)
    expected, found = y.tolist(), []
    for v, k in zip(x.tolist(), at.tolist(), strict=True):
        found.append(expected[k])
        expected[k] = ATOMICS[name](expected[k], v) % 2**32
    emulate(kernel, 1, 64, y, x, at, old)
    assert y.tolist() == expected
    assert old.tolist() == found


def test_compare_and_swap_lets_one_thread_win() -> None:
    def kernel(y, lock):
        i = cuda.grid(1)
        y[i] = cuda.atomic.cas(lock, 0, 0, i + 1)

    y, lock = np.zeros(64, np.int64), np.zeros(1, np.int64)
    emulate(kernel, 2, 32, y, lock)
    assert lock[0] == 1
    assert y.tolist() == [0] + [1] * 63


def test_atomic_maximum_of_floats() -> None:
    def kernel(y, x):
        cuda.atomic.max(y, 0, x[cuda.threadIdx.x])

    y = np.full(1, -np.inf, np.float32)
    emulate(kernel, 1, 5, y, np.array([3, -1, np.nan, 7.5, 2], np.float32))
    assert y[0] == 7.5


def test_a_histogram_in_shared_memory() -> None:
    def kernel(y, x, n):
        s = cuda.shared.array(16, int64)
        t = cuda.threadIdx.x
        if t < 16:
            s[t] = 0
        cuda.syncthreads()
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            cuda.atomic.add(s, x[i], 1)
        cuda.syncthreads()
        if t < 16:
            cuda.atomic.add(y, t, s[t])

    x = np.random.default_rng(0).integers(0, 16, 1000)
    y = np.zeros(16, np.int64)
    emulate(kernel, 3, 64, y, x, 1000)
    assert y.tolist() == np.bincount(x, minlength=16).tolist()


def test_a_grid_barrier_orders_blocks() -> None:
    def kernel(y, partial, x):
        grid = cuda.cg.this_grid()
        i = cuda.grid(1)
        partial[i] = x[i] * float32(2)
        grid.sync()
        if i == 0:
            total = float32(0)
            for k in range(partial.size):
                total += partial[k]
            y[0] = total

    y, partial = np.zeros(1, np.float32), np.zeros(256, np.float32)
    emulate(kernel, 8, 32, y, partial, np.arange(256, dtype=np.float32), outputs=["y", "partial"])
    assert y[0] == 255 * 256
