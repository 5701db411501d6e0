"""Scale: y = factor * x, one learned factor for the whole activation; SkipInit puts it at the end of a residual branch.

    forward     y = factor * x
    backward    dx = factor * dy
                dfactor = sum over all elements of  dy * x

Shapes   x, y, dy, dx: equal shapes, any number of axes, on the device of one storage (kernels/storage.py); factor,
         dfactor (), float32. C-contiguous. y may be x, and dx may be dy: each element is read before it is written, by
         the same thread.
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
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage, require_float32
from kernels.sums import BLOCK, add_partial_sums, add_threads

Array = NDArray[Any]
CHUNK = 16 * BLOCK  # elements whose products a block adds
EXAMPLES = [(uint32, FLOAT32), (int64, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)]


@np.errstate(invalid="ignore", over="ignore")
def scale_forward_reference(x: Array, factor: Array) -> Array:
    """The product y = factor * x; factor has the shape ()."""
    return np.asarray(factor * x)


@np.errstate(invalid="ignore", over="ignore")
def scale_backward_reference(x: Array, dy: Array, factor: Array) -> tuple[Array, Array]:
    """(dx, dfactor); dfactor has the shape ()."""
    return np.asarray(factor * dy), np.asarray((dy * x).sum())


@kernel(traffic="x, factor -> y", registers=16, examples=EXAMPLES)
def scale_forward_scalar(index: Any, storage: Storage) -> Launch:
    """One element a thread."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes

    def scale_forward(x: stored, factor: Floats, y: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            store(y, i, factor[0] * load(x, i))

    return Launch(scale_forward, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(size * n + 4, size * n, n))


@kernel(traffic="x, factor -> y", registers=24, instructions=("LDG.E.128", "STG.E.128"), examples=EXAMPLES)
def scale_forward_vector(index: Any, storage: Storage) -> Launch:
    """As many elements a thread as 16 bytes hold, in a load and a store."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    tail = wide - 1

    def scale_forward(x: stored, factor: Floats, y: stored, n: Int64):
        first = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        by = factor[0]
        if first + tail < n:
            values = cuda.local.array(wide, float32)
            load_wide(x, first, values)
            for k in range(wide):
                values[k] = by * values[k]
            store_wide(y, first, values)
        else:
            for k in range(tail):  # at most so many elements
                if first + k < n:
                    store(y, first + k, by * load(x, first + k))

    return Launch(
        scale_forward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), lambda n: Cost(size * n + 4, size * n, n)
    )


def _backward_cost(n: int, size: int) -> Cost:
    return Cost(2 * size * n + 4, size * n + 4 * blocks_for(n, CHUNK), 3 * n)


@kernel(traffic="x, dy, factor -> dx, partial", registers=48, examples=EXAMPLES)
def scale_backward_scalar(index: Any, storage: Storage) -> Launch:
    """dx, and the sum of each block's products."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes

    def scale_backward(x: stored, dy: stored, factor: Floats, dx: stored, partial: Floats, n: Int64):
        sums = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        start = cuda.blockIdx.x * CHUNK + thread
        by, total = factor[0], float32(0)
        for k in range(CHUNK // BLOCK):
            i = index(start + k * BLOCK)
            if i < n:
                g = load(dy, i)
                store(dx, i, by * g)
                total += g * load(x, i)
        sums[thread] = total
        add_threads(thread, sums)
        if thread == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return Launch(scale_backward, BLOCK, lambda n: blocks_for(n, CHUNK), lambda n: _backward_cost(n, size))


@kernel(
    traffic="x, dy, factor -> dx, partial",
    registers=64,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=EXAMPLES,
)
def scale_backward_vector(index: Any, storage: Storage) -> Launch:
    """The same, as many elements at a time as 16 bytes hold; x, dy and dx aligned to 16."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    tail = wide - 1

    def scale_backward(x: stored, dy: stored, factor: Floats, dx: stored, partial: Floats, n: Int64):
        sums = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        start = cuda.blockIdx.x * CHUNK + wide * thread
        by, total = factor[0], float32(0)
        for k in range(CHUNK // (wide * BLOCK)):
            first = index(start + k * wide * BLOCK)
            if first + tail < n:
                gradients = cuda.local.array(wide, float32)
                values = cuda.local.array(wide, float32)
                load_wide(dy, first, gradients)
                load_wide(x, first, values)
                for j in range(wide):
                    values[j] = gradients[j] * values[j]
                    gradients[j] = by * gradients[j]
                store_wide(dx, first, gradients)
                for j in range(0, wide, 4):
                    total += (values[j] + values[j + 1]) + (values[j + 2] + values[j + 3])
            else:
                for i in range(first, n):  # the tail, less than what 16 bytes hold
                    g = load(dy, i)
                    store(dx, i, by * g)
                    total += g * load(x, i)
        sums[thread] = total
        add_threads(thread, sums)
        if thread == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return Launch(scale_backward, BLOCK, lambda n: blocks_for(n, CHUNK), lambda n: _backward_cost(n, size))


@techniques("scalar", "vector")
def scale_forward(
    run: Runner, x: DeviceArray, factor: DeviceArray, y: DeviceArray, *, technique: str | None = None
) -> None:
    """Launch on `run`. Raises ShapeError unless x and y have equal shapes and factor the shape ().

    TypeError is raised unless x and y have one storage and factor is float32.
    The factor is read when the kernel runs, so a captured step sees what training has made of it. The vector technique
    takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    same_shape("scale_forward", x=x, y=y)
    require_shape("scale_forward", "factor", factor, ())
    storage = common_storage("scale_forward", x=x, y=y)
    require_float32("scale_forward", factor=factor)
    vector = vectors(run, "scale_forward", technique, {}, storage.wide, x=x, y=y)
    factory = scale_forward_vector if vector else scale_forward_scalar
    run(factory(index_type(x.size), storage), x, factor, y, x.size)


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
    """Launch on `run`, as `scale_forward`. Raises ShapeError unless x, dy, dx are alike and both factors ().

    What is summed for dfactor are the products of what is stored, in float32.
    """
    same_shape("scale_backward", x=x, dy=dy, dx=dx)
    require_shape("scale_backward", "factor", factor, ())
    require_shape("scale_backward", "dfactor", dfactor, ())
    storage = common_storage("scale_backward", x=x, dy=dy, dx=dx)
    require_float32("scale_backward", factor=factor, dfactor=dfactor)
    vector = vectors(run, "scale_backward", technique, {}, storage.wide, x=x, dy=dy, dx=dx)
    factory = scale_backward_vector if vector else scale_backward_scalar
    partial = run.empty((blocks_for(x.size, CHUNK),))
    run(factory(index_type(x.size), storage), x, dy, factor, dx, partial, x.size)
    run(add_partial_sums(), partial, dfactor, partial.size)
