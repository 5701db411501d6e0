"""Error budgets: how far a float32 result may be from its float64 reference, and whether it is.

A check divides the error of every element by a bound that is derived for that element; a ratio above 1 fails. Bounds
are put together from what this file offers:

    one operation      relative error at most U                                   (round to nearest)
    k of them in turn  at most k U, and min(k, LAMBDA sqrt(k)) U but for a chance of 3e-8      `rounding`
    a sum of terms     that, times the sum of the terms' absolute values: their conditioning   `summation`, `products`
    underflow          each product is off by TINY / 2 or less, however small it is
    on tensor cores    8 more products lose at most 14 U of the sum of the absolute values       `chained`

The square root holds because rounding errors, taken as independent and of mean zero, do not all push one way: N.
Higham, T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019, theorem 2.4,
with failure probability 2 exp(-LAMBDA² / 2). The worst case k U is attained by no data that a network meets, and for
the long sums of a convolution it would hide a missing row.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

U = 2.0**-24  # unit roundoff of float32: the largest relative error of one operation
TINY = 2.0**-149  # the smallest positive float32
LAMBDA = 6.0
DEPTH = 256  # a sum over rows goes in two stages; no float32 accumulator takes more terms than this in a row


def rounding(steps: int) -> float:
    """The relative error of a value that was rounded `steps` times."""
    return min(steps, LAMBDA * math.sqrt(steps)) * U


def summation(terms: int) -> float:
    """The error of a sum over the rows of a batch, relative to the sum of the absolute values.

    A single term is not rounded at all. Beyond DEPTH terms the partial sums are added in a second stage, pairwise or in
    float64, which adds next to nothing: so the error does not grow with the batch.
    """
    return rounding(min(max(terms - 1, 0), DEPTH))


def merging(terms: int) -> float:
    """The error of a sum over the rows of a batch whose partial sums, of up to DEPTH terms, are exact.

    What is left is the second stage: pairwise, no more than log2 of their number of roundings one above the other. One
    float32 accumulator over all partial sums would round as often as there are any.
    """
    return math.ceil(math.log2(max(terms, 1))) * U


def products(absolute: Array, terms: int) -> Array:
    """The error of a sum of `terms` products in one float32 accumulator.

    `absolute`, of the result's shape, is the same sum over the absolute values. A term meets its own product and up to
    `terms` - 1 additions.
    """
    return rounding(terms) * absolute + terms * TINY * (absolute > 0)


CHAIN = 8192  # products that a tensor core adds up in one chain, at most (kernels/matmul/tensor_tiles.py)
CUT = 14  # roundoffs that a tensor core may lose of 8 products and what they are added to


def chained(absolute: Array, terms: int, largest: float) -> Array:
    """The error of a sum of `terms` products on tensor cores, of operands that are TF32 already.

    The product m16n8k8 adds 8 terms to a sum. On Hopper all 9 are cut off 25 bits below the largest exponent among
    them, which loses less than 9 * 2^-25 of the largest, and their sum is cut to float32: 2^-23 of it, 6.5 U together.
    Ampere takes two steps of 4 terms, cut off 24 bits below: twice 5 * 2^-24 + 2^-23, which are 14 U. As everything is
    cut off and nothing rounded up, no sum exceeds that of the absolute values; and as all of it goes one way, errors
    add up as they are, without a square root. At most CHAIN products are in a chain: then sums are added in float32,
    no more than 64 roundings one above the other, which in a shorter chain (256 products or more of each, so 32 steps)
    cost less than what ending it saves. A zero and a denormal count with the exponent of 2^-126, so besides, each step
    cuts off 10 terms of up to 2^-25 * 2^-126 * `largest`, and what is left below TINY.

    Args:
        absolute: The same sum over the absolute values.
        terms: Products.
        largest: The largest absolute value of an operand.

    Source: as of kernels/emulator/tensor.py.
    """
    steps = math.ceil(min(terms, CHAIN) / 8)
    more = 64 if terms > CHAIN else 0
    underflow = 2 * math.ceil(terms / 8) * (10 * 2.0**-24 * 2.0**-126 * max(largest, 1.0) + TINY)
    return (CUT * steps + more) * U * absolute + underflow * (absolute > 0)


@dataclass(frozen=True)
class Comparison:
    """The element with the largest ratio."""

    error: float
    bound: float
    ratio: float  # 0 where all elements are equal, inf where no bound excuses the difference
    index: tuple[int, ...]
    got: float
    expected: float

    @property
    def passed(self) -> bool:
        """Whether every element is within its bound."""
        return self.ratio <= 1


@np.errstate(all="ignore")
def compare(got: Any, expected: Any, bound: Any) -> Comparison:
    """The worst of |got - expected| / bound over all elements.

    Equal elements have ratio 0: NaN equals NaN, an infinity one of its own sign, -0 equals 0. Where only one of the two
    is finite, or the bound is 0, or is itself no finite number, a difference has ratio inf. Integers and booleans must
    be equal. Empty arrays pass with ratio 0.

    Args:
        got: The result under test, of any shape.
        expected: The reference, of the same shape.
        bound: The largest error allowed; a number, or an array that broadcasts to the shape.

    Raises:
        ValueError: The shapes differ, or a bound is negative.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise ValueError(f"compare: the result has shape {got.shape}, the reference {expected.shape}")
    if got.size == 0:
        return Comparison(0.0, 0.0, 0.0, (), math.nan, math.nan)
    bound = np.broadcast_to(np.asarray(bound, np.float64), got.shape)
    if (bound < 0).any():
        raise ValueError(f"compare: a bound is negative: {bound.min()}")
    equal = got == expected
    if "f" in got.dtype.kind + expected.dtype.kind:
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        equal |= np.isnan(got) & np.isnan(expected)
        comparable = np.isfinite(got) & np.isfinite(expected) & np.isfinite(bound) & (bound > 0)
    else:
        comparable = np.zeros(got.shape, bool)
    error = np.where(equal, 0.0, np.abs(got.astype(np.float64) - expected.astype(np.float64)))
    error = np.where(np.isnan(error), np.inf, error)
    ratio = np.where(equal, 0.0, np.where(comparable, error / bound, np.inf))
    index = tuple(int(i) for i in np.unravel_index(ratio.argmax(), ratio.shape))
    worst, allowed, share, answer, right = (float(array[index]) for array in (error, bound, ratio, got, expected))
    return Comparison(worst, allowed, share, index, answer, right)


# What outputs are filled with before an operation runs. As floats, bfloat16 among them, these bits are NaNs, which no
# arithmetic makes from the NaNs of NumPy; as integers they are numbers far outside of any index or count.
_POISON = {1: 0xA5, 2: 0x7FDA, 4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}


def poison(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array full of a pattern that no operation writes, to find out which elements it does not write."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)  # has no such pattern
    return np.full(shape, _POISON[dtype.itemsize], f"u{dtype.itemsize}").view(dtype)


def unwritten(array: Array) -> NDArray[np.bool_]:
    """Where `array` still holds the pattern of `poison`; nowhere in an array of booleans."""
    if array.dtype.kind == "b":
        return np.zeros(array.shape, bool)
    size = array.dtype.itemsize
    return np.ascontiguousarray(array).view(f"u{size}").reshape(array.shape) == np.array(_POISON[size], f"u{size}")
