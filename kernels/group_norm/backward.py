"""Group normalization backward. The definition is in reference.py.

With g = gamma * dy and centred = (x - shift) - delta, of each sample's groups of m elements:

    mean_g = sum(g) / m         slope = sum(g * centred) * inv_std² / m
    dx     = inv_std * ((g - mean_g) - centred * slope)
    dbeta  = sum(dy)            dgamma = sum(dy * centred * inv_std)        over samples and rows

By rows, the sums of each piece and channel serve both lines, and dx is a launch of its own. By groups, one launch has
both sums and dx; where a thread's part of its group fits in registers it reads that once. gamma and beta take the sums
of gradient_sums.py besides.

Shapes   x, dy, dx (n, ..., c) float32, C-contiguous, taken as (n, rows, c); statistics (n, groups); all others (c,).
Traffic  x and dy twice, dx once; by groups, with gamma, a third time where a thread's part does not fit in registers.
Edges    A NaN or an infinity poisons its own group, and of dgamma its channels. No samples: dgamma = dbeta = 0.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.apply import mean_and_scale
from kernels.batchnorm.split import AHEAD, BLOCK, ENOUGH, Split, loader, storer
from kernels.columns import sum_columns
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.group_norm.apply import walk
from kernels.group_norm.backward_of_groups import (
    group_norm_backward_of_groups_scalar,
    group_norm_backward_of_groups_vector,
)
from kernels.group_norm.gradient_sums import (
    group_norm_finish_gradients,
    group_norm_sum_gradients_scalar,
    group_norm_sum_gradients_vector,
)
from kernels.group_norm.layout import (
    View,
    across_samples,
    kept,
    piece_of,
    reader,
    require_statistics,
    threads_of,
    view,
    walks_across,
    width_of,
    within_samples,
)
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, kernel, techniques
from kernels.storage import require_float32


def _backward(channels: int, groups: int, rows: int, scaled: bool, index: Any, width: int) -> Launch:
    """Of dx alone, from the sums. A thread walks down the rows of its `width` channels; `rows` as in forward."""
    parts, size = Split(channels, width), channels // groups
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, store, piece = loader(width), storer(width), piece_of(across)
    read, places, loads = reader(size, width), kept(size, width), AHEAD * width
    turn, held = (1, AHEAD) if rows else (0, places)  # as in forward
    apart = int(places > 1)

    def backward(
        x: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, mean_g: Floats,
        slope: Floats, dx: Floats,
        sections: Int64, section: Int64, per: Int64, span: Int64,  # noqa: ARG001 - sections is for the grid
    ):  # fmt: skip
        values = cuda.local.array(loads, float32)
        gradients = cuda.local.array(loads, float32)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(held, float32)
        rest = cuda.local.array(held, float32)
        inverse = cuda.local.array(held, float32)
        mean = cuda.local.array(held, float32)
        steep = cuda.local.array(held, float32)
        factor = cuda.local.array(width, float32)
        part, sample, first, last = piece(section, per, span)
        row = cuda.threadIdx.x // lanes
        channel = (part * lanes + cuda.threadIdx.x % lanes) * width
        if row < depth and channel < channels:
            for j in range(width):
                factor[j] = float32(1)
            if scaled:
                load(gamma, channel, factor, 0)
            if rows == 0:
                base = sample * groups
                read(shift, base, channel, near, 0)
                read(delta, base, channel, rest, 0)
                read(inv_std, base, channel, inverse, 0)
                read(mean_g, base, channel, mean, 0)
                read(slope, base, channel, steep, 0)
            at, end = index(first + row), index(last)
            while at < end:
                for i in range(AHEAD):
                    if at + i * depth < end:
                        load(x, index((at + i * depth) * channels + channel), values, i * width)
                        load(dy, index((at + i * depth) * channels + channel), gradients, i * width)
                        if rows > 0:
                            own = index(at + i * depth) // rows * groups
                            read(shift, own, channel, near, i * turn)
                            read(delta, own, channel, rest, i * turn)
                            read(inv_std, own, channel, inverse, i * turn)
                            read(mean_g, own, channel, mean, i * turn)
                            read(slope, own, channel, steep, i * turn)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        for j in range(width):
                            a = i * turn + j * apart
                            centred = (values[i * width + j] - near[a]) - rest[a]
                            g = factor[j] * gradients[i * width + j]
                            result[j] = inverse[a] * ((g - mean[a]) - centred * steep[a])
                        store(dx, index((at + i * depth) * channels + channel), result)
                at = index(at + AHEAD * depth)

    return Launch(
        backward,
        BLOCK,
        lambda sections, per: sections * per * across,
        lambda sections, section: Cost(
            8 * sections * section * channels + 4 * channels,
            4 * sections * section * channels,
            7 * sections * section * channels,
        ),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, mean_g, slope -> dx",
    examples=[(18, 6, 0, True, uint32), (3, 3, 9, False, uint32), (513, 1, 0, True, int64)],
)
def group_norm_backward_scalar(channels: int, groups: int, rows: int, scaled: bool, index: Any) -> Launch:
    """The gradient dx, from sums over each group. One channel a thread."""
    return _backward(channels, groups, rows, scaled, index, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, mean_g, slope -> dx",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=96,  # eight loads of four floats are under way
    examples=[
        (64, 32, 0, True, uint32),
        (64, 64, 0, False, uint32),
        (64, 8, 9, True, uint32),
        (512, 1, 0, True, int64),
    ],
)
def group_norm_backward_vector(channels: int, groups: int, rows: int, scaled: bool, index: Any) -> Launch:
    """The same with four channels a thread, moved as 16 bytes. x, dy, gamma and dx aligned to 16."""
    return _backward(channels, groups, rows, scaled, index, 4)


@techniques("scalar", "vector")
def group_norm_backward(
    run: Runner,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    groups: int,
    gamma: Array | None,
    dx: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    *,
    technique: str | None = None,
) -> None:
    """The gradient dx of x (n, ..., c) through its statistics, and dgamma and dbeta where they are wanted.

    Some launches on `run`: one or three for dx; where dgamma or dbeta is wanted, by groups one more, and the sum of a
    matrix's columns for each. gamma, dgamma and dbeta are (c,), or None. The vector technique takes arrays that start
    at multiples of 16 bytes, with channels in multiples of 4, in each group too where samples have few rows. Nothing
    here changes from step to step but the arrays.

    Raises:
        ShapeError: dy and dx are not of x's shape, groups does not divide the channels, or another array has the wrong
            shape.
        TechniqueError: "vector" is asked for, and cannot take the arrays.
    """
    operation = "group_norm_backward"
    seen = view(operation, x, groups, gamma=gamma, dgamma=dgamma, dbeta=dbeta)
    require_statistics(operation, seen, statistics)
    same_shape(operation, x=x, dy=dy, dx=dx)
    require_float32(operation, dy=dy, dx=dx)
    moved = {"x": x, "dy": dy, "gamma": gamma, "dx": dx}
    width = width_of(run, operation, technique, seen, seen.by_groups or walks_across(seen), statistics, **moved)
    sums = None
    if not seen.by_groups:
        sums = _sums(run, x, dy, statistics, seen, width)
        mean_g, slope = (run.empty((seen.n, seen.groups)) for _ in range(2))
        finish = group_norm_finish_gradients(seen.channels, seen.groups, gamma is not None)
        given = sums, statistics.inv_std, statistics.inv_std if gamma is None else gamma, mean_g, slope
        run(finish, *given, seen.n * seen.groups, seen.rows, sums.shape[1] // max(seen.n, 1))
        _dx(run, x, dy, statistics, seen, gamma, (mean_g, slope), dx, width)
    else:
        _dx_of_groups(run, x, dy, statistics, seen, gamma, dx, width)
        if dgamma is not None or dbeta is not None:
            sums = _sums(run, x, dy, statistics, seen, width)
    for result, number in ((dbeta, 0), (dgamma, 1)):
        if result is not None and sums is not None:
            sum_columns(run, sums[number], result)


def _sums(run: Runner, x: Array, dy: Array, statistics: BatchStatistics, seen: View, width: int) -> Array:
    """(2, pieces, c); by rows, a sample's pieces are side by side."""
    parts = Split(seen.channels, width)
    apart = across_samples if seen.by_groups else within_samples
    pieces = apart(seen, parts, ENOUGH, max(seen.n * seen.rows, 1))
    sums = run.empty((2, pieces.blocks, seen.channels))
    factory = group_norm_sum_gradients_vector if width == 4 else group_norm_sum_gradients_scalar
    rows = max(seen.rows, 1) if seen.by_groups else 0
    chosen = factory(seen.channels, seen.groups, rows, index_type(x.size))
    run(chosen, x, dy, *mean_and_scale(statistics), sums, *pieces)
    return sums


def _dx(
    run: Runner,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    seen: View,
    gamma: Array | None,
    subtracted: tuple[Array, Array],
    dx: Array,
    width: int,
) -> None:
    rows, pieces = walk(seen, width)
    factory = group_norm_backward_vector if width == 4 else group_norm_backward_scalar
    chosen = factory(seen.channels, seen.groups, rows, gamma is not None, index_type(x.size))
    factor = statistics.inv_std if gamma is None else gamma  # not read then
    run(chosen, x, dy, *mean_and_scale(statistics), factor, *subtracted, dx, *pieces)


def _dx_of_groups(
    run: Runner,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    seen: View,
    gamma: Array | None,
    dx: Array,
    width: int,
) -> None:
    threads = threads_of(seen.rows * seen.size, width)
    factory = group_norm_backward_of_groups_vector if width == 4 else group_norm_backward_of_groups_scalar
    options = seen.channels, seen.groups, threads, seen.rows == 1, gamma is not None
    factor = statistics.inv_std if gamma is None else gamma  # not read then
    chosen = factory(*options, index_type(x.size))
    run(chosen, x, dy, *mean_and_scale(statistics), factor, dx, seen.n * seen.groups, seen.rows)
