"""Twins of wgmma: where factors and sums lie, by PTX's own formulas, rounding, and each rule a kernel can break."""

from collections.abc import Callable

import numpy as np
import pytest
from numba import cuda, float32, uint32, uint64

from kernels.bulk_copy import fence_proxy_async
from kernels.emulator import (
    DataRace,
    DivergentBarrier,
    MissingFence,
    UninitialisedRead,
    UnsupportedFeature,
    emulate,
)
from kernels.emulator.tensor import round_tf32
from kernels.intrinsics import shared_address
from kernels.launch import Floats, Int32s
from kernels.wgmma import (
    ATOM,
    GROUP,
    LINE,
    NEXT,
    STEPS,
    WGMMA_RESULTS,
    WGMMA_TF32,
    WIDTHS,
    descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_wait,
)

F = np.float32
STARTS = {0: 64, 1: 1024, 2: 512, 3: 256}  # bytes: where patterns of each swizzle may begin, but not at 0
WIDTH = {1: 128, 2: 64, 3: 32}  # bytes of a line


def place(mode: int, line: int, byte: int, leading: int, stride: int) -> int:
    """Bytes from the start of a factor to byte `byte` of a line: PTX ISA, Strided and Swizzled layouts, K-major."""
    if mode == 0:  # core matrices of 8 lines of 16 bytes
        return line // 8 * stride + byte // 16 * leading + line % 8 * 16 + byte % 16
    pitch = WIDTH[mode]
    repeat = 8 * pitch  # of the pattern; within it chunk j of 16 bytes lies at j ^ (its 128-byte row)
    offset = line % 8 * pitch + byte
    assert byte < pitch
    row, chunk = offset // 128, offset // 16 % 8
    swizzled = row * 128 + (chunk ^ row % (pitch // 16)) * 16 + offset % 16
    assert swizzled < repeat
    return line // 8 * stride + swizzled


def one_product(width: int, words: int) -> Callable[..., None]:
    """d = a @ b.T + c of factors that the host has laid out, for two warpgroups that share b."""
    product, results, own = WGMMA_TF32[width], WGMMA_RESULTS[width], width // 2

    def kernel(memory: Floats, a: Int32s, b: Int32s, c: Floats, d: Floats, top, steps):
        tile = cuda.shared.array(0, float32)
        sums = cuda.local.array(own, float32)
        t = uint32(cuda.threadIdx.x)
        for i in range(t, words, 256):
            tile[i] = memory[i]
        for i in range(own):
            sums[i] = c[t * own + i]
        fence_proxy_async()
        cuda.syncthreads()
        start = shared_address(tile, 0)
        wgmma_fence()
        for k in range(steps):
            left = uint64(top + (start + a[2 * (t // 128)] + a[1] * k) // 16)
            product(sums, left, uint64(top + (start + b[0] + b[1] * k) // 16))
        wgmma_commit()
        results(sums)
        for i in range(own):
            d[t * own + i] = sums[i]

    return kernel


def element(lane: int, i: int) -> tuple[int, int]:
    """Row and column in D of a thread's sum: PTX ISA, Register Fragments, accumulator D of m64nNk8."""
    warp = lane // 32
    row = warp * 16 + lane % 32 // 4 + (8 if i % 4 >= 2 else 0)
    return row, i // 4 * 8 + lane % 4 * 2 + i % 2


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_factors_lie_where_ptx_says(rng, mode: int, width: int) -> None:
    deep = {0: 1, 1: 4, 2: 2, 3: 1}[mode]  # products along a line
    leading, stride = {0: (128, 256)}.get(mode, (0, 8 * WIDTH.get(mode, 0)))
    stride += STARTS[mode]  # with a gap
    size = STARTS[mode] * 2 + (16 + width // 8) * stride
    size += -size % 1024
    words = size // 4
    a, b = rng.integers(-9, 10, (128, 8 * deep)), rng.integers(-9, 10, (width, 8 * deep))
    c = rng.integers(-99, 100, (128, width))
    memory = np.full(words, np.nan, F)
    a_start = STARTS[mode]
    b_start = a_start + 16 * stride
    for matrix, start in ((a, a_start), (b, b_start)):
        for line in range(len(matrix)):
            for k in range(8 * deep):
                memory[(start + place(mode, line, 4 * k, leading, stride)) // 4] = matrix[line, k]
    starts, found = np.zeros((256, width // 2), F), np.zeros((256, width // 2), F)
    for t in range(256):
        for i in range(width // 2):
            row, column = element(t % 128, i)
            starts[t, i] = c[t // 128 * 64 + row, column]
    top = np.uint64(mode << 62 | (stride // 16) << 32 | (leading // 16 or 1) << 16)
    along = 2 * 16 if mode else 2 * leading
    a_places = np.array([a_start, along, a_start + 8 * stride], np.int32)
    b_places = np.array([b_start, along], np.int32)
    kernel = one_product(width, words)
    arrays = memory, a_places, b_places, starts.ravel(), found.reshape(-1)
    emulate(kernel, 1, 256, *arrays, top, np.int64(deep), shared_bytes=size)
    right = a @ b.T + c
    for t in range(0, 256, 7):
        for i in range(width // 2):
            row, column = element(t % 128, i)
            assert found[t, i] == right[t // 128 * 64 + row, column]
    if mode:
        other = np.uint64((mode % 3 + 1) << 62 | (stride // 16) << 32 | 1 << 16)
        emulate(kernel, 1, 256, *arrays, other, np.int64(1), shared_bytes=size)
        expected = a[:, :8] @ b[:, :8].T + c
        values = [found[t, i] for t in range(256) for i in range(width // 2)]
        wanted = [expected[t // 128 * 64 + element(t % 128, i)[0], element(t % 128, i)[1]]
                  for t in range(256) for i in range(width // 2)]  # fmt: skip
        assert not np.array_equal(values, wanted)


N = 32
PRODUCT, RESULTS = WGMMA_TF32[N], WGMMA_RESULTS[N]


def faulty(bug: str = "") -> Callable[..., None]:
    """y = x @ x.T of the first 32 columns, in two turns over two stages; `bug` is what is wrong with it."""
    fences, orders, commits = bug != "no proxy fence", bug != "no fence", bug != "no commit"
    fences_alone, meets = bug == "fence of another", bug != "no barrier"
    waits, overwrites, ends = bug != "no results", bug == "overwrite", bug == "overwrite after the wait"
    part, adds, apart = bug == "part", bug == "add", bug == "apart"
    far = 1 << 14 if bug == "far" else 0

    def kernel(x: Floats, y: Floats):
        tile = cuda.shared.array((128, 32), float32, alignment=1024)
        sums = cuda.local.array(16, float32)
        t = uint32(cuda.threadIdx.x)
        for i in range(16):
            sums[i] = float32(0)
        for i in range(32):
            line, step = t // 2, t % 2 * 16 + i % 16
            if i < 16:
                tile[line, ((step // 4) ^ (line % 8)) * 4 + step % 4] = x[line * 32 + step]
        if fences and (not fences_alone or t == 0):
            fence_proxy_async()
        if meets:
            cuda.syncthreads()
        lines = shared_address(tile, 0)
        a = descriptor(uint32(lines + t // 128 * (64 * LINE) + far))
        b = descriptor(uint32(lines + (t % 2 * 1024 if apart else 0)))
        if orders:
            wgmma_fence()
        if not part or t % 128 < 64:
            for k in range(4):
                PRODUCT(sums, uint64(a + uint64(NEXT * k)), uint64(b + uint64(NEXT * k)))
        if adds:
            sums[3] = float32(1)
        if commits:
            wgmma_commit()
        if overwrites:
            wgmma_wait(1)
            tile[t // 2, t % 2] = float32(0)
        if ends:
            wgmma_wait(0)
            tile[127 - t // 2, t % 2] = float32(0)
        if waits:
            RESULTS(sums)
        for i in range(16):
            y[t * 16 + i] = sums[i]

    return kernel


def run(bug: str = "", x: np.ndarray | None = None) -> np.ndarray:
    y = np.zeros((256, 16), F)
    emulate(faulty(bug), 1, 256, np.ones(128 * 32, F) if x is None else x, y.reshape(-1))
    return y


def test_what_is_right_is_not_refused(rng) -> None:
    x = rng.integers(-5, 6, (128, 32)).astype(F)
    found, right = run(x=x.ravel()), x @ x[:N].T
    for t in range(256):
        for i in range(16):
            row, column = element(t % 128, i)
            assert found[t, i] == right[t // 128 * 64 + row, column]


@pytest.mark.parametrize(
    ("bug", "fault", "words"),
    [
        ("no proxy fence", MissingFence, r"thread \(\d+, 0, 0\) has stored: it must execute fence_proxy_async"),
        ("fence of another", MissingFence, "must execute fence_proxy_async after the store"),
        ("no fence", MissingFence, "wgmma_fence"),
        ("no barrier", DataRace, "no barrier between"),
        ("no results", UninitialisedRead, "is read while a product under way changes it"),
        ("no commit", UninitialisedRead, "not committed"),
        ("overwrite", DataRace, "overwritten where a product under way reads it"),
        ("overwrite after the wait", DataRace, "no barrier between"),
        ("add", DataRace, "written to while a product under way changes it"),
        ("part", DivergentBarrier, "all four warps of a warpgroup"),
        ("apart", UnsupportedFeature, "differs within a warpgroup"),
        ("far", UnsupportedFeature, "in no shared array"),
    ],
)
def test_every_rule(bug: str, fault: type[Exception], words: str) -> None:
    with pytest.raises(fault, match=words):
        run(bug)


def test_what_is_not_rounded_is_cut_off() -> None:
    x = np.zeros((128, 32), F)
    x[:, 0] = 1 + 2.0**-11 + 2.0**-12  # beyond the middle of two TF32
    assert np.all(run(x=x.ravel()) == 1)
    rounded = round_tf32(x).view(F)
    assert np.all(run(x=rounded.ravel()) == F((1 + 2.0**-10) ** 2))


def test_a_group_is_waited_for_while_another_is_under_way() -> None:
    """With one group pending the stage of the one before may be stored to, that of the last one may not."""

    def kernel(x: Floats, y: Floats, which):
        ring = cuda.shared.array((2, 64, 32), float32, alignment=1024)
        sums = cuda.local.array(16, float32)
        t = uint32(cuda.threadIdx.x)
        for i in range(16):
            sums[i] = float32(0)
        for stage in range(2):
            for i in range(16):
                ring[stage, t // 2, t % 2 * 16 + i] = x[stage]
        fence_proxy_async()
        cuda.syncthreads()
        wgmma_fence()
        for stage in range(2):
            lines = descriptor(shared_address(ring, uint32(stage * 64 * 32)))
            PRODUCT(sums, lines, lines)
            wgmma_commit()
        wgmma_wait(1)
        cuda.syncthreads()
        ring[which, t // 2, t % 2] = float32(7)
        RESULTS(sums)
        y[t] = sums[5]

    x, y = np.array([1, 2], F), np.zeros(GROUP, F)
    emulate(kernel, 1, GROUP, x, y, np.int64(0))
    assert np.all(y == STEPS * (1 + 4))
    with pytest.raises(DataRace, match="overwritten where a product under way reads it"):
        emulate(kernel, 1, GROUP, x, y, np.int64(1))


def test_one_warpgroup_alone(rng) -> None:
    """Sums of a warpgroup that makes a product while the other one does not; and no other swizzle's bank conflicts."""

    def kernel(x: Floats, y: Floats):
        tile = cuda.shared.array((64, 32), float32, alignment=1024)
        sums = cuda.local.array(16, float32)
        t = uint32(cuda.threadIdx.x)
        for i in range(8):
            tile[t // 4, t % 4 * 8 + i] = x[t // 4 * 32 + t % 4 * 8 + i]
        for i in range(16):
            sums[i] = float32(1)
        fence_proxy_async()
        cuda.syncthreads()
        if t >= 128:
            lines = descriptor(shared_address(tile, 0))
            wgmma_fence()
            PRODUCT(sums, lines, lines)
            wgmma_commit()
            RESULTS(sums)
        y[t] = sums[0]

    x, y = np.zeros((64, 32), F), np.zeros(256, F)
    x[:, :] = 3
    report = emulate(kernel, 1, 256, x.ravel(), y, counts=True)
    assert np.all(y[:128] == 1)
    assert np.all(y[128:] == 1 + 9 * STEPS)
    assert report.counts is not None
    assert report.counts.total.flops["tf32"] == 2 * 64 * N * STEPS
    (reads,) = (one for one in report.counts.lines.values() if one.flops["tf32"])
    assert (reads.shared_bytes, reads.bank_conflicts) == (4 * STEPS * (64 + N), 0)
    assert ATOM == 8 * LINE
