"""Sums of batch normalization on the CPU: chunk by chunk, and then all chunks.

Rows are summed in chunks of at most CHUNK in float32 (passes.py), chunks in float64, in a fixed order: the same bits on
any number of threads, and an error that does not grow with the batch. `starts` (chunks + 1,) says at which rows chunks
begin and the last one ends. `table` is that of the passes; x, dy, y and g are flat.
"""

import numpy as np

from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.passes import SUM_SHIFTED, call_pass

CHUNK = 128  # rows summed in float32 before float64 takes over
HEAD = 8  # rows that a chunk's shift is the mean of
SHARE = 1 / 16  # of a channel's squares, that a chunk may make up without being summed again


def sum_chunks(first, last, table, which, x, dy, y, channels, width, starts, parameters, g, sums):
    """`add_chunks` for Python, which needs no scratch."""
    scratch = np.empty((3, width // max(1, channels), channels), np.float32)
    add_chunks(first, last, table, which, x, dy, y, channels, width, starts, parameters, g, sums, scratch)


@compiled
def add_chunks(first, last, table, which, x, dy, y, channels, width, starts, parameters, g, sums, scratch):
    """Chunks first to last of `sums` (3, chunks, channels), by pass `which`: its two sums of each chunk.

    Passes over gradients read `parameters` (6, width), and those that mask write `g`. SUM_SHIFTED sums x - shift and
    its square, where the shift, sums[2], is near the mean of the chunk; it reads x alone. The shift is the mean of the
    chunk's first HEAD rows: wherever outliers are, the squares sum to at most CHUNK / HEAD times what they would about
    the mean of the chunk. (About a single element it could be CHUNK times.) It is theirs exactly if they are equal, and
    0 where it is not finite.

    `scratch` (3, width / channels, channels) takes the sums of what was repeated, and the shift, repeated.
    """
    repeated = scratch.shape[1]
    for k in range(first, last):
        at, rows = starts[k] * channels, starts[k + 1] - starts[k]
        if which == SUM_SHIFTED:
            head = rows if rows < HEAD else HEAD  # these about the chunk's first row, the only parameters that it reads
            call_pass(table[which], head * channels, channels, x, at, x, at, x, at, x, at, g, 0, scratch, 0)
            origin, share = x[at : at + channels], np.float32(1) / np.float32(head)
            for c in range(channels):  # in vectors, as it counts from 0 over a slice
                near = origin[c] + scratch[0, 0, c] * share
                sums[2, k, c] = near if near - near == np.float32(0) else np.float32(0)
            for r in range(repeated):
                for c in range(channels):
                    scratch[2, r, c] = sums[2, k, c]
            call_pass(
                *(table[which], rows * channels, width, x, at, x, at, x, at, scratch, 2 * width, g, 0, scratch, 0),
            )
        else:
            call_pass(
                *(table[which], rows * channels, width, x, at, dy, at, y, at, parameters, 0, g, at, scratch, 0),
            )
        for one in range(2):
            for c in range(channels):
                sums[one, k, c] = scratch[one, 0, c]
            for r in range(1, repeated):
                for c in range(channels):
                    sums[one, k, c] += scratch[one, r, c]


def finish_statistics(x, starts, eps, found, shift, delta, var, inv_std):
    """The chunks' sums, moved from their shifts to the mean of all, in float64.

    With D = a chunk's shift - mean, over its n rows: sum (x - mean)² = squares + 2 D sums + n D².

    Beside an outlier's square a float32 sum loses the others'. So where a chunk makes up a large share of a channel's
    squares, what it adds is summed again from its rows, in float64: of a channel at most 16 chunks, and a quarter.
    """
    share, channels = max(SHARE, 4 / max(1, found.shape[1])), found.shape[2]
    moments, squares = np.zeros((2, channels)), np.zeros((2, channels), np.float32)
    _finish_statistics(x, starts, eps, share, found, *moments, *squares, shift, delta, var, inv_std)


@compiled
def _finish_statistics(x, starts, eps, share, found, mean, moment, total, largest, shift, delta, var, inv_std):
    """`mean`, `moment`, and of squares `total` and the `largest` chunk's, are zeros to begin with."""
    sums, squares, shifts = found[0], found[1], found[2]
    rows, (chunks, channels) = len(x), sums.shape
    for k in range(chunks):
        n = starts[k + 1] - starts[k]
        for c in range(channels):
            mean[c] += np.float64(shifts[k, c]) * n + sums[k, c]
            total[c] += squares[k, c]
            largest[c] = squares[k, c] if squares[k, c] > largest[c] else largest[c]
    for c in range(channels):
        mean[c] /= rows
    for k in range(chunks):
        n = starts[k + 1] - starts[k]
        for c in range(channels):
            distance = shifts[k, c] - mean[c]
            moment[c] += squares[k, c] + distance * (2 * sums[k, c] + n * distance)
    for c in range(channels):
        middle, v, most = mean[c], moment[c], share * total[c]
        if largest[c] > most:
            v = 0.0
            for k in range(chunks):
                begin, end = starts[k], starts[k + 1]
                if squares[k, c] > most:
                    for row in range(begin, end):
                        distance = x[row, c] - middle
                        v += distance * distance
                else:
                    distance = shifts[k, c] - middle
                    v += squares[k, c] + distance * (2 * sums[k, c] + (end - begin) * distance)
        near = np.float32(middle)
        shift[c] = near if near - near == np.float32(0) else np.float32(0)
        delta[c] = middle - shift[c]
        v /= rows
        v = 0.0 if v < 0.0 else v  # a rounding, where the variance is tiny; NaN must pass
        var[c] = v
        inv_std[c] = 1.0 / np.sqrt(v + eps)


@compiled
def finish_gradients(rows, inv_std, found, dgamma, dbeta, mean_g, slope):
    """Dgamma = sum g * x̂, dbeta = sum g; mean_g and slope are what `backward` subtracts."""
    for c in range(inv_std.size):
        s = p = 0.0
        for k in range(found.shape[1]):
            s += found[0, k, c]
            p += found[1, k, c]
        p *= inv_std[c]
        dbeta[c] = s
        dgamma[c] = p
        mean_g[c] = s / rows
        slope[c] = p / rows * inv_std[c]
