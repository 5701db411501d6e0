"""Scale: y = factor * x, one learned factor for the whole activation; SkipInit puts it at the end of a residual branch.

    forward     y = factor * x
    backward    dx = factor * dy
                dfactor = sum over all elements of  dy * x

Shapes   x, y, dy, dx: equal shapes, any number of axes; factor, dfactor (). On the device float32, C-contiguous. y may
         be x, and dx may be dy: each element is read before it is written, by the same thread.
Traffic  forward reads x once and writes y once; backward reads x and dy once and writes dx once, and a partial sum for
         each 4096 elements.
Order    A thread adds 16 products, a block its threads' sums as a tree, one block the blocks' sums with what they lost
         (kernels/sums.py). All of it follows from the size alone, and so do the bits.
Edges    NaN and infinity follow the products and the sum: 0 * inf is NaN. No elements: dfactor = 0.
Source   S. De, S. Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
         2020, arXiv:2002.10444: with the factor 0 at first, a residual block starts as the identity, as batch
         normalization makes it at initialisation.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type
from kernels.errors import require_shape, same_shape
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.sums import BLOCK, add_partial_sums, add_threads

Array = NDArray[Any]
CHUNK = 16 * BLOCK  # elements whose products a block adds


@np.errstate(invalid="ignore", over="ignore")
def scale_forward_reference(x: Array, factor: Array) -> Array:
    """The product y = factor * x; factor has the shape ()."""
    return np.asarray(factor * x)


@np.errstate(invalid="ignore", over="ignore")
def scale_backward_reference(x: Array, dy: Array, factor: Array) -> tuple[Array, Array]:
    """(dx, dfactor); dfactor has the shape ()."""
    return np.asarray(factor * dy), np.asarray((dy * x).sum())


@kernel(traffic="x, factor -> y", registers=16, examples=[(uint32,), (int64,)])
def scale_forward_scalar(index: Any) -> Launch:
    """One element a thread."""

    def scale_forward(x: Floats, factor: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            y[i] = factor[0] * x[i]

    return Launch(scale_forward, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(4 * n + 4, 4 * n, n))


@kernel(traffic="x, factor -> y", registers=24, instructions=("LDG.E.128", "STG.E.128"), examples=[(uint32,), (int64,)])
def scale_forward_vector(index: Any) -> Launch:
    """Four elements a thread, in a load and a store of 16 bytes."""

    def scale_forward(x: Floats, factor: Floats, y: Floats, n: Int64):
        first = index(4 * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        by = factor[0]
        if first + 3 < n:
            a, b, c, d = load4(x, first)
            store4(y, first, by * a, by * b, by * c, by * d)
        else:
            for k in range(3):  # the tail, at most three elements
                if first + k < n:
                    y[first + k] = by * x[first + k]

    return Launch(scale_forward, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), lambda n: Cost(4 * n + 4, 4 * n, n))


def _backward_cost(n: int) -> Cost:
    return Cost(8 * n + 4, 4 * n + 4 * blocks_for(n, CHUNK), 3 * n)


@kernel(traffic="x, dy, factor -> dx, partial", registers=48, examples=[(uint32,), (int64,)])
def scale_backward_scalar(index: Any) -> Launch:
    """dx, and the sum of each block's products."""

    def scale_backward(x: Floats, dy: Floats, factor: Floats, dx: Floats, partial: Floats, n: Int64):
        sums = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        start = cuda.blockIdx.x * CHUNK + thread
        by, total = factor[0], float32(0)
        for k in range(CHUNK // BLOCK):
            i = index(start + k * BLOCK)
            if i < n:
                g = dy[i]
                dx[i] = by * g
                total += g * x[i]
        sums[thread] = total
        add_threads(thread, sums)
        if thread == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return Launch(scale_backward, BLOCK, lambda n: blocks_for(n, CHUNK), _backward_cost)


@kernel(
    traffic="x, dy, factor -> dx, partial",
    registers=64,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[(uint32,), (int64,)],
)
def scale_backward_vector(index: Any) -> Launch:
    """The same, four elements at a time; x, dy and dx aligned to 16."""

    def scale_backward(x: Floats, dy: Floats, factor: Floats, dx: Floats, partial: Floats, n: Int64):
        sums = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        start = cuda.blockIdx.x * CHUNK + 4 * thread
        by, total = factor[0], float32(0)
        for k in range(CHUNK // (4 * BLOCK)):
            first = index(start + k * 4 * BLOCK)
            if first + 3 < n:
                g0, g1, g2, g3 = load4(dy, first)
                x0, x1, x2, x3 = load4(x, first)
                store4(dx, first, by * g0, by * g1, by * g2, by * g3)
                total += (g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3)
            else:
                for i in range(first, n):  # the tail, at most three elements
                    g = dy[i]
                    dx[i] = by * g
                    total += g * x[i]
        sums[thread] = total
        add_threads(thread, sums)
        if thread == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return Launch(scale_backward, BLOCK, lambda n: blocks_for(n, CHUNK), _backward_cost)


@techniques("scalar", "vector")
def scale_forward(
    run: Runner, x: DeviceArray, factor: DeviceArray, y: DeviceArray, *, technique: str | None = None
) -> None:
    """Launch on `run`. Raises ShapeError unless x and y have equal shapes and factor the shape ().

    The factor is read when the kernel runs, so a captured step sees what training has made of it. The vector technique
    takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    same_shape("scale_forward", x=x, y=y)
    require_shape("scale_forward", "factor", factor, ())
    vector = vectors(run, "scale_forward", technique, {}, x=x, y=y)
    factory = scale_forward_vector if vector else scale_forward_scalar
    run(factory(index_type(x.size)), x, factor, y, x.size)


@techniques("scalar", "vector")
def scale_backward(
    run: Runner,
    x: DeviceArray,
    dy: DeviceArray,
    factor: DeviceArray,
    dx: DeviceArray,
    dfactor: DeviceArray,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`, as `scale_forward`. Raises ShapeError unless x, dy, dx are alike and both factors ()."""
    same_shape("scale_backward", x=x, dy=dy, dx=dx)
    require_shape("scale_backward", "factor", factor, ())
    require_shape("scale_backward", "dfactor", dfactor, ())
    vector = vectors(run, "scale_backward", technique, {}, x=x, dy=dy, dx=dx)
    factory = scale_backward_vector if vector else scale_backward_scalar
    partial = run.empty((blocks_for(x.size, CHUNK),))
    run(factory(index_type(x.size)), x, dy, factor, dx, partial, x.size)
    run(add_partial_sums(), partial, dfactor, partial.size)
