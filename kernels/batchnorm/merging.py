"""Sets of numbers of a channel, known by their shifted sums, and how two of them become one.

A sum of squares is exact only near what it is taken about, so every partial sum has a shift of its own: a set of n
elements is known by

    shift, sum = sum of (x - shift), square + rest = sum of (x - shift)²

Two sets become one by moving both to a shift near their common mean, with D = old shift - new shift:

    sum' = sum + n D        square' = square + D (2 sum + n D)

which loses nothing that matters, for the sums of both are small there. (T. Chan, G. Golub, R. LeVeque, "Algorithms for
computing the sample variance", 1983, merge means and squares about them; here the mean stays a float32 number and the
remainder a sum, so it is never rounded to the size of the mean.)

An outlier's square swamps the others': beside 1e8 a float32 sum loses ones altogether. So what a sum of squares loses
is kept, as `rest` (D. Knuth, "The Art of Computer Programming" 2, 1997, 4.2.2, theorem B: TwoSum), and what is known of
the variance beyond a float32 goes into inv_std. What a block stores is rounded once.
"""

import math
from typing import Any

from numba import cuda, float32

from kernels.batchnorm.split import BLOCK, Split, largest_power_below, storer
from kernels.device import inlined
from kernels.intrinsics import fma


@inlined
def finite(x):
    """Neither NaN nor infinite."""
    return x - x == float32(0)


@inlined
def two_sum(a, b):
    """The sum, and what its rounding loses of it; of what is not finite, nothing."""
    total = a + b
    of_b = total - a
    lost = (a - (total - of_b)) + (b - of_b)
    return total, lost if finite(lost) else float32(0)


@inlined
def first_shift(a, b, c, d):
    """Of numbers of which four are known, to sum about: near the mean of the middle two, the four if they are equal.

    An outlier among the four moves it nowhere, two move it half way. It is rounded to some sixteenth of the distance
    between the middle two, so that the distance of an outlier from it, which has few bits to spare, needs no rounding.
    """
    low1, high1 = (a, b) if a < b else (b, a)
    low2, high2 = (c, d) if c < d else (d, c)
    low = low2 if low1 < low2 else low1
    high = high1 if high1 < high2 else high2
    below, above = (low, high) if low < high else (high, low)
    coarse = (above - below) * float32(1 << 19)
    near = below + (above - below) * float32(0.5)
    shift = (near + coarse) - coarse
    return shift if finite(shift) else float32(0)


@inlined
def moved(n, shift, total, square, to):
    """The sums of n elements about `shift` as sums about `to`, and what is lost of the second."""
    distance = shift - to
    square, lost = two_sum(square, distance * (total + total + n * distance))
    return total + n * distance, square, lost


@inlined
def united(n1, shift1, sum1, square1, rest1, n2, shift2, sum2, square2, rest2):
    """(n, shift, sum, square, rest) of two sets together; the first has at least one element."""
    n = n1 + n2
    near = shift1 + (sum1 + (sum2 + n2 * (shift2 - shift1))) / n
    shift = near if finite(near) else shift1
    sum1, square1, lost1 = moved(n1, shift1, sum1, square1, shift)
    sum2, square2, lost2 = moved(n2, shift2, sum2, square2, shift)
    square, lost = two_sum(square1, square2)
    return n, shift, sum1 + sum2, square, (rest1 + rest2) + (lost1 + lost2) + lost


@inlined
def merged(n1, shift1, sum1, square1, n2, shift2, sum2, square2):
    """The same of sets without a rest, whose union is rounded."""
    zero = float32(0)
    n, shift, total, square, rest = united(n1, shift1, sum1, square1, zero, n2, shift2, sum2, square2, zero)
    return n, shift, total, square + rest


@inlined
def inverse_root(a, rest):
    """1 / sqrt(a + rest), the rest being small beside a: that of a, and a step of Newton's method."""
    r = float32(1) / math.sqrt(a)
    square = r * r
    off = (fma(-square, a, float32(1)) - fma(r, r, -square) * a) - square * rest  # 1 - r² (a + rest)
    return fma(r, off * float32(0.5), r) if finite(off) else r


def block_merger(width: int, lanes: int, depth: int) -> Any:
    """A device function that merges what the threads of a block hold in shared memory, as a tree down the rows.

    Thread `row` * lanes + lane holds counts[thread] and, of channel j of its group, the others at [j * BLOCK + thread].
    What the whole block found is left with the threads of row 0. rests[...] has what `squares` have lost.
    """
    start = largest_power_below(depth)

    @inlined
    def merge_block(thread, row, counts, shifts, sums, squares, rests):
        stride = start
        while stride > 0:
            cuda.syncthreads()
            other = thread + stride * lanes
            if row < stride and row + stride < depth and counts[other] > float32(0):
                n1, n2 = counts[thread], counts[other]
                for j in range(width):
                    a, b = j * BLOCK + thread, j * BLOCK + other
                    _, shift, total, square, rest = united(
                        n1, shifts[a], sums[a], squares[a], rests[a], n2, shifts[b], sums[b], squares[b], rests[b]
                    )
                    shifts[a] = shift
                    sums[a] = total
                    squares[a] = square
                    rests[a] = rest
                counts[thread] = n1 + n2
            stride //= 2

    return merge_block


def partial_merger(parts: Split, index: Any) -> Any:
    """A device function: what the threads of a block have summed is merged and stored, as `shifted_summer` says."""
    channels, width = parts.channels, parts.width
    store, merge_block = storer(width), block_merger(width, parts.lanes, parts.depth)

    @inlined
    def merge_and_store(partial, place, plane, row, channel, thread, counts, shifts, sums, squares, rests, values):
        merge_block(thread, row, counts, shifts, sums, squares, rests)
        if row == 0 and channel < channels:
            for j in range(width):
                values[j] = shifts[j * BLOCK + thread]
            store(partial, index(place), values)
            for j in range(width):
                values[j] = sums[j * BLOCK + thread]
            store(partial, index(plane + place), values)
            for j in range(width):
                values[j] = squares[j * BLOCK + thread] + rests[j * BLOCK + thread]
            store(partial, index(2 * plane + place), values)

    return merge_and_store


def blocks_walker(lanes: int, depth: int) -> Any:
    """A device function that merges what blocks `first` to `end` have stored of `span` rows each, the last of the rest.

    `depth` rows of `lanes` threads merge every depth-th block of a channel each, and then these as a tree. The thread
    of row 0 then has what they found of its channel in counts, shifts, sums, squares and rests.
    """
    merge_block = block_merger(1, lanes, depth)

    @inlined
    def walk_blocks(
        partial, first, end, blocks, channels, rows, span, thread, row, channel, counts, shifts, sums, squares, rests
    ):
        n1 = k1 = s1 = q1 = r1 = float32(0)
        if row < depth and channel < channels:
            for block in range(first + row, end, depth):
                n2 = float32(min(span, rows - block * span))
                k2 = partial[block * channels + channel]
                s2 = partial[(blocks + block) * channels + channel]
                q2 = partial[(2 * blocks + block) * channels + channel]
                if n1 == float32(0):
                    n1, k1, s1, q1 = n2, k2, s2, q2
                else:
                    n1, k1, s1, q1, r1 = united(n1, k1, s1, q1, r1, n2, k2, s2, q2, float32(0))
        counts[thread] = n1
        shifts[thread] = k1
        sums[thread] = s1
        squares[thread] = q1
        rests[thread] = r1
        merge_block(thread, row, counts, shifts, sums, squares, rests)

    return walk_blocks


def blocks_merger(lanes: int, depth: int) -> Any:
    """The same of all blocks: row 0 then has the shift in shifts; delta, var, inv_std in sums, squares and rests."""
    walk_blocks = blocks_walker(lanes, depth)

    @inlined
    def merge_blocks(
        partial, blocks, channels, rows, span, eps, thread, row, channel, counts, shifts, sums, squares, rests
    ):
        walk_blocks(
            partial, 0, blocks, blocks, channels, rows, span, thread, row, channel,
            counts, shifts, sums, squares, rests,
        )  # fmt: skip
        if row == 0 and channel < channels:
            n = float32(rows)
            delta = sums[thread] / n
            # The shift is the mean but for its rounding, so what is taken off is small.
            moment = squares[thread] + (rests[thread] - sums[thread] * delta)
            rest = (squares[thread] - moment) + (rests[thread] - sums[thread] * delta)
            variance = moment / n
            variance = float32(0) if variance < float32(0) else variance  # NaN passes
            rest = (fma(-variance, n, moment) + rest) / n  # of the variance
            near, lost = two_sum(variance, eps)
            sums[thread] = delta
            squares[thread] = variance
            rests[thread] = inverse_root(near, lost + rest)

    return merge_blocks
