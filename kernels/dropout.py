"""Dropout: y = x / (1 - p) where kept, else 0; dx = dy / (1 - p) at the same elements.

The mask is a function of (seed, stream, call, index) alone (kernels/random.py), so it is never stored: backward is the
same operation on dy.

Shapes   x, y: equal shapes, any number of axes; on the device of one storage (kernels/storage.py), C-contiguous, taken
         as (n,). y may be x.
Traffic  reads x and writes y once. The call lies in device memory.
Edges    Where dropped, a NaN or an infinity becomes 0; p = 1 gives zeros.
Source   scaled in training ("inverted"): N. Srivastava et al., "Dropout", JMLR 15, 2014, section 10.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type, inlined
from kernels.errors import require_shape, same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import (
    Cost,
    Float,
    Int64,
    Launch,
    Runner,
    UInt32,
    UInt32s,
    blocks_for,
    kernel,
    techniques,
)
from kernels.random import dropout_keep_reference, keep_threshold, philox4x32, seed_words
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage

Array = NDArray[Any]
BLOCK = 256
EXAMPLES = [(uint32, FLOAT32), (int64, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)]
LANES = 4  # elements that share a block of random words

_philox = inlined(philox4x32)


@np.errstate(over="ignore")
def dropout_reference(x: Array, p: float, seed: int, stream: int, call: int) -> Array:
    """What is kept of x times 1 / (1 - p), else 0; the factor is rounded once, from float64 to x's dtype.

    Raises:
        ValueError: p is not in [0, 1].
    """
    keep_threshold(p)
    if p == 1:
        return np.zeros_like(x)
    factor = x.dtype.type(1 / (1 - p))
    return np.where(dropout_keep_reference(x.shape, p, seed, stream, call), x * factor, 0)


@inlined
def kept(word, threshold, value, factor):
    """The scaled value where the word's upper 24 bits reach the threshold, else 0."""
    return value * factor if (word >> 8) >= threshold else float32(0)


@kernel(traffic="x, call -> y", registers=40, examples=EXAMPLES)
def dropout_scalar(index: Any, storage: Storage) -> Launch:
    """One element a thread: it draws a block of four words and uses the one of its lane."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes

    def dropout(
        x: stored,
        call: UInt32s,
        y: stored,
        n: Int64,
        threshold: UInt32,
        factor: Float,
        stream: UInt32,
        seed_low: UInt32,
        seed_high: UInt32,
    ):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            block, lane = i // LANES, uint32(i % LANES)
            a, b, c, d = _philox(block & 0xFFFFFFFF, block >> 32, call[0], stream, seed_low, seed_high)
            lower, upper = (a if lane == 0 else b), (c if lane == 2 else d)
            store(y, i, kept(lower if lane < 2 else upper, threshold, load(x, i), factor))

    return Launch(dropout, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(size * n, size * n, n))


@kernel(
    traffic="x, call -> y",
    registers=40,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=EXAMPLES,
)
def dropout_vector(index: Any, storage: Storage) -> Launch:
    """As many elements a thread as 16 bytes hold, in a load and a store: a block of words serves four of them."""
    stored: Any = storage.pointer
    load, store, size = storage.load, storage.store, storage.bytes
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    blocks, tail = wide // LANES, wide - 1

    def dropout(
        x: stored,
        call: UInt32s,
        y: stored,
        n: Int64,
        threshold: UInt32,
        factor: Float,
        stream: UInt32,
        seed_low: UInt32,
        seed_high: UInt32,
    ):
        block = index(blocks * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        first = index(LANES * block)
        if first < n:
            drawn = call[0]
            words = cuda.local.array(wide, uint32)
            for k in range(blocks):
                number = block + k
                a, b, c, d = _philox(number & 0xFFFFFFFF, number >> 32, drawn, stream, seed_low, seed_high)
                words[LANES * k] = a
                words[LANES * k + 1] = b
                words[LANES * k + 2] = c
                words[LANES * k + 3] = d
            if first + tail < n:
                values = cuda.local.array(wide, float32)
                load_wide(x, first, values)
                for k in range(wide):
                    values[k] = kept(words[k], threshold, values[k], factor)
                store_wide(y, first, values)
            else:
                for k in range(tail):  # at most so many elements
                    if first + k < n:
                        store(y, first + k, kept(words[k], threshold, load(x, first + k), factor))

    return Launch(dropout, BLOCK, lambda n: blocks_for(n, wide * BLOCK), lambda n: Cost(size * n, size * n, n))


@techniques("scalar", "vector")
def dropout(
    run: Runner,
    x: DeviceArray,
    y: DeviceArray,
    p: float,
    seed: int,
    stream: int,
    call: DeviceArray,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`.

    Args:
        run: The device.
        x: Values, of any shape.
        y: The result, of the same shape; may be x.
        p: The probability to be dropped.
        seed: Of the generator; of a larger number its lower 64 bits count.
        stream: The layer's, in [0, 2^32).
        call: The draw's number, () uint32 in device memory: a captured step reads there what was written last.
        technique: "vector" takes arrays that start at multiples of 16 bytes.

    Raises:
        ShapeError: x and y have different shapes, or call is not ().
        TypeError: x and y are stored differently.
        TechniqueError: "vector" is asked for, and cannot take the arrays.
        ValueError: p is not in [0, 1].
    """
    same_shape("dropout", x=x, y=y)
    require_shape("dropout", "call", call, ())
    threshold, factor = keep_threshold(p), 0.0 if p == 1 else 1 / (1 - p)
    storage = common_storage("dropout", x=x, y=y)
    factory = dropout_vector if vectors(run, "dropout", technique, {}, storage.wide, x=x, y=y) else dropout_scalar
    numbers = threshold, factor, stream, *seed_words(seed)
    run(factory(index_type(x.size), storage), x, call, y, x.size, *numbers)
