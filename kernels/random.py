"""Random numbers that are a function of their place: Philox4x32-10, a counter-based generator.

A block of four 32-bit words is a bijection of a 128-bit counter under a 64-bit key, ten rounds of

    (c0, c1, c2, c3) -> (hi(M1 * c2) ^ c1 ^ k0,  lo(M1 * c2),  hi(M0 * c0) ^ c3 ^ k1,  lo(M0 * c0))
    (k0, k1)         -> (k0 + W0,  k1 + W1)

so any thread computes any element without a state, and the same element always has the same number.

Element i of a draw takes lane i % 4 of the block with

    counter = (i // 4 low word, i // 4 high word, call, stream)       key = (seed low word, seed high word)

`stream` tells apart the users of one seed (layers), `call` the draws of one user (steps). The uniform number of an
element is the upper 24 bits of its word, times 2^-24: in [0, 1), exact in float32.

Source   J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants and
         known answers as in Random123.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # golden ratio, sqrt(3) - 1
_WORD = np.uint64(0xFFFFFFFF)
_BITS = np.uint64(32)


def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """The four uint32 words of one block; counter and key words in [0, 2^32).

    Scalars or NumPy arrays of equal shape; it compiles unchanged under Numba, for CPU and GPU. Every operand's width is
    written out, because Numba widens the sum or product of two uint32 to 64 bits and NumPy lets it overflow: products
    and key sums are formed in 64 bits and cut to 32.
    """
    c0, c1, c2, c3 = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)
    k0, k1 = np.uint32(k0), np.uint32(k1)
    for _ in range(10):
        product0 = _M0 * np.uint64(c0)
        product1 = _M1 * np.uint64(c2)
        c0 = np.uint32(np.uint32(product1 >> _BITS) ^ c1 ^ k0)
        c1 = np.uint32(product1 & _WORD)
        c2 = np.uint32(np.uint32(product0 >> _BITS) ^ c3 ^ k1)
        c3 = np.uint32(product0 & _WORD)
        k0 = np.uint32((np.uint64(k0) + _W0) & _WORD)
        k1 = np.uint32((np.uint64(k1) + _W1) & _WORD)
    return c0, c1, c2, c3


def seed_words(seed: int) -> tuple[int, int]:
    """The key of a seed: its low and high 32-bit words. Of a larger seed the lower 64 bits count."""
    return seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF


def keep_threshold(p: float) -> int:
    """The integer t such that "uniform >= p" is "word >> 8 >= t": the form for kernels, since it rounds nothing.

    Raises:
        ValueError: p is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p = {p} is not a probability; give a number from 0 to 1")
    return math.ceil(p * 2**24)


def random_words_reference(size: int, seed: int, stream: int, call: int) -> NDArray[np.uint32]:
    """(size,) uint32: the word of each element."""
    block = np.arange((size + 3) // 4, dtype=np.uint64)
    words = philox4x32(block & _WORD, block >> _BITS, call, stream, *seed_words(seed))
    return np.stack(words, axis=-1).reshape(-1)[:size]


def uniform_reference(shape: int | tuple[int, ...], seed: int, stream: int, call: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), multiples of 2^-24, element i of the flattened shape from word i."""
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    upper = random_words_reference(size, seed, stream, call) >> 8
    return (upper.astype(np.float64) * 2.0**-24).reshape(shape)


def dropout_keep_reference(
    shape: int | tuple[int, ...], p: float, seed: int, stream: int, call: int
) -> NDArray[np.bool_]:
    """Which elements dropout keeps, each with probability 1 - p: those whose uniform number is at least p."""
    return uniform_reference(shape, seed, stream, call) >= p
