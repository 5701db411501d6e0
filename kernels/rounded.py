"""Float32 numbers rounded to another storage: y = x, rounded to nearest even.

Of weights, before tensor cores multiply them with images in 16 bits; and of a result that was summed in slices
(kernels/slices.py).

Shapes   x: float32; y: of x's size, in any storage (kernels/storage.py).
Traffic  reads x once and writes y once.
Edges    NaN stays NaN; what is too large for the storage becomes infinite.
"""

from typing import Any

from numba import cuda, int64, uint32

from kernels.device import index_type
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, storage_of

BLOCK = 256


@kernel(traffic="x -> y", registers=16, examples=[(uint32, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)])
def round_to_scalar(index: Any, storage: Storage) -> Launch:
    """One element a thread."""
    stored: Any = storage.pointer
    store, size = storage.store, storage.bytes

    def round_to(x: Floats, y: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            store(y, i, x[i])

    return Launch(round_to, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(4 * n, size * n))


def round_to(run: Runner, x: Array, y: Array) -> None:
    """Launch y = x (float32, of the same size), rounded to y's storage, on `run`."""
    run(round_to_scalar(index_type(x.size), storage_of(y)), x, y, x.size)


def in_storage(run: Runner, w: Array, storage: Storage) -> Array:
    """The weights as tensor cores take them beside images of this storage: themselves, or rounded in scratch memory."""
    if storage is FLOAT32:
        return w
    rounded = run.empty(tuple(w.shape), storage.dtype)
    round_to(run, w, rounded)
    return rounded
