"""ReLU: y = max(x, 0); backward dx = dy where y > 0, else 0.

Shapes   x, y, dy, dx: equal shapes, any number of axes; on the device float32, C-contiguous, taken as (n,).
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
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques

Array = NDArray[Any]
BLOCK = 256
WIDE = "LDG.E.128", "STG.E.128"


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


@kernel(traffic="x -> y", registers=16, examples=[(uint32,), (int64,)])
def relu_forward_scalar(index: Any) -> Launch:
    """One element a thread."""

    def relu_forward(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            y[i] = positive(x[i])

    return Launch(relu_forward, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(4 * n, 4 * n))


@kernel(traffic="x -> y", registers=24, instructions=WIDE, examples=[(uint32,), (int64,)])
def relu_forward_vector(index: Any) -> Launch:
    """Four elements a thread, one 16-byte load and one store: a quarter of the instructions. x, y aligned to 16."""

    def relu_forward(x: Floats, y: Floats, n: Int64):
        first = index(4 * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if first + 3 < n:
            a, b, c, d = load4(x, first)
            store4(y, first, positive(a), positive(b), positive(c), positive(d))
        else:
            for k in range(3):  # the tail, at most three elements
                if first + k < n:
                    y[first + k] = positive(x[first + k])

    return Launch(relu_forward, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), lambda n: Cost(4 * n, 4 * n))


@kernel(traffic="dy, y -> dx", registers=16, examples=[(uint32,), (int64,)])
def relu_backward_scalar(index: Any) -> Launch:
    """One element a thread."""

    def relu_backward(dy: Floats, y: Floats, dx: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            dx[i] = passed(dy[i], y[i])

    return Launch(relu_backward, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(8 * n, 4 * n))


@kernel(traffic="dy, y -> dx", registers=24, instructions=WIDE, examples=[(uint32,), (int64,)])
def relu_backward_vector(index: Any) -> Launch:
    """Four elements a thread, as forward."""

    def relu_backward(dy: Floats, y: Floats, dx: Floats, n: Int64):
        first = index(4 * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if first + 3 < n:
            dy0, dy1, dy2, dy3 = load4(dy, first)
            y0, y1, y2, y3 = load4(y, first)
            store4(dx, first, passed(dy0, y0), passed(dy1, y1), passed(dy2, y2), passed(dy3, y3))
        else:
            for k in range(3):
                if first + k < n:
                    dx[first + k] = passed(dy[first + k], y[first + k])

    return Launch(relu_backward, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), lambda n: Cost(8 * n, 4 * n))


@techniques("scalar", "vector")
def relu_forward(run: Runner, x: DeviceArray, y: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x and y have equal shapes.

    The vector technique takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    same_shape("relu_forward", x=x, y=y)
    vector = vectors(run, "relu_forward", technique, {}, x=x, y=y)
    factory = relu_forward_vector if vector else relu_forward_scalar
    run(factory(index_type(x.size)), x, y, x.size)


@techniques("scalar", "vector")
def relu_backward(
    run: Runner, dy: DeviceArray, y: DeviceArray, dx: DeviceArray, *, technique: str | None = None
) -> None:
    """Launch on `run`. Raises ShapeError unless dy, y and dx have equal shapes; techniques as in `relu_forward`."""
    same_shape("relu_backward", dy=dy, y=y, dx=dx)
    vector = vectors(run, "relu_backward", technique, {}, dy=dy, y=y, dx=dx)
    factory = relu_backward_vector if vector else relu_backward_scalar
    run(factory(index_type(y.size)), dy, y, dx, y.size)
