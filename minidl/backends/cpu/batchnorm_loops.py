"""Sums of batch normalization on the CPU: chunk by chunk, and then all chunks.

Rows are summed in chunks of at most CHUNK in float32 (passes.py), chunks in float64, in a fixed order: the same bits on
any number of threads, and an error that does not grow with the batch. `starts` (chunks + 1,) says at which rows chunks
begin and the last one ends. `table` is that of the passes; x, dy, y and g are flat.
"""

import numpy as np

from minidl.backends.cpu.compile import compiled, inlined
from minidl.backends.cpu.passes import SUM_SHIFTED, call_pass

CHUNK = 128  # rows summed in float32 before float64 takes over
HEAD = 8  # rows that a chunk's shift is the mean of
SHARE = 1 / 16  # of a channel's squares, that a chunk may make up without being summed again


@inlined
def _find_shifts(x, begin, rows, shift):
    """The mean of the first HEAD elements, which is theirs exactly if they are equal; 0 where that is not finite.

    Each loop over channels is one of vectors, as it counts from 0 over slices.
    """
    channels = len(shift)
    origin = x[begin : begin + channels]
    count = min(HEAD, rows)
    shift[:] = np.float32(0)
    for row in range(1, count):
        values = x[begin + row * channels : begin + (row + 1) * channels]
        for c in range(channels):
            shift[c] += values[c] - origin[c]
    share = np.float32(1) / np.float32(count)
    for c in range(channels):
        near = origin[c] + shift[c] * share
        shift[c] = near if near - near == np.float32(0) else np.float32(0)


@compiled
def sum_chunks(first, last, table, which, x, dy, y, channels, width, starts, parameters, g, sums):
    """Chunks first to last of `sums` (3, chunks, channels), by pass `which`: its two sums of each chunk.

    Passes over gradients read `parameters` (6, width), and those that mask write `g`. SUM_SHIFTED sums x - shift and
    its square, where the shift, sums[2], is near the mean of the chunk; it reads x alone. The shift is the mean of the
    chunk's first HEAD rows: wherever outliers are, the squares sum to at most CHUNK / HEAD times what they would about
    the mean of the chunk. (About a single element it could be CHUNK times.)
    """
    shift, both = np.empty(width, np.float32), np.empty(2 * width, np.float32)
    given = shift if which == SUM_SHIFTED else parameters
    for k in range(first, last):
        at, count = starts[k] * channels, (starts[k + 1] - starts[k]) * channels
        if which == SUM_SHIFTED:
            _find_shifts(x, at, starts[k + 1] - starts[k], sums[2, k])
            for begin in range(0, width, channels):
                part, near = shift[begin : begin + channels], sums[2, k]
                for c in range(channels):
                    part[c] = near[c]
        call_pass(table[which], count, width, x, at, dy, at, y, at, given, 0, g, at, both, 0)
        _fold(both[:width], sums[0, k])
        _fold(both[width:], sums[1, k])


@inlined
def _fold(many, few):
    """The sums of what was repeated."""
    few[:] = np.float32(0)
    for begin in range(0, len(many), len(few)):
        part = many[begin : begin + len(few)]
        for c in range(len(few)):
            few[c] += part[c]


@inlined
def _summed_again(x, starts, c, mean, most, shifts, sums, squares):
    """The sum of (x - mean)² of channel c, from the rows of each chunk whose squares add up to more than `most`."""
    moment = 0.0
    for k in range(len(squares)):
        begin, end = starts[k], starts[k + 1]
        if squares[k] > most:
            for row in range(begin, end):
                moment += (x[row, c] - mean) ** 2
        else:
            distance = shifts[k] - mean
            moment += squares[k] + distance * (2 * sums[k] + (end - begin) * distance)
    return moment


@compiled
def finish_statistics(x, starts, eps, found, shift, delta, var, inv_std):
    """The chunks' sums, moved from their shifts to the mean of all, in float64.

    With D = a chunk's shift - mean, over its n rows: sum (x - mean)² = squares + 2 D sums + n D².

    Beside an outlier's square a float32 sum loses the others'. So where a chunk makes up a large share of a channel's
    squares, what it adds is summed again from its rows, in float64: of a channel at most 16 chunks, and a quarter.
    """
    sums, squares, shifts = found[0], found[1], found[2]
    rows, (chunks, channels) = len(x), sums.shape
    mean, moment = np.zeros(channels), np.zeros(channels)
    total, largest = np.zeros(channels, np.float32), np.zeros(channels, np.float32)  # of squares
    for k in range(chunks):
        n = starts[k + 1] - starts[k]
        for c in range(channels):
            mean[c] += np.float64(shifts[k, c]) * n + sums[k, c]
            total[c] += squares[k, c]
            largest[c] = squares[k, c] if squares[k, c] > largest[c] else largest[c]
    mean /= rows
    for k in range(chunks):
        n = starts[k + 1] - starts[k]
        for c in range(channels):
            distance = shifts[k, c] - mean[c]
            moment[c] += squares[k, c] + distance * (2 * sums[k, c] + n * distance)
    share = max(SHARE, 4 / chunks)
    for c in range(channels):
        if largest[c] > share * total[c]:
            moment[c] = _summed_again(x, starts, c, mean[c], share * total[c], shifts[:, c], sums[:, c], squares[:, c])
        near = np.float32(mean[c])
        shift[c] = near if np.isfinite(near) else np.float32(0)
        delta[c] = mean[c] - shift[c]
        # Rounding could leave a negative number where the variance is tiny; NaN must pass.
        v = moment[c] / rows
        v = 0.0 if v < 0.0 else v
        var[c] = v
        inv_std[c] = 1.0 / np.sqrt(v + eps)


@compiled
def finish_gradients(rows, inv_std, found, dgamma, dbeta, mean_g, slope):
    """Dgamma = sum g * x̂, dbeta = sum g; mean_g and slope are what `backward` subtracts."""
    sums, products = found[0], found[1]
    for c in range(inv_std.size):
        s = p = 0.0
        for k in range(sums.shape[0]):
            s += sums[k, c]
            p += products[k, c]
        p *= inv_std[c]
        dbeta[c] = s
        dgamma[c] = p
        mean_g[c] = s / rows
        slope[c] = p / rows * inv_std[c]
