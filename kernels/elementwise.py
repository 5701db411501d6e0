"""Addition: out = a + b, of equal shapes.

Shapes   a, b, out: equal shapes, any number of axes; on the device of one storage (kernels/storage.py), C-contiguous,
         taken as (n,). out may be a or b: each element is read before it is written, by the same thread.
Traffic  reads a and b and writes out once.
Edges    A NaN stays in its element.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage

Array = NDArray[Any]
BLOCK = 256
EXAMPLES = [(uint32, FLOAT32), (int64, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)]


@np.errstate(invalid="ignore", over="ignore")
def add_reference(a: Array, b: Array) -> Array:
    """The sum a + b, of equal shapes."""
    return a + b


@kernel(traffic="a, b -> out", registers=16, examples=EXAMPLES)
def add_scalar(index: Any, storage: Storage) -> Launch:
    """One element a thread."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes

    def add(a: stored, b: stored, out: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            store(out, i, load(a, i) + load(b, i))

    return Launch(add, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(2 * size * n, size * n, n))


@kernel(traffic="a, b -> out", registers=32, instructions=("LDG.E.128", "STG.E.128"), examples=EXAMPLES)
def add_vector(index: Any, storage: Storage) -> Launch:
    """As many elements a thread as 16 bytes hold, in loads and a store: a quarter of the instructions, or less."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    tail = wide - 1

    def add(a: stored, b: stored, out: stored, n: Int64):
        first = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if first + tail < n:
            sums = cuda.local.array(wide, float32)
            others = cuda.local.array(wide, float32)
            load_wide(a, first, sums)
            load_wide(b, first, others)
            for k in range(wide):
                sums[k] += others[k]
            store_wide(out, first, sums)
        else:
            for k in range(tail):  # at most so many elements
                if first + k < n:
                    store(out, first + k, load(a, first + k) + load(b, first + k))

    return Launch(add, BLOCK, lambda n: blocks_for(n, wide * BLOCK), lambda n: Cost(2 * size * n, size * n, n))


@techniques("scalar", "vector")
def add(run: Runner, a: DeviceArray, b: DeviceArray, out: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless a, b and out have equal shapes, TypeError unless one storage.

    The vector technique takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    same_shape("add", a=a, b=b, out=out)
    storage = common_storage("add", a=a, b=b, out=out)
    factory = add_vector if vectors(run, "add", technique, {}, storage.wide, a=a, b=b, out=out) else add_scalar
    run(factory(index_type(a.size), storage), a, b, out, a.size)
