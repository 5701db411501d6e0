"""Addition: out = a + b, of equal shapes.

Shapes   a, b, out: equal shapes, any number of axes; on the device float32, C-contiguous, taken as (n,). out may be a
         or b: each element is read before it is written, by the same thread.
Traffic  reads a and b and writes out once.
Edges    A NaN stays in its element.
"""

from typing import Any

import numpy as np
from numba import cuda, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques

Array = NDArray[Any]
BLOCK = 256


@np.errstate(invalid="ignore", over="ignore")
def add_reference(a: Array, b: Array) -> Array:
    """The sum a + b, of equal shapes."""
    return a + b


@kernel(traffic="a, b -> out", registers=16, examples=[(uint32,), (int64,)])
def add_scalar(index: Any) -> Launch:
    """One element a thread."""

    def add(a: Floats, b: Floats, out: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            out[i] = a[i] + b[i]

    return Launch(add, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(8 * n, 4 * n, n))


@kernel(traffic="a, b -> out", registers=24, instructions=("LDG.E.128", "STG.E.128"), examples=[(uint32,), (int64,)])
def add_vector(index: Any) -> Launch:
    """Four elements a thread, in loads and a store of 16 bytes: a quarter of the instructions."""

    def add(a: Floats, b: Floats, out: Floats, n: Int64):
        first = index(4 * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if first + 3 < n:
            a0, a1, a2, a3 = load4(a, first)
            b0, b1, b2, b3 = load4(b, first)
            store4(out, first, a0 + b0, a1 + b1, a2 + b2, a3 + b3)
        else:
            for k in range(3):  # the tail, at most three elements
                if first + k < n:
                    out[first + k] = a[first + k] + b[first + k]

    return Launch(add, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), lambda n: Cost(8 * n, 4 * n, n))


@techniques("scalar", "vector")
def add(run: Runner, a: DeviceArray, b: DeviceArray, out: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless a, b and out have equal shapes.

    The vector technique takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    same_shape("add", a=a, b=b, out=out)
    factory = add_vector if vectors(run, "add", technique, {}, a=a, b=b, out=out) else add_scalar
    run(factory(index_type(a.size)), a, b, out, a.size)
