"""GpuRunner on a GPU: its launches, their order, graphs, shared memory, the cache. Skipped where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32

from kernels.compile_cache import CompileCache
from kernels.driver import CudaCore, CupyDriver
from kernels.errors import OutOfMemoryError
from kernels.intrinsics import pointer_to_float32
from kernels.launch import Addresses, Cost, Floats, Int32, Int64, Launch, blocks_for, kernel
from kernels.run_gpu import GpuRunner

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cupy():
    module = pytest.importorskip("cupy", reason="needs a GPU and CuPy")
    try:
        count = module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs a GPU: {error}")
    if not count:
        pytest.skip("needs a GPU")
    return module


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> CompileCache:
    return CompileCache(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["cuda.core", "CuPy"])
def run(request, cupy, cache) -> GpuRunner:
    drivers = {"cuda.core": CudaCore, "CuPy": lambda: CupyDriver(cupy)}
    runner = GpuRunner(cache=cache, drivers=[drivers[request.param]])
    assert runner.driver.name.startswith(request.param)
    return runner


@kernel(traffic="x -> y", examples=[()])
def gpu_test_add_one() -> Launch:
    def add_one(x: Floats, y: Floats, repeats: Int32, n: Int64):
        i = cuda.blockIdx.x * 128 + cuda.threadIdx.x
        if i < n:
            value = x[i]
            for _ in range(repeats):
                value = value + float32(1)
            y[i] = value

    return Launch(add_one, 128, lambda n: blocks_for(n, 128), lambda n: Cost(4 * n, 4 * n))


@kernel(traffic="x -> y", examples=[(1024,)])
def gpu_test_reverse_in_shared(size: int) -> Launch:
    def reverse(x: Floats, y: Floats):
        kept = cuda.shared.array(0, float32)
        for i in range(cuda.threadIdx.x, size, 256):
            kept[i] = x[i]
        cuda.syncthreads()
        for i in range(cuda.threadIdx.x, size, 256):
            y[i] = kept[size - 1 - i]

    return Launch(reverse, 256, lambda: 1, lambda: Cost(4 * size, 4 * size), shared_bytes=4 * size)


@kernel(traffic="table ->", examples=[()])
def gpu_test_fill_each() -> Launch:
    def fill_each(table: Addresses):
        pointer = pointer_to_float32(table[cuda.blockIdx.x])
        pointer[cuda.threadIdx.x] = float32(cuda.blockIdx.x)

    return Launch(fill_each, 4, lambda: 3, lambda: Cost(24, 48))


def test_the_best_driver_is_cuda_core(cupy, cache) -> None:
    assert GpuRunner(cache=cache).driver.name.startswith("cuda.core")


def test_a_launch(run, cupy) -> None:
    x, y = cupy.arange(1000, dtype=np.float32), cupy.zeros(1024, np.float32)
    run(gpu_test_add_one(), x, y, 3, 1000)
    expected = np.zeros(1024, np.float32)
    expected[:1000] = np.arange(1000) + 3
    np.testing.assert_array_equal(cupy.asnumpy(y), expected)


def test_launches_are_in_order_with_cupy_on_a_busy_stream(run, cupy) -> None:
    n = 1 << 20
    with cupy.cuda.Stream(non_blocking=True):
        x, y, z = (cupy.zeros(n, np.float32) for _ in range(3))
        run(gpu_test_add_one(), x, y, 2_000_000, n)  # a long one; float32 counts so far exactly
        x[...] = 7  # must wait until x was read
        run(gpu_test_add_one(), y, z, 5, n)
        total = z + x
        np.testing.assert_array_equal(cupy.asnumpy(total), np.full(n, 2_000_012, np.float32))


@pytest.mark.parametrize("size", [1024, 24 * 1024])
def test_shared_memory_beyond_48_kb(run, cupy, size) -> None:
    x, y = cupy.arange(size, dtype=np.float32), cupy.zeros(size, np.float32)
    run(gpu_test_reverse_in_shared(size), x, y)
    np.testing.assert_array_equal(cupy.asnumpy(y), np.arange(size, dtype=np.float32)[::-1])


def test_more_shared_memory_than_there_is(run, cupy) -> None:
    x = cupy.zeros(1 << 20, np.float32)
    with pytest.raises(RuntimeError, match="4,194,304 bytes of shared memory a block, more than this GPU has"):
        run(gpu_test_reverse_in_shared(1 << 20), x, x.copy())


def test_addresses(run, cupy) -> None:
    arrays = [cupy.zeros(4, np.float32) for _ in range(3)]
    run(gpu_test_fill_each(), run.addresses(arrays))
    assert [one.tolist() for one in arrays] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]


def test_numbers_from_the_host_reach_the_launch_that_they_are_for(run, cupy) -> None:
    """Even when many launches wait behind a long one, and each upload is dropped as soon as it was passed."""
    n = 1 << 20
    with cupy.cuda.Stream(non_blocking=True):
        x, y = cupy.zeros(n, np.float32), cupy.zeros(200, np.float32)
        run(gpu_test_add_one(), x, x.copy(), 1_000_000, n)
        for i in range(200):
            run(gpu_test_add_one(), run.upload(np.array([i], np.float32)), y[i : i + 1], 1, 1)
        np.testing.assert_array_equal(cupy.asnumpy(y), np.arange(200) + 1)


def test_a_graph_computes_what_the_launches_do_with_the_input_of_each_replay(run, cupy) -> None:
    n = 5000
    x, out = cupy.zeros(n, np.float32), cupy.zeros(n, np.float32)
    arrays = [cupy.zeros(4, np.float32) for _ in range(3)]

    def step() -> None:
        between = run.empty((n,))
        run(gpu_test_add_one(), x, between, 1, n)
        run(gpu_test_add_one(), between, out, 1, n)
        run(gpu_test_fill_each(), run.addresses(arrays))

    graph = run.capture(step)
    others = []
    for value in (0, 5, 11):
        x.fill(value)
        arrays[2].fill(0)
        graph.replay()
        others.append(run.empty((n,)))
        others[-1].fill(-1)  # new memory is not the graph's
        np.testing.assert_array_equal(cupy.asnumpy(out), np.full(n, value + 2, np.float32))
        assert arrays[2].tolist() == [2.0] * 4
    assert all((cupy.asnumpy(one) == -1).all() for one in others)


def test_a_capture_that_fails_leaves_the_gpu_usable(run, cupy) -> None:
    x, y = cupy.zeros(8, np.float32), cupy.zeros(8, np.float32)

    def step(waits: bool) -> None:
        run(gpu_test_add_one(), x, y, 1, 8)
        if waits and cupy.cuda.get_current_stream().is_capturing():
            run.synchronize()

    with pytest.raises(Exception, match=r"(?i)captur"):
        run.capture(lambda: step(waits=True))
    graph = run.capture(lambda: step(waits=False))
    y.fill(0)
    graph.replay()
    assert y.tolist() == [1.0] * 8


def test_numbers_from_the_host_cannot_be_captured(run, cupy) -> None:
    assert run.upload(np.array([0.5], np.float32)).tolist() == [0.5]
    with pytest.raises(RuntimeError, match="fill it before each replay"):
        run.capture(lambda: run.upload(np.array([0.5], np.float32)), warm_up=0)


def test_memory_does_not_grow(run, cupy) -> None:
    x, y = cupy.zeros(1000, np.float32), cupy.zeros(1000, np.float32)
    used = []
    for i in range(1000):
        run(gpu_test_add_one(), x, y, 1, 1000)
        run.addresses([x, y])
        if i in (10, 999):
            used.append(cupy.get_default_memory_pool().used_bytes())
    assert used[0] == used[1]


def test_out_of_memory(run, cupy) -> None:
    _, total = cupy.cuda.runtime.memGetInfo()
    with pytest.raises(OutOfMemoryError, match=r"the GPU has no [\d.]+ GiB left: .*--batch-size"):
        run.empty((2 * total,), np.uint8)
    assert run.empty((3,)).shape == (3,)


def test_another_process_finds_the_compiled_kernel(cupy, tmp_path) -> None:
    program = (
        "import cupy; from kernels.activation import relu_forward; from kernels.run_gpu import GpuRunner\n"
        "run = GpuRunner(); x = cupy.asarray([-1, 2], 'float32'); y = run.empty((2,)); relu_forward(run, x, y)\n"
        "print(y.tolist(), run.cache.compiled, run.cache.loaded)"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={**os.environ, "MINIDL_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert printed == ["[0.0, 2.0] 2 0", "[0.0, 2.0] 0 2"]
