"""Speed, against Numba's own simulator on the same kernel: a shared-memory reduction of 64 blocks of 128 threads."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32

from kernels.emulator import emulate

BLOCKS, THREADS = 64, 128

SOURCE = """
def reduce(x, y):
    s = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    s[t] = x[cuda.blockIdx.x * cuda.blockDim.x + t]
    cuda.syncthreads()
    stride = 64
    while stride > 0:
        if t < stride:
            s[t] += s[t + stride]
        cuda.syncthreads()
        stride //= 2
    if t == 0:
        y[cuda.blockIdx.x] = s[0]
"""

# the simulator runs some of the blocks; all take the same time
SIMULATION = """
import sys, time
import numpy as np
from numba import cuda, float32
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"))
kernel = cuda.jit(reduce)
blocks = int(sys.argv[2])
x, y = np.ones(blocks * 128, np.float32), np.zeros(blocks, np.float32)
start = time.perf_counter()
kernel[blocks, 128](x, y)
print(time.perf_counter() - start)
assert (y == 128).all()
"""


def test_much_faster_than_numbas_simulator(tmp_path: Path) -> None:
    path = tmp_path / "reduction.py"
    path.write_text(SOURCE)
    namespace: dict[str, Any] = {"cuda": cuda, "float32": float32}
    exec(compile(SOURCE, str(path), "exec"), namespace)
    x, y = np.random.default_rng(0).random(BLOCKS * THREADS, np.float32), np.zeros(BLOCKS, np.float32)

    def best(checks: bool) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            emulate(namespace["reduce"], BLOCKS, THREADS, x, y, checks=checks, outputs=["y"])
            times.append(time.perf_counter() - start)
        return min(times)

    best(True)  # translates the kernel
    with_checks, without = best(True), best(False)
    np.testing.assert_allclose(y, x.reshape(BLOCKS, THREADS).sum(axis=1), rtol=1e-5)
    simulated = 8
    command = [sys.executable, "-c", SIMULATION, str(path), str(simulated)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if run.returncode:
        pytest.skip(f"Numba's simulator does not run here: {run.stderr.strip().splitlines()[-1]}")
    simulator = float(run.stdout) * BLOCKS / simulated
    assert simulator > 500 * with_checks, (simulator, with_checks)
    assert simulator > 2000 * without, (simulator, without)


def matmul(a, b, c, k):
    """c = a @ b by 64x64 tiles, 4x4 elements a thread."""
    tile_a = cuda.shared.array((16, 64), float32)
    tile_b = cuda.shared.array((16, 64), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * 64, cuda.blockIdx.x * 64
    sums = cuda.local.array((4, 4), float32)
    mine_a = cuda.local.array(4, float32)
    mine_b = cuda.local.array(4, float32)
    for i in range(4):
        for j in range(4):
            sums[i, j] = float32(0)
    for first in range(0, k, 16):
        for step in range(4):
            e = ty * 16 + tx + step * 256
            tile_a[e % 16, e // 16] = a[row + e // 16, first + e % 16]
            tile_b[e // 64, e % 64] = b[first + e // 64, column + e % 64]
        cuda.syncthreads()
        for d in range(16):
            for i in range(4):
                mine_a[i] = tile_a[d, ty * 4 + i]
                mine_b[i] = tile_b[d, tx * 4 + i]
            for i in range(4):
                for j in range(4):
                    sums[i, j] += mine_a[i] * mine_b[j]
        cuda.syncthreads()
    for i in range(4):
        for j in range(4):
            c[row + ty * 4 + i, column + tx * 4 + j] = sums[i, j]


def test_a_tiled_matrix_product_takes_a_few_microseconds_a_statement() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((256, 256), np.float32) for _ in range(2))
    c = np.zeros((256, 256), np.float32)
    emulate(matmul, (4, 4), (16, 16), a, b, c, 256, outputs=["c"])
    np.testing.assert_allclose(c, a @ b, rtol=1e-4)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        emulate(matmul, (4, 4), (16, 16), a, b, c, 256, outputs=["c"])
        times.append(time.perf_counter() - start)
    statements = 256 * (16 + 8) + 16 * 12  # of a thread: products, loads of operands, copies to shared memory
    assert min(times) < 300e-6 * statements  # measured: 40e-6 to 60e-6, most of it in NumPy
