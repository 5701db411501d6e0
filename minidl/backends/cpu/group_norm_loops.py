"""Group normalization on the CPU: the loops.

x is n samples of (rows, channels). With several rows the channels are summed as in batch normalization, row upon row in
vectors, and then those of a group together in float64. Where a sample is one row (layer normalization), LANES elements
side by side are the vector. No float32 accumulator takes more than CHUNK terms.
"""

import numpy as np

from minidl.backends.cpu.batchnorm_loops import CHUNK, add_chunks
from minidl.backends.cpu.compile import compiled, inlined
from minidl.backends.cpu.passes import SUM_SHIFTED

LANES = 16
SPAN = 64 * LANES  # elements of a row that are summed in float32 before float64 takes over
HEAD = 2 * LANES  # of them, those whose mean they are shifted by


@inlined
def _finish(mean, moment, count, eps):
    """(shift, delta, var, inv_std) from a mean and a sum of squares about it, in float64."""
    near = np.float32(mean)
    shift = near if np.isfinite(near) else np.float32(0)
    v = moment / count
    v = 0.0 if v < 0.0 else v  # a rounding; NaN must pass
    return shift, mean - shift, v, 1.0 / np.sqrt(v + eps)


@compiled
def sum_pieces(first, last, table, channels, width, x, starts, sums):
    """Pieces first to last, each a chunk of a sample's rows: `add_chunks` of x (n, rows * c) into (n, 3, chunks, c)."""
    chunks, scratch = sums.shape[2], np.empty((3, width // channels, channels), np.float32)
    for piece in range(first, last):
        sample, k = piece // chunks, piece % chunks
        row = x[sample]
        add_chunks(
            *(k, k + 1, table, SUM_SHIFTED, row, row, row, channels, width, starts, row, row, sums[sample], scratch),
        )


@compiled
def finish_statistics(first, last, rows, eps, found, shift, delta, var, inv_std):
    """Samples first to last: the sums of a group's channels and chunks, moved from their shifts to the group's mean."""
    chunks, channels = found.shape[2:]
    groups = shift.shape[1]
    size = channels // groups
    for sample in range(first, last):
        sums, squares, shifts = found[sample, 0], found[sample, 1], found[sample, 2]
        for group in range(groups):
            begin, end = group * size, (group + 1) * size
            mean = moment = 0.0
            for k in range(chunks):
                n = min(CHUNK, rows - k * CHUNK)
                for c in range(begin, end):
                    mean += np.float64(shifts[k, c]) * n + sums[k, c]
            mean /= rows * size
            for k in range(chunks):
                n = min(CHUNK, rows - k * CHUNK)
                for c in range(begin, end):
                    distance = shifts[k, c] - mean
                    moment += squares[k, c] + distance * (2 * sums[k, c] + n * distance)
            near, rest, variance, inverse = _finish(mean, moment, rows * size, eps)
            shift[sample, group] = near
            delta[sample, group] = rest
            var[sample, group] = variance
            inv_std[sample, group] = inverse


@inlined
def _total(lanes):
    """The sum of LANES numbers, which are used up."""
    for lane in range(8):
        lanes[lane] += lanes[lane + 8]
    for lane in range(4):
        lanes[lane] += lanes[lane + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


@inlined
def _head_mean(x, lanes):
    """The mean of the first HEAD elements, or of as many as there are; theirs exactly if they are equal."""
    origin = x[0]
    if x.size >= HEAD:
        for lane in range(LANES):
            lanes[lane] = (x[lane] - origin) + (x[lane + LANES] - origin)
        return origin + _total(lanes) * np.float32(1 / HEAD)
    rest = np.float32(0)
    for k in range(x.size):
        rest += x[k] - origin
    return origin + rest / np.float32(x.size)


@compiled
def _sum_span(x, lanes_sum, lanes_square):
    """(shift, sum, square) of x, at most SPAN elements: a shift near their mean, and sums of x - shift and its square.

    Four rows of lanes at once; what is left over, row by row and then by itself.
    """
    near = _head_mean(x, lanes_sum)
    shift = near if np.isfinite(near) else np.float32(0)
    lanes_sum[:] = np.float32(0)
    lanes_square[:] = np.float32(0)
    quads = x.size // (4 * LANES)
    for k in range(quads):
        part = x[4 * LANES * k : 4 * LANES * (k + 1)]
        for lane in range(LANES):
            d0 = part[lane] - shift
            d1 = part[lane + LANES] - shift
            d2 = part[lane + 2 * LANES] - shift
            d3 = part[lane + 3 * LANES] - shift
            lanes_sum[lane] += (d0 + d1) + (d2 + d3)
            lanes_square[lane] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    left = x[4 * LANES * quads :]
    for k in range(left.size // LANES):
        part = left[LANES * k : LANES * (k + 1)]
        for lane in range(LANES):
            d = part[lane] - shift
            lanes_sum[lane] += d
            lanes_square[lane] += d * d
    left = left[left.size // LANES * LANES :]
    for lane in range(left.size):
        d = left[lane] - shift
        lanes_sum[lane] += d
        lanes_square[lane] += d * d
    return shift, _total(lanes_sum), _total(lanes_square)


@compiled
def statistics_of_rows(first, last, x, eps, shift, delta, var, inv_std):
    """Groups first to last of x (n * groups, size), each a run of neighbours."""
    size = x.shape[1]
    spans = -(-size // SPAN)
    lanes_sum, lanes_square = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    shifts, sums, squares = np.empty(spans), np.empty(spans), np.empty(spans)
    for row in range(first, last):
        mean = moment = 0.0
        for k in range(spans):
            part = x[row, k * SPAN : min((k + 1) * SPAN, size)]
            shifts[k], sums[k], squares[k] = _sum_span(part, lanes_sum, lanes_square)
            mean += shifts[k] * part.size + sums[k]
        mean /= size
        for k in range(spans):
            n = min(SPAN, size - k * SPAN)
            distance = shifts[k] - mean
            moment += squares[k] + distance * (2 * sums[k] + n * distance)
        shift[row], delta[row], var[row], inv_std[row] = _finish(mean, moment, size, eps)


@compiled
def apply(first, last, x, rows, shift, delta, inv_std, gamma, beta, y):
    """Y = (x - mean) * (inv_std * gamma) + beta, rows first to last of x (n * rows, c)."""
    channels, groups = x.shape[1], shift.shape[1]
    size = channels // groups
    near, rest, scale = np.empty((3, channels), np.float32)
    known = -1
    for row in range(first, last):
        sample = row // rows
        if sample != known:
            known = sample
            for c in range(channels):
                near[c] = shift[sample, c // size]
                rest[c] = delta[sample, c // size]
                scale[c] = inv_std[sample, c // size] * gamma[c]
        for c in range(channels):
            y[row, c] = ((x[row, c] - near[c]) - rest[c]) * scale[c] + beta[c]


@compiled
def apply_to_rows(first, last, x, shift, delta, inv_std, gamma, beta, y):
    """The same where each row is a sample."""
    groups = shift.shape[1]
    size = x.shape[1] // groups
    for row in range(first, last):
        for group in range(groups):
            near, rest, inverse = shift[row, group], delta[row, group], inv_std[row, group]
            begin, end = group * size, (group + 1) * size  # loops from 0 on become vectors
            part, result, scale, offset = x[row, begin:end], y[row, begin:end], gamma[begin:end], beta[begin:end]
            for c in range(size):
                result[c] = ((part[c] - near) - rest) * (inverse * scale[c]) + offset[c]


@compiled
def sum_gradients(first, last, x, dy, shift, delta, sums, products):
    """Pieces first to last, as in `sum_pieces`: the sums of dy and dy * (x - mean) for each channel."""
    rows, channels = x.shape[1:]
    chunks, size = sums.shape[1], channels // shift.shape[1]
    near, rest = np.empty((2, channels), np.float32)
    for piece in range(first, last):
        sample, k = piece // chunks, piece % chunks
        s, p = sums[sample, k], products[sample, k]
        for c in range(channels):
            near[c] = shift[sample, c // size]
            rest[c] = delta[sample, c // size]
            s[c] = np.float32(0)
            p[c] = np.float32(0)
        for row in range(k * CHUNK, min((k + 1) * CHUNK, rows)):
            for c in range(channels):
                g = dy[sample, row, c]
                s[c] += g
                p[c] += g * ((x[sample, row, c] - near[c]) - rest[c])


@compiled
def finish_gradients(first, last, rows, inv_std, gamma, sums, products, mean_g, slope):
    """Samples first to last: what dx subtracts in each group, mean(g) and slope * (x - mean), where g = gamma * dy."""
    chunks, channels = sums.shape[1:]
    groups = inv_std.shape[1]
    size = channels // groups
    for sample in range(first, last):
        for group in range(groups):
            s = p = 0.0
            for k in range(chunks):
                for c in range(group * size, (group + 1) * size):
                    s += np.float64(gamma[c]) * sums[sample, k, c]
                    p += np.float64(gamma[c]) * products[sample, k, c]
            inverse = np.float64(inv_std[sample, group])
            mean_g[sample, group] = s / (rows * size)
            slope[sample, group] = p * inverse / (rows * size) * inverse


@compiled
def finish_affine(inv_std, sums, products, dgamma, dbeta):
    """Dgamma and dbeta from the sums of all samples and chunks: of dy, and of dy * (x - mean)."""
    samples, chunks, channels = sums.shape
    size = channels // inv_std.shape[1]
    s, p, inverse = np.zeros((3, channels))
    for sample in range(samples):
        for c in range(channels):
            inverse[c] = inv_std[sample, c // size]
        for k in range(chunks):
            for c in range(channels):
                s[c] += sums[sample, k, c]
                p[c] += products[sample, k, c] * inverse[c]
    dbeta[:] = s
    dgamma[:] = p


@compiled
def backward(first, last, x, dy, rows, shift, delta, inv_std, gamma, mean_g, slope, dx):
    """Dx = inv_std * (g - mean(g) - (x - mean) * slope), rows first to last of x (n * rows, c)."""
    channels, groups = x.shape[1], shift.shape[1]
    size = channels // groups
    near, rest, inverse, mean, steep = np.empty((5, channels), np.float32)
    known = -1
    for row in range(first, last):
        sample = row // rows
        if sample != known:
            known = sample
            for c in range(channels):
                near[c] = shift[sample, c // size]
                rest[c] = delta[sample, c // size]
                inverse[c] = inv_std[sample, c // size]
                mean[c] = mean_g[sample, c // size]
                steep[c] = slope[sample, c // size]
        for c in range(channels):
            centred = (x[row, c] - near[c]) - rest[c]
            dx[row, c] = inverse[c] * ((gamma[c] * dy[row, c] - mean[c]) - centred * steep[c])


@compiled
def _sum_span_gradients(x, dy, gamma, near, rest, lanes_sum, lanes_product):
    """Sums of g = gamma * dy and of g * (x - mean), of at most SPAN elements."""
    lanes_sum[:] = np.float32(0)
    lanes_product[:] = np.float32(0)
    whole = x.size // LANES
    for k in range(whole):
        begin, end = LANES * k, LANES * (k + 1)
        part, gradient, scale = x[begin:end], dy[begin:end], gamma[begin:end]
        for lane in range(LANES):
            g = scale[lane] * gradient[lane]
            lanes_sum[lane] += g
            lanes_product[lane] += g * ((part[lane] - near) - rest)
    part, gradient, scale = x[LANES * whole :], dy[LANES * whole :], gamma[LANES * whole :]
    for lane in range(part.size):
        g = scale[lane] * gradient[lane]
        lanes_sum[lane] += g
        lanes_product[lane] += g * ((part[lane] - near) - rest)
    return _total(lanes_sum), _total(lanes_product)


@compiled
def backward_of_rows(first, last, x, dy, chunk, shift, delta, inv_std, gamma, dx, sums, products):
    """Chunks first to last of `chunk` rows, each row a sample: dx, and the chunk's sums of dy and dy * xhat."""
    rows, channels = x.shape
    groups = shift.shape[1]
    size = channels // groups
    lanes_sum, lanes_product = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for k in range(first, last):
        sums[k, :] = np.float32(0)
        products[k, :] = np.float32(0)
        for row in range(k * chunk, min((k + 1) * chunk, rows)):
            for group in range(groups):
                near, rest, inverse = shift[row, group], delta[row, group], inv_std[row, group]
                begin, end = group * size, (group + 1) * size
                part, gradient, scale = x[row, begin:end], dy[row, begin:end], gamma[begin:end]
                total = product = 0.0
                for at in range(0, size, SPAN):
                    stop = min(at + SPAN, size)
                    given = part[at:stop], gradient[at:stop], scale[at:stop]
                    s, p = _sum_span_gradients(given[0], given[1], given[2], near, rest, lanes_sum, lanes_product)
                    total += s
                    product += p
                mean = np.float32(total / size)
                steep = np.float32(product * inverse / size * inverse)
                result, s_of, p_of = dx[row, begin:end], sums[k, begin:end], products[k, begin:end]
                for c in range(size):
                    centred = (part[c] - near) - rest
                    result[c] = inverse * ((scale[c] * gradient[c] - mean) - centred * steep)
                    s_of[c] += gradient[c]
                    p_of[c] += gradient[c] * (centred * inverse)
