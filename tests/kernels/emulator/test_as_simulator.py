"""Answers, against those of Numba's own simulator, which starts a thread of the system for each of the GPU's."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int32

from kernels.emulator import emulate

KERNELS = """
def transpose(y, x):
    tile = cuda.shared.array((4, 5), float32)
    r, c = cuda.blockIdx.y * 4 + cuda.threadIdx.y, cuda.blockIdx.x * 4 + cuda.threadIdx.x
    if r < x.shape[0] and c < x.shape[1]:
        tile[cuda.threadIdx.y, cuda.threadIdx.x] = x[r, c]
    cuda.syncthreads()
    r, c = cuda.blockIdx.x * 4 + cuda.threadIdx.y, cuda.blockIdx.y * 4 + cuda.threadIdx.x
    if r < y.shape[0] and c < y.shape[1]:
        y[r, c] = tile[cuda.threadIdx.x, cuda.threadIdx.y]


def scan(y, x):
    s = cuda.shared.array((2, 16), int32)
    t = cuda.threadIdx.x
    s[0, t] = x[cuda.blockIdx.x, t]
    cuda.syncthreads()
    side = 0
    step = 1
    while step < 16:
        s[1 - side, t] = s[side, t] + (s[side, t - step] if t >= step else 0)
        side = 1 - side
        step *= 2
        cuda.syncthreads()
    y[cuda.blockIdx.x, t] = s[side, t]


def histogram(y, x):
    counts = cuda.shared.array(6, int32)
    t = cuda.threadIdx.x
    if t < 6:
        counts[t] = 0
    cuda.syncthreads()
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        cuda.atomic.add(counts, abs(x[i]) % 6, 1)
    cuda.syncthreads()
    if t < 6:
        cuda.atomic.add(y, t, counts[t])


def stencil(y, x):
    i = cuda.grid(1)
    if i >= x.size:
        return
    total = float32(0)
    for k in range(-2, 3):
        j = i + k
        if j < 0:
            continue
        if j >= x.size:
            break
        total += x[j] * float32(3 - abs(k))
    y[i] = total


def local_sort(y, x):
    t = cuda.grid(1)
    a = cuda.local.array(5, float32)
    for i in range(5):
        a[i] = x[t, i]
    for i in range(1, 5):
        v = a[i]
        j = i - 1
        while j >= 0 and a[j] > v:
            a[j + 1] = a[j]
            j -= 1
        a[j + 1] = v
    for i in range(5):
        y[t, i] = a[i]


def voting(y, x):
    t = cuda.threadIdx.x
    round = 0
    while cuda.syncthreads_or(x[cuda.blockIdx.x, t] > round * 3):
        round += 1
    y[cuda.blockIdx.x, t] = round * 100 + cuda.syncthreads_count(x[cuda.blockIdx.x, t] % 2 == 1)
"""

LAUNCHES = """
rng = np.random.default_rng(0)
CASES = {
    "transpose": ((2, 3), (4, 4), (7, 10), np.float32, rng.random((10, 7)).astype(np.float32)),
    "scan": (3, 16, (3, 16), np.int32, rng.integers(-9, 9, (3, 16)).astype(np.int32)),
    "histogram": (2, 8, 6, np.int32, rng.integers(-99, 99, 50).astype(np.int32)),
    "stencil": (3, 8, 20, np.float32, rng.random(20).astype(np.float32)),
    "local_sort": (2, 8, (16, 5), np.float32, rng.random((16, 5)).astype(np.float32)),
    "voting": (3, 8, (3, 8), np.int64, rng.integers(0, 20, (3, 8))),
}
"""

SIMULATION = f"""
import sys
import numpy as np
from numba import cuda, float32, int32
exec(open(sys.argv[1]).read())
{LAUNCHES}
found = {{}}
for name, (grid, block, shape, dtype, x) in CASES.items():
    y = np.zeros(shape, dtype)
    cuda.jit(globals()[name])[grid, block](y, x)
    found[name] = y
np.savez(sys.argv[2], **found)
"""


def test_as_the_simulator(tmp_path: Path) -> None:
    path, results = tmp_path / "simulated.py", tmp_path / "found.npz"
    path.write_text(KERNELS)
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SIMULATION, str(path), str(results)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if run.returncode:
        pytest.skip(f"Numba's simulator does not run here: {run.stderr.strip().splitlines()[-1]}")
    namespace: dict[str, Any] = {"cuda": cuda, "float32": float32, "int32": int32, "np": np}
    exec(compile(KERNELS, str(path), "exec"), namespace)
    exec(LAUNCHES, namespace)
    with np.load(results) as expected:
        assert set(expected) == set(namespace["CASES"])
        for name, (grid, block, shape, dtype, x) in namespace["CASES"].items():
            y = np.zeros(shape, dtype)
            emulate(namespace[name], grid, block, y, x)
            np.testing.assert_array_equal(y, expected[name], err_msg=name)
            assert y.any()
