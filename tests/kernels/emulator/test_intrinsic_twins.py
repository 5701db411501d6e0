"""Wide accesses, pointers from addresses and asynchronous copies in the emulator."""

import numpy as np
import pytest
from numba import cuda, float32, int64, uint32

from kernels.emulator import DataRace, MisalignedAccess, OutOfBounds, UninitialisedRead, UnsupportedFeature, emulate
from kernels.intrinsics import (
    cp_async_4,
    cp_async_4_zero_fill,
    cp_async_16,
    cp_async_16_zero_fill,
    cp_async_commit,
    cp_async_wait,
    fma,
    load2,
    load4,
    load4_readonly,
    pointer_to_float32,
    shared_address,
    store2,
    store4,
)
from kernels.launch import Floats

F = np.float32


def aligned(n: int, offset: int = 0) -> np.ndarray:
    """n zeros that start `offset` elements beyond a multiple of 16 bytes."""
    raw = np.zeros(n + 8, F)
    start = (-raw.ctypes.data // 4) % 4 + offset
    return raw[start : start + n]


def numbers(n: int, offset: int = 0) -> np.ndarray:
    x = aligned(n, offset)
    x[:] = np.arange(n)
    return x


def swap4(x: Floats, y: Floats, n):
    i = 4 * (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
    if i < n:
        a, b, c, d = load4(x, i)
        e, f, g, h = load4_readonly(x, i)
        store4(y, i, d, c, b + f - f, a + e - e + g - g + h - h)


def swap2(x: Floats, y: Floats, n):
    i = 2 * (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
    if i < n:
        a, b = load2(x, i)
        store2(y, i, b, a)


def test_wide_accesses() -> None:
    for kernel, width in ((swap4, 4), (swap2, 2)):
        x, y = numbers(24 * width), aligned(24 * width)
        emulate(kernel, 2, 16, x, y, np.int64(24 * width))
        np.testing.assert_array_equal(y, x.reshape(-1, width)[:, ::-1].ravel())


def test_wide_access_beyond_the_end() -> None:
    with pytest.raises(OutOfBounds) as caught:
        emulate(swap4, 1, 2, numbers(7), aligned(8), np.int64(8))
    assert (caught.value.array, caught.value.thread) == ("x", (1, 0, 0))


def test_wide_access_must_be_aligned() -> None:
    with pytest.raises(MisalignedAccess) as caught:
        emulate(swap4, 1, 2, numbers(8, offset=2), aligned(8), np.int64(8))
    assert caught.value.array == "x"
    with pytest.raises(MisalignedAccess) as caught:
        emulate(swap2, 1, 2, numbers(8), aligned(8, offset=1), np.int64(8))
    assert caught.value.array == "y"


def test_what_is_written_is_not_read_only() -> None:
    def kernel(x: Floats):
        a, b, c, d = load4_readonly(x, 4 * cuda.threadIdx.x)
        store4(x, 4 * cuda.threadIdx.x, a, b, c, d)

    with pytest.raises(UnsupportedFeature, match="only read"):
        emulate(kernel, 1, 2, numbers(8))


def test_wide_accesses_of_shared_arrays() -> None:
    def kernel(x: Floats, y: Floats):
        tile = cuda.shared.array((4, 32), float32, alignment=16)
        t = cuda.threadIdx.x
        store4(tile, 4 * t, x[4 * t], x[4 * t + 1], x[4 * t + 2], x[4 * t + 3])
        cuda.syncthreads()
        a, b, c, d = load4(tile, 4 * (31 - t))
        e, f = load2(tile, 4 * t + 2)
        store4(y, 4 * t, a, b, c, d)
        y[128 + t] = tile[t // 8, t % 8 * 4 + 1] + e - f

    x, y = numbers(128), aligned(160)
    emulate(kernel, 1, 32, x, y)
    np.testing.assert_array_equal(y[:128].reshape(32, 4), x.reshape(32, 4)[::-1])
    np.testing.assert_array_equal(y[128:], x[1::4] - 1)


def test_pointers_from_addresses() -> None:
    def kernel(table, sizes):
        p = pointer_to_float32(table[cuda.blockIdx.x])
        i = cuda.threadIdx.x
        if i < sizes[cuda.blockIdx.x]:
            p[i] = p[i] + float32(1)

    arrays = [numbers(5), numbers(9)]
    table = np.array([array.ctypes.data for array in arrays], np.uint64)
    emulate(kernel, 2, 32, table, np.array([5, 9]), reachable=arrays)
    np.testing.assert_array_equal(arrays[0], np.arange(1, 6))
    np.testing.assert_array_equal(arrays[1], np.arange(1, 10))
    with pytest.raises(OutOfBounds):
        emulate(kernel, 2, 32, table, np.array([5, 10]), reachable=arrays)
    with pytest.raises(OutOfBounds):
        emulate(kernel, 2, 32, table, np.array([5, 9]), reachable=arrays[:1])


def test_fma_rounds_once() -> None:
    def kernel(x: Floats, y: Floats):
        y[cuda.threadIdx.x] = fma(x[0], x[1], x[2])

    y = np.zeros(2, F)
    x = np.array([1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60], F)
    emulate(kernel, 1, 2, x, y)
    assert np.all(y == F(1 + 2.0**-11 + 2.0**-23))


# asynchronous copies


def reverse(x: Floats, y: Floats):
    tile = cuda.shared.array(128, float32, alignment=16)
    t = cuda.threadIdx.x
    cp_async_16(shared_address(tile, 4 * t), x, cuda.blockIdx.x * 128 + 4 * t)
    cp_async_commit()
    cp_async_wait(0)
    cuda.syncthreads()
    for k in range(4):
        y[cuda.blockIdx.x * 128 + t + 32 * k] = tile[127 - t - 32 * k]


def test_copies_arrive() -> None:
    x, y = numbers(384), aligned(384)
    emulate(reverse, 3, 32, x, y, outputs=["y"])
    np.testing.assert_array_equal(y.reshape(3, 128), x.reshape(3, 128)[:, ::-1])


def test_copies_are_checked_as_other_accesses() -> None:
    with pytest.raises(OutOfBounds) as caught:
        emulate(reverse, 3, 32, numbers(380), aligned(384))
    assert (caught.value.array, caught.value.block, caught.value.thread) == ("x", (2, 0, 0), (31, 0, 0))
    with pytest.raises(MisalignedAccess):
        emulate(reverse, 3, 32, numbers(384, offset=1), aligned(384))
    with pytest.raises(OutOfBounds):
        emulate(reverse, 1, 64, numbers(384), aligned(384))  # of the shared array


def test_reading_before_the_wait() -> None:
    def early(x: Floats, y: Floats):
        tile = cuda.shared.array(128, float32, alignment=16)
        t = cuda.threadIdx.x
        cp_async_16(shared_address(tile, 4 * t), x, 4 * t)
        cp_async_commit()
        y[t] = tile[4 * t]

    with pytest.raises(UninitialisedRead, match=r"cp\.async") as caught:
        emulate(early, 1, 32, numbers(128), aligned(32))
    assert caught.value.array == "tile"

    def barrier_alone(x: Floats, y: Floats):
        tile = cuda.shared.array(128, float32, alignment=16)
        t = cuda.threadIdx.x
        cp_async_16(shared_address(tile, 4 * t), x, 4 * t)
        cp_async_commit()
        cuda.syncthreads()
        y[t] = tile[4 * t]

    with pytest.raises(UninitialisedRead, match=r"cp\.async"):
        emulate(barrier_alone, 1, 32, numbers(128), aligned(32))


def test_a_copy_that_was_not_committed_is_not_waited_for() -> None:
    def kernel(x: Floats, y: Floats):
        tile = cuda.shared.array(128, float32, alignment=16)
        t = cuda.threadIdx.x
        cp_async_16(shared_address(tile, 4 * t), x, 4 * t)
        cp_async_wait(0)
        y[t] = tile[4 * t]

    with pytest.raises(UninitialisedRead, match=r"cp\.async"):
        emulate(kernel, 1, 32, numbers(128), aligned(32))


def test_other_threads_need_a_barrier_after_the_wait() -> None:
    def kernel(x: Floats, y: Floats):
        tile = cuda.shared.array(128, float32, alignment=16)
        t = cuda.threadIdx.x
        cp_async_16(shared_address(tile, 4 * t), x, 4 * t)
        cp_async_commit()
        cp_async_wait(0)
        y[t] = tile[127 - t]

    with pytest.raises(DataRace):
        emulate(kernel, 1, 32, numbers(128), aligned(32))

    def own(x: Floats, y: Floats):
        tile = cuda.shared.array(128, float32, alignment=16)
        t = cuda.threadIdx.x
        cp_async_16(shared_address(tile, 4 * t), x, 4 * t)
        cp_async_commit()
        cp_async_wait(0)
        y[t] = tile[4 * t + 3]

    y = aligned(32)
    emulate(own, 1, 32, numbers(128), y)
    np.testing.assert_array_equal(y, np.arange(3, 128, 4))


def stages(depth: int, pending: int):
    """Sums tiles of 128 through a ring of `depth` stages, leaving `pending` groups under way at each wait."""

    def kernel(x: Floats, y: Floats, tiles):
        ring = cuda.shared.array((depth, 128), float32, alignment=16)
        t = cuda.threadIdx.x
        base = int64(cuda.blockIdx.x) * tiles * 128
        for stage in range(depth - 1):
            if stage < tiles:
                cp_async_16(shared_address(ring, stage * 128 + 4 * t), x, base + stage * 128 + 4 * t)
            cp_async_commit()
        total = float32(0)
        for tile in range(tiles):
            cp_async_wait(pending)
            cuda.syncthreads()
            ahead = tile + depth - 1
            if ahead < tiles:
                cp_async_16(shared_address(ring, ahead % depth * 128 + 4 * t), x, base + ahead * 128 + 4 * t)
            cp_async_commit()
            for k in range(4):
                total += ring[tile % depth, (127 - 32 * k) - t]
        y[cuda.blockIdx.x * 32 + t] = total

    return kernel


def test_a_ring_of_stages() -> None:
    x, y = numbers(2 * 7 * 128), aligned(64)
    emulate(stages(3, 1), 2, 32, x, y, np.int64(7))
    expected = x.reshape(2, 7, 4, 32).sum(axis=(1, 2))[:, ::-1]
    np.testing.assert_array_equal(y.reshape(2, 32), expected)


def test_waiting_for_too_few_groups() -> None:
    with pytest.raises(UninitialisedRead, match=r"cp\.async"):
        emulate(stages(3, 2), 2, 32, numbers(2 * 7 * 128), aligned(64), np.int64(7))


def test_copying_over_what_others_still_read() -> None:
    """In a ring of two stages that copies before the barrier, the stage is still in use."""

    def kernel(x: Floats, y: Floats, tiles):
        ring = cuda.shared.array((2, 128), float32, alignment=16)
        t = cuda.threadIdx.x
        cp_async_16(shared_address(ring, 4 * t), x, 4 * t)
        cp_async_commit()
        total = float32(0)
        for tile in range(tiles):
            if tile + 1 < tiles:
                cp_async_16(shared_address(ring, (tile + 1) % 2 * 128 + 4 * t), x, (tile + 1) * 128 + 4 * t)
            cp_async_commit()
            cp_async_wait(1)
            cuda.syncthreads()
            total += ring[tile % 2, 127 - t]
        y[t] = total

    with pytest.raises((DataRace, UninitialisedRead)):
        emulate(kernel, 1, 32, numbers(128 * 4), aligned(32), np.int64(4))


def test_blocks_that_leave_the_loop_at_different_trips() -> None:
    def kernel(x: Floats, y: Floats):
        ring = cuda.shared.array((3, 128), float32, alignment=16)
        t = cuda.threadIdx.x
        tiles = cuda.blockIdx.x + 1
        cp_async_16(shared_address(ring, 4 * t), x, 4 * t)
        cp_async_commit()
        total = float32(0)
        for tile in range(tiles):
            cp_async_16(  # one copy beyond the last tile
                shared_address(ring, (tile + 1) % 3 * 128 + 4 * t), x, (tile + 1) * 128 + 4 * t
            )
            cp_async_commit()
            cp_async_wait(1)
            cuda.syncthreads()
            total += ring[tile % 3, 127 - t]
        cp_async_wait(0)
        y[cuda.blockIdx.x * 32 + t] = total

    x, y = numbers(128 * 5), aligned(128)
    emulate(kernel, 4, 32, x, y)
    last = x.reshape(5, 128)[:, :95:-1]
    for block in range(4):
        np.testing.assert_array_equal(y[32 * block : 32 * block + 32], last[: block + 1].sum(axis=0))


def test_zero_fill_reads_only_what_it_is_told_to() -> None:
    def kernel(x: Floats, y: Floats, n):
        tile = cuda.shared.array(128, float32, alignment=16)
        t = cuda.threadIdx.x
        left = n - 4 * t
        size = uint32(0) if left <= 0 else uint32(min(int64(16), 4 * left))
        cp_async_16_zero_fill(shared_address(tile, 4 * t), x, 4 * t if left > 0 else 0, size)
        cp_async_commit()
        cp_async_wait(0)
        cuda.syncthreads()
        for k in range(4):
            y[t + 32 * k] = tile[t + 32 * k]

    for n in (0, 1, 18, 63, 128):
        x, y = numbers(n) + F(1) if n else aligned(0), aligned(128)
        given = aligned(n)
        given[:] = x
        emulate(kernel, 1, 32, given, y, np.int64(n))
        np.testing.assert_array_equal(y, np.pad(given, (0, 128 - n)))


def test_zero_fill_by_a_size_that_is_undefined() -> None:
    def kernel(x: Floats):
        tile = cuda.shared.array(128, float32, alignment=16)
        cp_async_16_zero_fill(shared_address(tile, 4 * cuda.threadIdx.x), x, 0, 17)

    with pytest.raises(UnsupportedFeature, match="size"):
        emulate(kernel, 1, 32, numbers(4))


def test_copies_of_single_elements() -> None:
    def kernel(x: Floats, y: Floats, n):
        tile = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        cp_async_4(shared_address(tile, t), x, t)
        cp_async_4_zero_fill(shared_address(tile, 32 + t), x, t if t < n else 0, 4 if t < n else 0)
        cp_async_commit()
        cp_async_wait(0)
        cuda.syncthreads()
        y[t] = tile[31 - t]
        y[32 + t] = tile[63 - t]

    x, y = numbers(33, offset=1)[1:], np.zeros(64, F)
    emulate(kernel, 1, 32, x, y, np.int64(20))
    np.testing.assert_array_equal(y[:32], x[::-1])
    np.testing.assert_array_equal(y[32:], np.where(np.arange(32) < 20, x, 0)[::-1])


def test_shared_addresses_may_be_computed_with() -> None:
    def kernel(x: Floats, y: Floats):
        tile = cuda.shared.array((2, 64), float32, alignment=16)
        t = cuda.threadIdx.x
        start = shared_address(tile, 0)
        cp_async_16((start + 256) ^ (uint32(t) << uint32(4)), x, 4 * t)
        cp_async_commit()
        cp_async_wait(0)
        cuda.syncthreads()
        for k in range(4):
            y[t + 16 * k] = tile[1, t + 16 * k]

    x, y = numbers(64), aligned(64)
    emulate(kernel, 1, 16, x, y)
    np.testing.assert_array_equal(y, x)
