"""Dropout: y = x / (1 - p) where kept, else 0; dx = dy / (1 - p) at the same elements.

The mask is a function of (seed, stream, call, index) alone (kernels/random.py), so it is never stored: backward is the
same operation on dy.

Shapes   x, y: equal shapes, any number of axes; on the device float32, C-contiguous, taken as (n,). y may be x.
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
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import (
    Cost,
    Float,
    Floats,
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

Array = NDArray[Any]
BLOCK = 256
EXAMPLES = [(uint32,), (int64,)]

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
def dropout_scalar(index: Any) -> Launch:
    """One element a thread: it draws a block of four words and uses the one of its lane."""

    def dropout(
        x: Floats,
        call: UInt32s,
        y: Floats,
        n: Int64,
        threshold: UInt32,
        factor: Float,
        stream: UInt32,
        seed_low: UInt32,
        seed_high: UInt32,
    ):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            block, lane = i // 4, uint32(i % 4)
            a, b, c, d = _philox(block & 0xFFFFFFFF, block >> 32, call[0], stream, seed_low, seed_high)
            lower, upper = (a if lane == 0 else b), (c if lane == 2 else d)
            y[i] = kept(lower if lane < 2 else upper, threshold, x[i], factor)

    return Launch(dropout, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(4 * n, 4 * n, n))


@kernel(
    traffic="x, call -> y",
    registers=40,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=EXAMPLES,
)
def dropout_vector(index: Any) -> Launch:
    """Four elements a thread: one block of words serves all of them, one load and one store of 16 bytes move them."""

    def dropout(
        x: Floats,
        call: UInt32s,
        y: Floats,
        n: Int64,
        threshold: UInt32,
        factor: Float,
        stream: UInt32,
        seed_low: UInt32,
        seed_high: UInt32,
    ):
        block = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        first = index(4 * block)
        if first < n:
            a, b, c, d = _philox(block & 0xFFFFFFFF, block >> 32, call[0], stream, seed_low, seed_high)
            if first + 3 < n:
                x0, x1, x2, x3 = load4(x, first)
                y0, y1 = kept(a, threshold, x0, factor), kept(b, threshold, x1, factor)
                y2, y3 = kept(c, threshold, x2, factor), kept(d, threshold, x3, factor)
                store4(y, first, y0, y1, y2, y3)
            else:  # the tail, at most three elements
                y[first] = kept(a, threshold, x[first], factor)
                if first + 1 < n:
                    y[first + 1] = kept(b, threshold, x[first + 1], factor)
                if first + 2 < n:
                    y[first + 2] = kept(c, threshold, x[first + 2], factor)

    return Launch(dropout, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), lambda n: Cost(4 * n, 4 * n, n))


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
        TechniqueError: "vector" is asked for, and cannot take the arrays.
        ValueError: p is not in [0, 1].
    """
    same_shape("dropout", x=x, y=y)
    require_shape("dropout", "call", call, ())
    threshold, factor = keep_threshold(p), 0.0 if p == 1 else 1 / (1 - p)
    factory = dropout_vector if vectors(run, "dropout", technique, {}, x=x, y=y) else dropout_scalar
    numbers = threshold, factor, stream, *seed_words(seed)
    run(factory(index_type(x.size)), x, call, y, x.size, *numbers)
