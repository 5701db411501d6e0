"""Softmax and its logarithm over the last axis, with their gradients.

    softmax      y = exp(x - max x) / sum(exp(x - max x))        dx = y * (dy - sum(dy * y))
    log_softmax  y = (x - max x) - log(sum(exp(x - max x)))      dx = dy - exp(y) * sum(dy)

Shapes   x, y, dy, dx: equal shapes (..., c), taken as rows of c; on the device float32, C-contiguous. Backward takes
         forward's output y, not its input.
Traffic  reads x, or dy and y, once and writes y or dx once; of rows of more than HELD elements, the later looks find
         them in cache.
Edges    Logits of any finite size are safe. At -inf softmax is 0 and log_softmax -inf. A row with NaN or +inf, or of
         nothing but -inf, is NaN throughout. Backward is the formula above, by which an infinity or a NaN in a
         row of dy or y spreads over the row's dx (all PyTorch's rules).
Source   J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.device import WARP, index_type
from kernels.errors import ShapeError, same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel
from kernels.reductions import INFINITY, add, rounded, warp_max, warp_sum

Array = NDArray[Any]
BLOCK = 256
ROWS = BLOCK // WARP  # of a block
HELD = 512  # elements of a row that a warp keeps in registers, at most: 16 a lane
EXAMPLES = [
    (uint32, 10, False),
    (uint32, 10, True),
    (uint32, HELD, False),
    (uint32, HELD, True),
    (int64, 1000, False),
    (int64, 1000, True),
]


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def softmax_forward_reference(x: Array) -> Array:
    """Forward's output y."""
    exponentials = np.exp(_shifted(x))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@np.errstate(invalid="ignore", over="ignore")
def softmax_backward_reference(dy: Array, y: Array) -> Array:
    """dx, from forward's output y."""
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def log_softmax_forward_reference(x: Array) -> Array:
    """Forward's output y."""
    shifted = _shifted(x)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@np.errstate(invalid="ignore", over="ignore")
def log_softmax_backward_reference(dy: Array, y: Array) -> Array:
    """dx, from forward's output y."""
    return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)


def _shifted(x: Array) -> Array:
    """X less the largest of its row: so no exponential overflows, and one of them is 1."""
    return x - x.max(axis=-1, keepdims=True, initial=-np.inf)


# A warp has a row to itself: its lanes read neighbouring elements, and it adds up without shared memory or a barrier.
# `log` says which of the two functions it is.


@kernel(traffic="x -> y", registers=48, examples=EXAMPLES)
def softmax_forward_rows(index: Any, columns: int, log: bool) -> Launch:
    """Three looks at a row: its largest element, the sum, the result."""
    steps, held = blocks_for(columns, WARP), columns <= HELD
    size = steps if held else 1

    def softmax_forward(x: Floats, y: Floats, n: Int64):
        row = index(cuda.blockIdx.x * ROWS + cuda.threadIdx.x // WARP)
        lane = cuda.threadIdx.x % WARP
        values = cuda.local.array(size, float32)
        if row < n:
            start = index(row * columns)
            largest = -INFINITY
            for step in range(steps):
                k = lane + step * WARP
                if k < columns:
                    value = x[index(start + k)]
                    largest = value if value > largest else largest  # a NaN is passed over, and shows in the sum
                    if held:
                        values[step] = value
            largest = warp_max(largest)

            total, lost = float32(0), float32(0)
            for step in range(steps):
                k = lane + step * WARP
                if k < columns:
                    value = values[step] if held else x[index(start + k)]
                    total, lost = add(total, lost, math.exp(value - largest))
            total, lost = warp_sum(total, lost)

            by = math.log(total + lost) if log else total + lost
            for step in range(steps):
                k = lane + step * WARP
                if k < columns:
                    i = index(start + k)
                    value = values[step] if held else x[i]
                    shifted = value - largest  # the logarithm is never added to the largest: it would be lost there
                    y[i] = shifted - by if log else math.exp(shifted) / by

    def cost(n: int) -> Cost:
        return Cost(4 * n * columns, 4 * n * columns, 6 * n * columns)

    return Launch(softmax_forward, BLOCK, lambda n: blocks_for(n, ROWS), cost)


@kernel(traffic="dy, y -> dx", registers=80, examples=EXAMPLES)
def softmax_backward_rows(index: Any, columns: int, log: bool) -> Launch:
    """Two looks at a row: the sum, the result."""
    steps, held = blocks_for(columns, WARP), columns <= HELD
    size = steps if held else 1

    def softmax_backward(dy: Floats, y: Floats, dx: Floats, n: Int64):
        row = index(cuda.blockIdx.x * ROWS + cuda.threadIdx.x // WARP)
        lane = cuda.threadIdx.x % WARP
        gradients = cuda.local.array(size, float32)
        outputs = cuda.local.array(size, float32)
        if row < n:
            start = index(row * columns)
            total, lost = float32(0), float32(0)
            for step in range(steps):
                k = lane + step * WARP
                if k < columns:
                    i = index(start + k)
                    gradient = dy[i]
                    if held:
                        gradients[step] = gradient
                        outputs[step] = y[i]
                    if not log:
                        gradient *= outputs[step] if held else y[i]
                    total, lost = add(total, lost, gradient)
            total, lost = warp_sum(total, lost)
            common = rounded(total, lost)
            for step in range(steps):
                k = lane + step * WARP
                if k < columns:
                    i = index(start + k)
                    gradient = gradients[step] if held else dy[i]
                    output = outputs[step] if held else y[i]
                    dx[i] = gradient - math.exp(output) * common if log else output * (gradient - common)

    def cost(n: int) -> Cost:
        return Cost(8 * n * columns, 4 * n * columns, 4 * n * columns)

    return Launch(softmax_backward, BLOCK, lambda n: blocks_for(n, ROWS), cost)


def softmax_forward(run: Runner, x: DeviceArray, y: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless x and y have equal shapes."""
    _forward("softmax_forward", run, x, y, log=False)


def softmax_backward(run: Runner, dy: DeviceArray, y: DeviceArray, dx: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless dy, y and dx have equal shapes."""
    _backward("softmax_backward", run, dy, y, dx, log=False)


def log_softmax_forward(run: Runner, x: DeviceArray, y: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless x and y have equal shapes."""
    _forward("log_softmax_forward", run, x, y, log=True)


def log_softmax_backward(run: Runner, dy: DeviceArray, y: DeviceArray, dx: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless dy, y and dx have equal shapes."""
    _backward("log_softmax_backward", run, dy, y, dx, log=True)


def _forward(operation: str, run: Runner, x: DeviceArray, y: DeviceArray, *, log: bool) -> None:
    same_shape(operation, x=x, y=y)
    columns = _columns(operation, "x", x)
    if x.size:
        run(softmax_forward_rows(index_type(x.size), columns, log), x, y, x.size // columns)


def _backward(operation: str, run: Runner, dy: DeviceArray, y: DeviceArray, dx: DeviceArray, *, log: bool) -> None:
    same_shape(operation, dy=dy, y=y, dx=dx)
    columns = _columns(operation, "dy", dy)
    if y.size:
        run(softmax_backward_rows(index_type(y.size), columns, log), dy, y, dx, y.size // columns)


def _columns(operation: str, name: str, array: DeviceArray) -> int:
    if not array.shape:
        raise ShapeError(f"{operation}: {name} has shape (), expected (..., c)")
    return int(array.shape[-1])
