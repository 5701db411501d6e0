"""Counts: access patterns with known answers, then whole kernels."""

import inspect

import numpy as np
import pytest
from numba import cuda, float32

from kernels.device import positive
from kernels.emulator import emulate
from kernels.emulator.counts import CountingObserver, count_divergent, count_passes, count_sectors, warps_of
from kernels.intrinsics import load4

LANES = np.arange(32)
ONE_WARP = np.zeros(32, np.int64)
BASE = 1 << 40  # a global address, a multiple of 128


@pytest.mark.parametrize(
    ("addresses", "sectors"),
    [
        (BASE + 4 * LANES, 4),  # stride 1: 128 bytes
        (BASE + 8 * LANES, 8),
        (BASE + 128 * LANES, 32),  # stride 32: each lane its own
        (BASE + 4 + 4 * LANES, 5),  # one element beyond
        (BASE + 4 * (31 - LANES), 4),  # backwards
        (BASE + 0 * LANES, 1),  # broadcast
        (BASE + 16 * LANES, 16),  # 128-bit accesses side by side
        (BASE + 4 * (LANES % 8), 1),
        (BASE + LANES, 1),  # bytes
    ],
)
def test_sectors_of_a_warp(addresses, sectors: int) -> None:
    assert count_sectors(addresses, ONE_WARP) == sectors


def test_sectors_are_counted_warp_by_warp() -> None:
    warps = np.repeat([0, 1, 5], 32)
    same = np.tile(BASE + 4 * LANES, 3)
    assert count_sectors(same, warps) == 12  # warps share nothing
    assert count_sectors(same[:40], warps[:40]) == 4 + 1
    scattered = BASE + 32 * np.random.default_rng(1).permutation(96)
    assert count_sectors(scattered, warps) == 96


@pytest.mark.parametrize(
    ("words", "width", "passes", "ideal"),
    [
        (LANES, 4, 1, 1),
        (2 * LANES, 4, 2, 1),  # every other bank, twice
        (32 * LANES, 4, 32, 1),  # one bank: a column of a 32-wide tile
        (33 * LANES, 4, 1, 1),  # padded
        (0 * LANES, 4, 1, 1),  # broadcast
        (LANES // 2, 4, 1, 1),  # pairs share a word
        (LANES % 16 + 32 * (LANES // 16), 4, 2, 1),
        (7 + LANES, 4, 1, 1),
        (2 * LANES, 8, 2, 2),  # side by side, by halves
        (0 * LANES, 8, 2, 2),
        (32 * LANES, 8, 32, 2),  # 16 in each half
        (4 * LANES, 16, 4, 4),  # side by side, by quarters
        (32 * LANES, 16, 32, 4),  # 8 in each quarter
        (36 * LANES, 16, 4, 4),  # padded by 16 bytes
        (20 * LANES, 16, 4, 4),
        (8 * LANES, 16, 8, 4),
    ],
)
def test_passes_of_a_warp(words, width: int, passes: int, ideal: int) -> None:
    assert count_passes(4 * words, width, LANES, ONE_WARP) == (passes, ideal)


def test_passes_of_bytes_and_of_parts_of_a_warp() -> None:
    assert count_passes(LANES, 1, LANES, ONE_WARP) == (1, 1)
    assert count_passes(128 * LANES[:5], 4, LANES[:5], ONE_WARP[:5]) == (5, 1)
    few = np.array([0, 8, 9, 31])  # of three quarters
    assert count_passes(16 * few, 16, few, ONE_WARP[:4]) == (3, 3)
    warps = np.repeat([3, 4], 32)
    assert count_passes(np.tile(4 * LANES, 2), 4, np.tile(LANES, 2), warps) == (2, 2)


def test_atomics_take_turns() -> None:
    assert count_passes(0 * LANES, 4, LANES, ONE_WARP, atomic=True) == (32, 1)
    assert count_passes(4 * LANES, 4, LANES, ONE_WARP, atomic=True) == (1, 1)


def test_divergence() -> None:
    warps = np.repeat([0, 1, 2], 32)
    taken = np.arange(96) < 40
    assert count_divergent(taken, warps) == 1
    assert count_divergent(~taken, warps) == 1
    assert count_divergent(np.arange(96) % 2 == 0, warps) == 3
    assert count_divergent(np.arange(96) >= 64, warps) == 0


def test_warps_of_blocks_that_are_no_multiple_of_32() -> None:
    lanes = np.array([0, 31, 32, 39, 40, 79, 80])
    assert warps_of(lanes, 40).tolist() == [0, 0, 1, 1, 2, 3, 4]


def test_observer_adds_up_by_line() -> None:
    observer = CountingObserver()
    lanes = np.arange(64)
    observer.memory(("k.py", 10), "load", "global", "x", BASE + 4 * lanes, 4, lanes, 64)
    observer.memory(("k.py", 11), "store", "global", "y", BASE + 128 * lanes, 4, lanes, 64)
    observer.memory(("k.py", 11), "load", "local", "z", 4 * lanes, 4, lanes, 64)
    observer.memory(("k.py", 12), "atomic", "global", "y", BASE + 0 * lanes, 4, lanes, 64)
    observer.memory(("k.py", 13), "store", "shared", "s", 128 * lanes, 4, lanes, 64)
    observer.branch(("k.py", 14), lanes < 8, lanes, 64)
    observer.branch(("k.py", 14), True, lanes, 64)
    observer.barrier(("k.py", 15), "block", np.arange(192), 64)
    observer.barrier(("k.py", 15), "warp", np.arange(192), 64)
    observer.barrier(("k.py", 15), "grid", np.arange(192), 64)
    observer.arithmetic(("k.py", 16), "fma", np.dtype(np.float32), 64)
    observer.arithmetic(("k.py", 16), "mul", np.dtype(np.float64), 64)
    observer.arithmetic(("k.py", 16), "add", np.dtype(np.int64), 64)
    observer.arithmetic(("k.py", 16), "mma_tf32", np.dtype(np.float32), 2048)
    observer.statement(("k.py", 17), lanes[:48], 64)
    counts = observer.counts()
    line = counts.lines
    assert (line["k.py", 10].load_requests, line["k.py", 10].load_sectors, line["k.py", 10].load_bytes) == (2, 8, 256)
    assert (line["k.py", 11].store_requests, line["k.py", 11].store_sectors, line["k.py", 11].load_requests) == (
        2,
        64,
        0,
    )
    assert (line["k.py", 12].load_sectors, line["k.py", 12].store_sectors) == (2, 2)
    assert (line["k.py", 13].shared_requests, line["k.py", 13].shared_passes, line["k.py", 13].bank_conflicts) == (
        2,
        64,
        62,
    )
    assert (line["k.py", 14].branches, line["k.py", 14].divergent_branches) == (4, 1)
    assert line["k.py", 15].barriers == 3 + 6 + 1
    assert line["k.py", 16].flops == {"float32": 128, "float64": 64, "tf32": 2048}
    assert line["k.py", 16].operations == {"int64": 64}
    assert (line["k.py", 17].statements, line["k.py", 17].lanes, line["k.py", 17].active_share) == (2, 48, 0.75)
    total = counts.total
    assert total.bytes_asked == 256 + 256 + 2 * 256
    assert total.bytes_moved == 32 * (8 + 64 + 4)
    assert total.active_share == 0.75
    assert total.flops["float32"] == 128


def test_text_names_lines_and_totals() -> None:
    observer = CountingObserver()
    lanes = np.arange(32)
    observer.memory((__file__, 1), "load", "global", "x", BASE + 128 * lanes, 4, lanes, 32)
    text = str(observer.counts())
    assert "1 loads of 32 sectors" in text
    assert "128 bytes asked, 1,024 moved" in text
    assert '"""Counts: access patterns' in text  # the source of line 1


def aligned(n: int, offset: int = 0) -> np.ndarray:
    """n ones that start `offset` elements into their memory."""
    return np.ones(n + offset, np.float32)[offset:]


def line_of(function, text: str) -> tuple[str, int]:
    lines, first = inspect.getsourcelines(function)
    return inspect.getsourcefile(function), first + next(k for k, line in enumerate(lines) if text in line)


def copy(x, y, stride):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    value = x[i * stride]
    y[i] = value * float32(2)


@pytest.mark.parametrize(("stride", "offset", "sectors"), [(1, 0, 4), (2, 0, 8), (32, 0, 32), (1, 1, 5), (0, 0, 1)])
def test_traffic_of_a_copy(stride: int, offset: int, sectors: int) -> None:
    x, y = aligned(256 * 32, offset), aligned(256)
    counts = emulate(copy, 2, 128, x, y, np.int64(stride), counts=True).counts
    read, written = (counts.lines[line_of(copy, text)] for text in ("value = x", "y[i] ="))
    assert (read.load_requests, read.load_sectors, read.load_bytes) == (8, 8 * sectors, 1024)
    assert (written.store_requests, written.store_sectors, written.store_bytes) == (8, 32, 1024)
    assert counts.total.flops == {"float32": 256}
    assert counts.total.bytes_moved == 32 * (8 * sectors + 32)
    assert "value = x[i * stride]" in str(counts)


def wide_copy(x, y):
    t = cuda.threadIdx.x
    a, b, c, d = load4(x, 4 * t)
    y[t] = a + b + c + d


def test_traffic_of_a_wide_load() -> None:
    counts = emulate(wide_copy, 1, 64, aligned(256), aligned(64), counts=True).counts
    line = counts.lines[line_of(wide_copy, "load4(")]
    assert (line.load_requests, line.load_sectors, line.load_bytes) == (2, 32, 1024)
    assert counts.total.flops == {"float32": 192}


def transpose(width: int):
    def kernel(x, y):
        tile = cuda.shared.array((32, width), float32)
        i, j = cuda.threadIdx.y, cuda.threadIdx.x
        tile[i, j] = x[i * 32 + j]
        cuda.syncthreads()
        y[i * 32 + j] = tile[j, i]

    return kernel


@pytest.mark.parametrize(("width", "conflicts"), [(32, 32 * 31), (33, 0), (34, 32)])
def test_bank_conflicts_of_a_transpose(width: int, conflicts: int) -> None:
    x, y = aligned(1024), aligned(1024)
    x[:] = np.arange(1024)
    kernel = transpose(width)
    counts = emulate(kernel, 1, (32, 32), x, y, counts=True).counts
    np.testing.assert_array_equal(y.reshape(32, 32), x.reshape(32, 32).T)
    assert counts.total.bank_conflicts == conflicts
    assert counts.total.shared_requests == 64
    assert counts.lines[line_of(kernel, "tile[i, j] = x")].bank_conflicts == 0
    assert counts.total.barriers == 1


def diverge(y, n):
    t = cuda.threadIdx.x
    value = float32(0)
    if t < n:
        value = float32(t)
        value += float32(2)
    y[t] = value


@pytest.mark.parametrize(("n", "divergent"), [(64, 0), (40, 1), (96, 0), (32, 0), (95, 1)])
def test_divergence_of_a_branch(n: int, divergent: int) -> None:
    counts = emulate(diverge, 1, 96, aligned(96), np.int64(n), counts=True).counts
    branch, inside = (counts.lines[line_of(diverge, text)] for text in ("if t < n", "+= float32(2)"))
    assert (branch.branches, branch.divergent_branches) == (3, divergent)
    assert inside.lanes == n
    assert inside.statements == -(-n // 32)
    assert inside.flops == {"float32": n}
    assert branch.active_share == 1


def test_nothing_is_counted_unless_asked() -> None:
    assert emulate(diverge, 1, 32, aligned(32), np.int64(3)).counts is None


def test_device_functions_are_counted_in_their_own_file() -> None:
    def kernel(x, y):
        y[cuda.threadIdx.x] = positive(x[cuda.threadIdx.x])

    counts = emulate(kernel, 1, 32, aligned(32), aligned(32), counts=True).counts
    assert line_of(positive.py_func, "return") in counts.lines
    assert "\ndevice.py\n" in str(counts)
    assert "\ntest_counts.py\n" in str(counts)


@pytest.mark.parametrize("offset", range(4))
def test_arrays_are_counted_as_if_a_gpu_had_allocated_them(offset: int) -> None:
    def copy(x, y):
        i = cuda.threadIdx.x
        y[i] = x[i]

    memory = np.zeros(64 + 8 + 4, np.float32)[offset:]  # NumPy aligns to 16 bytes, wherever that is
    for first, sectors in ((0, 8), (4, 10), (8, 8)):  # two warps, each of four sectors, or parts of five
        x = memory.copy()[first : first + 64]
        report = emulate(copy, 1, 64, x, np.empty(64, np.float32), counts=True)
        assert report.counts.total.load_sectors == sectors
    assert str(report).startswith("copy: grid (1, 1, 1), block (64, 1, 1), 0 bytes")
