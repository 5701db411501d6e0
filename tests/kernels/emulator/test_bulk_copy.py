"""Twins of the copy engine and of mbarriers: what arrives when, and each rule that a kernel can break."""

from collections.abc import Callable

import numpy as np
import pytest
from numba import cuda, float32, uint32

from kernels.bulk_copy import MBARRIER, copy_bulk, fence_proxy_async, mbarrier_expect, mbarrier_init, mbarrier_wait
from kernels.emulator import (
    DataRace,
    DivergentBarrier,
    MisalignedAccess,
    MissingFence,
    OutOfBounds,
    UninitialisedRead,
    emulate,
)
from kernels.guarded_load import load4_where
from kernels.intrinsics import shared_address
from kernels.launch import Floats
from kernels.wgmma import WGMMA_TF32, descriptor, wgmma_commit, wgmma_fence

F = np.float32
SLAB = 256  # floats


def ring(bug: str = "") -> Callable[..., None]:
    """y = x, slab by slab through a ring of two stages, each thread for another one's elements."""
    fenced, meets, waits, turns = bug != "no fence", bug != "no barrier", bug != "no wait", bug != "parity"
    expected = SLAB * 4 + (16 if bug == "bytes" else 0)
    size = SLAB * 4 - (4 if bug == "size" else 0)
    arrivals = 2 if bug == "arrivals" else 1
    twice, shift, ahead_of = bug == "twice", 1 if bug == "offset" else 0, bug == "overtakes"

    def kernel(x: Floats, y: Floats, slabs):
        stages = cuda.shared.array((2, SLAB), float32, alignment=128)
        barriers = cuda.shared.array(4, uint32, alignment=8)
        t = uint32(cuda.threadIdx.x)
        barrier = shared_address(barriers, 0)
        base = cuda.blockIdx.x * slabs * SLAB
        if t == 0:
            mbarrier_init(barrier, arrivals)
            mbarrier_init(uint32(barrier + MBARRIER), arrivals)
            if fenced:
                fence_proxy_async()
        if meets:
            cuda.syncthreads()
        parity = uint32(0)
        for slab in range(slabs):
            stage = uint32(slab % 2)
            own = uint32(barrier + MBARRIER * stage)
            if t == 0:
                mbarrier_expect(own, expected)
                if twice:
                    mbarrier_expect(own, 0)
                copy_bulk(shared_address(stages, stage * SLAB), x, base + slab * SLAB + shift, size, own)
            if waits:
                mbarrier_wait(own, parity)
            cuda.syncthreads()
            y[base + slab * SLAB + t] = stages[stage, SLAB - 1 - t]
            if not ahead_of:
                cuda.syncthreads()
            if turns and stage == 1:
                parity = uint32(1 - parity)

    return kernel


def run(bug: str = "", slabs: int = 5, missing: int = 0) -> np.ndarray:
    raw = np.zeros(2 * slabs * SLAB + 8, F)
    start = -raw.ctypes.data // 4 % 4
    x = raw[start : start + 2 * slabs * SLAB - missing]
    x[:] = np.arange(len(x))
    y = np.zeros(2 * slabs * SLAB, F)
    emulate(ring(bug), 2, SLAB, x, y, np.int64(slabs))
    np.testing.assert_array_equal(y.reshape(-1, SLAB), np.arange(len(y)).reshape(-1, SLAB)[:, ::-1])
    return y


def test_what_was_copied_is_there_after_the_wait() -> None:
    run()


@pytest.mark.parametrize(
    ("bug", "fault", "words"),
    [
        ("no wait", UninitialisedRead, r"cp\.async"),
        ("parity", UninitialisedRead, r"cp\.async"),  # the wait for a phase that has long ended
        ("bytes", DivergentBarrier, "will not end: 0 arrivals and 16 bytes are missing"),
        ("arrivals", DivergentBarrier, "will not end: 1 arrivals and 0 bytes are missing"),
        ("twice", DivergentBarrier, "has all arrivals"),
        ("no fence", MissingFence, "fence_proxy_async"),
        ("no barrier", DataRace, "barriers"),
        ("size", MisalignedAccess, "16 bytes"),
        ("offset", MisalignedAccess, "16 bytes"),
    ],
)
def test_every_rule(bug: str, fault: type[Exception], words: str) -> None:
    with pytest.raises(fault, match=words):
        run(bug)


@pytest.mark.parametrize(("fences", "fault"), [(True, DataRace), (False, MissingFence)])
def test_what_a_copy_overwrites(fences: bool, fault: type[Exception]) -> None:
    """It comes after a barrier with whoever read it, and a fence of whoever stored there."""

    def kernel(x: Floats, y: Floats):
        stage = cuda.shared.array(SLAB, float32, alignment=128)
        barriers = cuda.shared.array(2, uint32, alignment=8)
        t = uint32(cuda.threadIdx.x)
        barrier = shared_address(barriers, 0)
        stage[t] = x[t]
        if t == 0:
            mbarrier_init(barrier, 1)
        if fences or t == 0:
            fence_proxy_async()
        cuda.syncthreads()
        y[t] = stage[SLAB - 1 - t]
        if t == 0:
            mbarrier_expect(barrier, SLAB * 4)
            copy_bulk(shared_address(stage, 0), x, 0, SLAB * 4, barrier)
        mbarrier_wait(barrier, 0)

    with pytest.raises(fault):
        emulate(kernel, 1, SLAB, np.zeros(SLAB, F), np.zeros(SLAB, F))


def test_copies_are_checked_as_other_accesses() -> None:
    with pytest.raises(OutOfBounds) as caught:
        run(missing=4)
    assert (caught.value.array, caught.value.block) == ("x", (1, 0, 0))


def test_a_copy_does_not_overwrite_what_a_product_reads() -> None:
    product = WGMMA_TF32[32]

    def kernel(x: Floats):
        lines = cuda.shared.array((64, 32), float32, alignment=1024)
        barriers = cuda.shared.array(2, uint32, alignment=8)
        sums = cuda.local.array(16, float32)
        t = uint32(cuda.threadIdx.x)
        barrier = shared_address(barriers, 0)
        for i in range(16):
            sums[i] = lines[t // 2, t % 2 * 16 + i] = float32(0)
        if t == 0:
            mbarrier_init(barrier, 1)
        fence_proxy_async()
        cuda.syncthreads()
        factor = descriptor(shared_address(lines, 0))
        wgmma_fence()
        product(sums, factor, factor)
        wgmma_commit()
        if t == 0:
            mbarrier_expect(barrier, 1024)
            copy_bulk(shared_address(lines, 0), x, 0, 1024, barrier)

    x = np.zeros(1024, F)
    with pytest.raises(DataRace, match="overwritten where a product under way reads it"):
        emulate(kernel, 1, 128, x[-x.ctypes.data // 4 % 4 :])


def test_copies_in_bulk_are_counted_as_whole_sectors_without_conflicts() -> None:
    report = emulate(ring(), 1, SLAB, np.zeros(4 * SLAB, F), np.zeros(4 * SLAB, F), np.int64(4), counts=True)
    assert report.counts is not None
    total = report.counts.total
    assert total.load_bytes == 4 * 4 * SLAB == 32 * total.load_sectors
    assert total.bank_conflicts == 0


def test_a_load_where_a_condition_holds() -> None:
    def kernel(x: Floats, y: Floats, n):
        t = cuda.threadIdx.x
        a, b, c, d = load4_where(x, 4 * t, 4 * t + 3 < n)
        y[4 * t], y[4 * t + 1], y[4 * t + 2], y[4 * t + 3] = d, c, b, a

    raw = np.arange(1, 41, dtype=F)
    x = raw[-raw.ctypes.data // 4 % 4 :][:12]
    y = np.full(32, 7, F)
    emulate(kernel, 1, 8, x, y, np.int64(12))
    np.testing.assert_array_equal(y[:12].reshape(3, 4), x.reshape(3, 4)[:, ::-1])
    assert not y[12:].any()
    with pytest.raises(OutOfBounds):
        emulate(kernel, 1, 8, x, y, np.int64(13 + 3))
