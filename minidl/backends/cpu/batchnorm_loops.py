"""Batch normalization on the CPU: the loops.

An activation is a matrix of rows and channels, and channels are contiguous, so every loop runs over them in vectors.
Rows are summed in chunks of CHUNK in float32, chunks in float64, in a fixed order: the same bits on any number of
threads, and an error that does not grow with the batch.
"""

import numpy as np

from minidl.backends.cpu.compile import compiled, inlined

CHUNK = 128  # rows summed in float32 before float64 takes over
HEAD = 8  # rows that a chunk's shift is the mean of
SHARE = 1 / 16  # of a channel's squares, that a chunk may make up without being summed again


@inlined
def _head_mean(x, row, c):
    """The mean of HEAD elements, which is theirs exactly if they are equal."""
    origin = x[row, c]
    d1, d2, d3 = x[row + 1, c] - origin, x[row + 2, c] - origin, x[row + 3, c] - origin
    d4, d5, d6, d7 = x[row + 4, c] - origin, x[row + 5, c] - origin, x[row + 6, c] - origin, x[row + 7, c] - origin
    return origin + ((d1 + (d2 + d3)) + ((d4 + d5) + (d6 + d7))) * np.float32(1 / HEAD)


@inlined
def _short_mean(x, begin, end, c):
    """The same of a chunk that has fewer rows."""
    origin = x[begin, c]
    rest = np.float32(0)
    for row in range(begin + 1, end):
        rest += x[row, c] - origin
    return origin + rest / np.float32(end - begin)


@compiled
def sum_shifted(first, last, x, shifts, sums, squares):
    """Chunks first to last: a shift near the mean of chunk k, and the sums of x - shift and of its square.

    The shift is the mean of the chunk's first HEAD rows: wherever outliers are, the squares sum to at most CHUNK / HEAD
    times what they would about the mean of the chunk. (About a single element it could be CHUNK times.)
    """
    rows, channels = x.shape
    for k in range(first, last):
        shift, s, q = shifts[k], sums[k], squares[k]
        begin, end = k * CHUNK, min((k + 1) * CHUNK, rows)
        paired = begin + (end - begin) // 4 * 4
        s[:] = np.float32(0)
        q[:] = np.float32(0)
        for c in range(channels):
            near = _head_mean(x, begin, c) if begin + HEAD <= end else _short_mean(x, begin, end, c)
            shift[c] = near if np.isfinite(near) else np.float32(0)
        for row in range(begin, paired, 4):
            for c in range(channels):
                d0 = x[row, c] - shift[c]
                d1 = x[row + 1, c] - shift[c]
                d2 = x[row + 2, c] - shift[c]
                d3 = x[row + 3, c] - shift[c]
                s[c] += (d0 + d1) + (d2 + d3)
                q[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        for row in range(paired, end):
            for c in range(channels):
                d = x[row, c] - shift[c]
                s[c] += d
                q[c] += d * d


@inlined
def _summed_again(x, c, mean, most, shifts, sums, squares):
    """The sum of (x - mean)² of channel c, from the rows of each chunk whose squares add up to more than `most`."""
    rows, moment = len(x), 0.0
    for k in range(len(squares)):
        begin, end = k * CHUNK, min((k + 1) * CHUNK, rows)
        if squares[k] > most:
            for row in range(begin, end):
                moment += (x[row, c] - mean) ** 2
        else:
            distance = shifts[k] - mean
            moment += squares[k] + distance * (2 * sums[k] + (end - begin) * distance)
    return moment


@compiled
def finish_statistics(x, eps, shifts, sums, squares, shift, delta, var, inv_std):
    """The chunks' sums, moved from their shifts to the mean of all, in float64.

    With D = a chunk's shift - mean, over its n rows: sum (x - mean)² = squares + 2 D sums + n D².

    Beside an outlier's square a float32 sum loses the others'. So where a chunk makes up a large share of a channel's
    squares, what it adds is summed again from its rows, in float64: of a channel at most 16 chunks, and a quarter.
    """
    rows, (chunks, channels) = len(x), sums.shape
    mean, moment = np.zeros(channels), np.zeros(channels)
    total, largest = np.zeros(channels, np.float32), np.zeros(channels, np.float32)  # of squares
    for k in range(chunks):
        n = min(CHUNK, rows - k * CHUNK)
        for c in range(channels):
            mean[c] += np.float64(shifts[k, c]) * n + sums[k, c]
            total[c] += squares[k, c]
            largest[c] = squares[k, c] if squares[k, c] > largest[c] else largest[c]
    mean /= rows
    for k in range(chunks):
        n = min(CHUNK, rows - k * CHUNK)
        for c in range(channels):
            distance = shifts[k, c] - mean[c]
            moment[c] += squares[k, c] + distance * (2 * sums[k, c] + n * distance)
    share = max(SHARE, 4 / chunks)
    for c in range(channels):
        if largest[c] > share * total[c]:
            moment[c] = _summed_again(x, c, mean[c], share * total[c], shifts[:, c], sums[:, c], squares[:, c])
        near = np.float32(mean[c])
        shift[c] = near if np.isfinite(near) else np.float32(0)
        delta[c] = mean[c] - shift[c]
        # Rounding could leave a negative number where the variance is tiny; NaN must pass.
        v = moment[c] / rows
        v = 0.0 if v < 0.0 else v
        var[c] = v
        inv_std[c] = 1.0 / np.sqrt(v + eps)


@inlined
def _normalized(x, shift, delta, scale, beta):
    """Forward's value; backward repeats it to see the sign that ReLU saw, so both round alike."""
    return ((x - shift) - delta) * scale + beta


@compiled
def apply(first, last, x, shift, delta, scale, beta, y):
    """Y = (x - mean) * scale + beta."""
    for row in range(first, last):
        for c in range(x.shape[1]):
            y[row, c] = _normalized(x[row, c], shift[c], delta[c], scale[c], beta[c])


@compiled
def apply_relu(first, last, x, shift, delta, scale, beta, y):
    """The same, and max(y, 0)."""
    for row in range(first, last):
        for c in range(x.shape[1]):
            value = _normalized(x[row, c], shift[c], delta[c], scale[c], beta[c])
            y[row, c] = np.float32(0) if value <= np.float32(0) else value  # NaN passes


@compiled
def apply_add_relu(first, last, x, residual, shift, delta, scale, beta, y):
    """The same, of y + residual."""
    for row in range(first, last):
        for c in range(x.shape[1]):
            value = _normalized(x[row, c], shift[c], delta[c], scale[c], beta[c]) + residual[row, c]
            y[row, c] = np.float32(0) if value <= np.float32(0) else value  # NaN passes


@compiled
def sum_gradients(first, last, x, dy, shift, delta, scale, beta, relu, sums, products):
    """Chunks first to last: the sums of g and g * (x - mean), where g is dy, masked by ReLU if there is one."""
    rows, channels = x.shape
    for k in range(first, last):
        s, p = sums[k], products[k]
        s[:] = np.float32(0)
        p[:] = np.float32(0)
        for row in range(k * CHUNK, min((k + 1) * CHUNK, rows)):
            for c in range(channels):
                centred = (x[row, c] - shift[c]) - delta[c]
                g = dy[row, c]
                if relu:
                    g = np.float32(0) if centred * scale[c] + beta[c] <= np.float32(0) else g
                s[c] += g
                p[c] += g * centred


@compiled
def mask_and_sum_gradients(first, last, x, y, dy, shift, delta, dresidual, sums, products):
    """The same with the mask of a ReLU whose output was y: beside a residual, x alone does not tell it."""
    rows, channels = x.shape
    for k in range(first, last):
        s, p = sums[k], products[k]
        s[:] = np.float32(0)
        p[:] = np.float32(0)
        for row in range(k * CHUNK, min((k + 1) * CHUNK, rows)):
            for c in range(channels):
                g = np.float32(0) if y[row, c] <= np.float32(0) else dy[row, c]
                dresidual[row, c] = g
                s[c] += g
                p[c] += g * ((x[row, c] - shift[c]) - delta[c])


@compiled
def finish_gradients(rows, inv_std, sums, products, dgamma, dbeta, mean_g, slope):
    """Dgamma = sum g * x̂, dbeta = sum g; mean_g and slope are what `backward` subtracts."""
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


@compiled
def backward(first, last, x, dy, shift, delta, scale, beta, relu, mean_g, slope, dx):
    """Dx = scale * (g - mean(g) - x̂ * mean(g * x̂)), with x̂ = (x - mean) * inv_std."""
    for row in range(first, last):
        for c in range(x.shape[1]):
            centred = (x[row, c] - shift[c]) - delta[c]
            g = dy[row, c]
            if relu:
                g = np.float32(0) if centred * scale[c] + beta[c] <= np.float32(0) else g
            dx[row, c] = scale[c] * ((g - mean_g[c]) - centred * slope[c])


@compiled
def scale(first, last, g, scale, dx):
    """Dx through fixed statistics: it does not depend on x, be that infinite."""
    for row in range(first, last):
        for c in range(g.shape[1]):
            dx[row, c] = scale[c] * g[row, c]


@compiled
def mask_and_scale(first, last, x, dy, shift, delta, scale, beta, dx):
    """The same behind a ReLU."""
    for row in range(first, last):
        for c in range(x.shape[1]):
            y = _normalized(x[row, c], shift[c], delta[c], scale[c], beta[c])
            dx[row, c] = scale[c] * (np.float32(0) if y <= np.float32(0) else dy[row, c])
