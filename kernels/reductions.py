"""Sums and maxima that kernels share, over the terms of a thread and the lanes of a warp.

A sum is carried as two numbers, the sum and what its additions lost, so that its error does not grow with the number of
terms. Where the first is infinite the second is NaN, and left out.
"""

import numpy as np
from numba import cuda

from kernels.device import inlined

INFINITY = np.float32(np.inf)


@inlined
def add(total, lost, value):
    """(total, lost) + value, by D. Knuth's exact addition (TAOCP 2, section 4.2.2, theorem B)."""
    after = total + value
    taken = after - total
    return after, lost + ((total - (after - taken)) + (value - taken))


@inlined
def rounded(total, lost):
    """The sum as one number."""
    return total + lost if abs(total) < INFINITY else total


@inlined
def warp_sum(total, lost):
    """Over the lanes of a warp, the same bits in each: both lanes of a pair add the same two numbers."""
    for k in range(5):
        other = cuda.shfl_xor_sync(0xFFFFFFFF, total, 16 >> k)
        lost += cuda.shfl_xor_sync(0xFFFFFFFF, lost, 16 >> k)
        total, lost = add(total, lost, other)
    return total, lost


@inlined
def warp_max(value):
    """Over the lanes of a warp; a NaN is passed over."""
    for k in range(5):
        other = cuda.shfl_xor_sync(0xFFFFFFFF, value, 16 >> k)
        value = other if other > value else value
    return value
