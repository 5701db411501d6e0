"""Each row of a matrix times a number of its own: y = x * f, as where the losses of single rows have gradients f.

Shapes   x, y (n, c); factors (n,); on the device float32, C-contiguous.
Traffic  reads x and factors once (a factor as often as its row is long, but then from a cache) and writes y once.
Edges    IEEE products: 0 times NaN or an infinity is NaN.
"""

from typing import Any

import numpy as np
from numba import cuda, int64, uint32
from numpy.typing import NDArray

from kernels.device import index_type
from kernels.errors import ShapeError, require_shape, same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel

Array = NDArray[Any]
BLOCK = 256


@np.errstate(invalid="ignore", over="ignore")
def scale_rows_reference(x: Array, factors: Array) -> Array:
    """The rows, scaled."""
    return x * factors[:, None]


@kernel(traffic="x, factors -> y", registers=24, examples=[(uint32, 10), (int64, 1000)])
def scale_rows_elements(index: Any, columns: int) -> Launch:
    """One element a thread."""

    def scale_rows(x: Floats, factors: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            y[i] = x[i] * factors[index(i // columns)]

    def cost(n: int) -> Cost:
        return Cost(4 * n + 4 * (n // columns), 4 * n, n)

    return Launch(scale_rows, BLOCK, lambda n: blocks_for(n, BLOCK), cost)


def scale_rows(run: Runner, x: DeviceArray, factors: DeviceArray, y: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless x and y are (n, c) and `factors` (n,)."""
    if len(x.shape) != 2:
        raise ShapeError(f"scale_rows: x has shape {tuple(x.shape)}, expected (n, c)")
    same_shape("scale_rows", x=x, y=y)
    require_shape("scale_rows", "factors", factors, tuple(x.shape[:1]))
    if x.size:
        run(scale_rows_elements(index_type(x.size), x.shape[1]), x, factors, y, x.size)
