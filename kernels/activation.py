"""ReLU: y = max(x, 0); backward dx = dy where y > 0, else 0.

Shapes   x, y, dy, dx: equal shapes, any number of axes; on the device of one storage (kernels/storage.py),
         C-contiguous, taken as (n,).
Traffic  forward reads x and writes y once; backward reads dy and y and writes dx once.
Edges    NaN passes through forward, and where y is NaN backward passes dy; the slope at 0 is 0 (PyTorch's rules).
Source   V. Nair, G. Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type, inlined, positive
from kernels.errors import same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage

Array = NDArray[Any]
BLOCK = 256
WIDE = "LDG.E.128", "STG.E.128"
EXAMPLES = [(uint32, FLOAT32), (int64, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)]


def relu_forward_reference(x: Array) -> Array:
    """y: x where it is positive or NaN, else 0."""
    return np.where((x > 0) | np.isnan(x), x, 0)


def relu_backward_reference(dy: Array, y: Array) -> Array:
    """dx: 0 where forward's output y <= 0, else dy."""
    return np.where(y <= 0, 0, dy)


@inlined
def passed(dy, y):
    """What of dy passes ReLU backward, where its output was y; a NaN lets it pass."""
    return float32(0) if y <= float32(0) else dy


@kernel(traffic="x -> y", registers=16, examples=EXAMPLES)
def relu_forward_scalar(index: Any, storage: Storage) -> Launch:
    """One element a thread."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes

    def relu_forward(x: stored, y: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            store(y, i, positive(load(x, i)))

    return Launch(relu_forward, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(size * n, size * n))


@kernel(traffic="x -> y", registers=24, instructions=WIDE, examples=EXAMPLES)
def relu_forward_vector(index: Any, storage: Storage) -> Launch:
    """As many elements a thread as 16 bytes hold, in one load and one store: a quarter of the instructions, or less.

    x, y aligned to 16.
    """
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    tail = wide - 1

    def relu_forward(x: stored, y: stored, n: Int64):
        first = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if first + tail < n:
            values = cuda.local.array(wide, float32)
            load_wide(x, first, values)
            for k in range(wide):
                values[k] = positive(values[k])
            store_wide(y, first, values)
        else:
            for k in range(tail):  # at most so many elements
                if first + k < n:
                    store(y, first + k, positive(load(x, first + k)))

    return Launch(relu_forward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), lambda n: Cost(size * n, size * n))


@kernel(traffic="dy, y -> dx", registers=16, examples=EXAMPLES)
def relu_backward_scalar(index: Any, storage: Storage) -> Launch:
    """One element a thread."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes

    def relu_backward(dy: stored, y: stored, dx: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            store(dx, i, passed(load(dy, i), load(y, i)))

    return Launch(relu_backward, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(2 * size * n, size * n))


@kernel(traffic="dy, y -> dx", registers=32, instructions=WIDE, examples=EXAMPLES)
def relu_backward_vector(index: Any, storage: Storage) -> Launch:
    """As many elements a thread as 16 bytes hold, as forward."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    tail = wide - 1

    def relu_backward(dy: stored, y: stored, dx: stored, n: Int64):
        first = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if first + tail < n:
            gradients = cuda.local.array(wide, float32)
            outputs = cuda.local.array(wide, float32)
            load_wide(dy, first, gradients)
            load_wide(y, first, outputs)
            for k in range(wide):
                gradients[k] = passed(gradients[k], outputs[k])
            store_wide(dx, first, gradients)
        else:
            for k in range(tail):
                if first + k < n:
                    store(dx, first + k, passed(load(dy, first + k), load(y, first + k)))

    return Launch(relu_backward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), lambda n: Cost(2 * size * n, size * n))


@techniques("scalar", "vector")
def relu_forward(run: Runner, x: DeviceArray, y: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x and y have equal shapes, TypeError unless one storage.

    The vector technique takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    same_shape("relu_forward", x=x, y=y)
    storage = common_storage("relu_forward", x=x, y=y)
    vector = vectors(run, "relu_forward", technique, {}, storage.wide, x=x, y=y)
    factory = relu_forward_vector if vector else relu_forward_scalar
    run(factory(index_type(x.size), storage), x, y, x.size)


@techniques("scalar", "vector")
def relu_backward(
    run: Runner, dy: DeviceArray, y: DeviceArray, dx: DeviceArray, *, technique: str | None = None
) -> None:
    """Launch on `run`. Raises ShapeError unless dy, y and dx have equal shapes; else as `relu_forward`."""
    same_shape("relu_backward", dy=dy, y=y, dx=dx)
    storage = common_storage("relu_backward", dy=dy, y=y, dx=dx)
    vector = vectors(run, "relu_backward", technique, {}, storage.wide, dy=dy, y=y, dx=dx)
    factory = relu_backward_vector if vector else relu_backward_scalar
    run(factory(index_type(y.size), storage), dy, y, dx, y.size)
