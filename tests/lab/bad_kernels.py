"""Kernels that break one promise each, and one that keeps them all. They are in no registry."""

import math

from numba import cuda, float32, int64

from kernels.intrinsics import load4, store4
from kernels.launch import Cost, Factory, Floats, Int64, Kernel, Launch, Promises


def build(function, *, block=32, registers=64, instructions=(), shared_bytes=0) -> Kernel:
    """A kernel of this function; its promises."""

    def make() -> Launch:
        return Launch(function, block, lambda n: 1, lambda n: Cost(4 * n, 4 * n), shared_bytes)

    make.__name__ = f"{function.__name__}_kernel"
    return Factory(make, Promises(("x",), ("y",), (), tuple(instructions), registers, True, ((),)))()


def good(x: Floats, y: Floats, n: Int64):
    i = cuda.threadIdx.x
    shared = cuda.shared.array(32, float32)
    shared[i] = x[i]
    cuda.syncthreads()
    y[i] = shared[31 - i] * float32(0.5) + float32(n)


def wide(x: Floats, y: Floats, n: Int64):
    i = 4 * cuda.threadIdx.x
    if i < n:
        a, b, c, d = load4(x, i)
        store4(y, i, d, c, b, a)


def narrow(x: Floats, y: Floats, n: Int64):
    i = 4 * cuda.threadIdx.x
    if i < n:
        y[i], y[i + 1], y[i + 2], y[i + 3] = x[i + 3], x[i + 2], x[i + 1], x[i]


def float64_literal(x: Floats, y: Floats, n: Int64):
    i = cuda.threadIdx.x
    if i < n:
        y[i] = x[i] * 0.1


def float64_comparison(x: Floats, y: Floats, n: Int64):
    i = cuda.threadIdx.x
    if i < n:
        y[i] = max(x[i], 0.1)


def float64_division(x: Floats, y: Floats, n: Int64):
    i = cuda.threadIdx.x
    if i < n:
        y[i] = math.sqrt(x[i]) / n


def indexed_local(x: Floats, y: Floats, n: Int64):
    kept = cuda.local.array(64, float32)
    for i in range(64):
        kept[i] = x[i]
    kept[n] = float32(0)
    for i in range(64):
        y[i] = kept[(i * n) % 64]


def spilling(x: Floats, y: Floats, n: Int64):
    """320 values that are all needed at the end; a thread has at most 255 registers."""
    kept = cuda.local.array((5, 64), float32)
    i = cuda.threadIdx.x
    for row in range(5):
        for j in range(64):
            kept[row, j] = x[i + 32 * (64 * row + j)]
    cuda.syncthreads()
    for row in range(5):
        for j in range(64):
            y[i + 32 * (64 * row + j)] = kept[row, j] * kept[4 - row, 63 - j] + kept[row, j]


def hungry(x: Floats, y: Floats, n: Int64):
    """128 values that are all needed at the end."""
    kept = cuda.local.array((2, 64), float32)
    i = cuda.threadIdx.x
    for row in range(2):
        for j in range(64):
            kept[row, j] = x[i + 32 * (64 * row + j)]
    cuda.syncthreads()
    for row in range(2):
        for j in range(64):
            y[i + 32 * (64 * row + j)] = kept[row, j] * kept[1 - row, 63 - j] + kept[row, j]


def static_shared(count):
    def uses_static_shared(x: Floats, y: Floats, n: Int64):
        kept = cuda.shared.array(count, float32)
        kept[cuda.threadIdx.x] = x[cuda.threadIdx.x]
        cuda.syncthreads()
        y[cuda.threadIdx.x] = kept[31 - cuda.threadIdx.x]

    return uses_static_shared


def dynamic_shared(x: Floats, y: Floats, n: Int64):
    kept = cuda.shared.array(0, float32)
    kept[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    cuda.syncthreads()
    y[cuda.threadIdx.x] = kept[31 - cuda.threadIdx.x]


def not_inlined(x: Floats, y: Floats, n: Int64):
    y[0] = never_inlined(x[int64(n)])


@cuda.jit(device=True)
def never_inlined(value):
    return value + float32(1)


def ill_typed(x: Floats, y: Floats, n: Int64):
    y[0] = x.missing
