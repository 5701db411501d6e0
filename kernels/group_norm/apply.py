"""Group normalization forward: y from x and its statistics. The definition is in reference.py.

    y = ((x - shift) - delta) * (inv_std * gamma) + beta

Rows are walked down as layout.py says. With many rows in a sample, blocks keep to one and know its statistics; else a
thread reads those of each row with the row, and its channels' gamma and beta once.

Shapes   x, y (n, ..., c) float32, C-contiguous, taken as (n * rows, c); statistics (n, groups); gamma, beta (c,).
Traffic  x once, y once.
"""

from typing import Any, NamedTuple

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.apply import BLOCKS, MOST, mean_and_scale, normalized
from kernels.batchnorm.split import AHEAD, BLOCK, Split, loader, storer
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.group_norm.layout import (
    Pieces,
    View,
    across_samples,
    kept,
    piece_of,
    reader,
    require_statistics,
    view,
    walks_across,
    width_of,
    within_samples,
)
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, kernel, techniques
from kernels.storage import require_float32


def _apply(channels: int, groups: int, rows: int, scaled: bool, offset: bool, index: Any, width: int) -> Launch:
    """A thread walks down the rows of its `width` channels. `rows` is 0 where its block stays in one sample.

    Otherwise its channels must be of one group. There is gamma if `scaled`, and beta if `offset`.
    """
    parts, size = Split(channels, width), channels // groups
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, store, piece = loader(width), storer(width), piece_of(across)
    read, places, loads = reader(size, width), kept(size, width), AHEAD * width
    turn, held = (1, AHEAD) if rows else (0, places)  # from a row's numbers to the next's, and all that are kept
    apart = int(places > 1)  # from a channel's to the next's

    def apply(
        x: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats, y: Floats,
        sections: Int64, section: Int64, per: Int64, span: Int64,  # noqa: ARG001 - sections is for the grid
    ):  # fmt: skip
        values = cuda.local.array(loads, float32)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(held, float32)
        rest = cuda.local.array(held, float32)
        inverse = cuda.local.array(held, float32)
        factor = cuda.local.array(width, float32)
        added = cuda.local.array(width, float32)
        part, sample, first, last = piece(section, per, span)
        row = cuda.threadIdx.x // lanes
        channel = (part * lanes + cuda.threadIdx.x % lanes) * width
        if row < depth and channel < channels:
            for j in range(width):
                factor[j] = float32(1)
                added[j] = float32(0)
            if scaled:
                load(gamma, channel, factor, 0)
            if offset:
                load(beta, channel, added, 0)
            if rows == 0:
                read(shift, sample * groups, channel, near, 0)
                read(delta, sample * groups, channel, rest, 0)
                read(inv_std, sample * groups, channel, inverse, 0)
            at, end = index(first + row), index(last)
            while at < end:
                for i in range(AHEAD):
                    if at + i * depth < end:
                        load(x, index((at + i * depth) * channels + channel), values, i * width)
                        if rows > 0:
                            base = index(at + i * depth) // rows * groups
                            read(shift, base, channel, near, i * turn)
                            read(delta, base, channel, rest, i * turn)
                            read(inv_std, base, channel, inverse, i * turn)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        for j in range(width):
                            a = i * turn + j * apart
                            scale = inverse[a] * factor[j]
                            result[j] = normalized(values[i * width + j], near[a], rest[a], scale, added[j])
                        store(y, index((at + i * depth) * channels + channel), result)
                at = index(at + AHEAD * depth)

    return Launch(
        apply,
        BLOCK,
        lambda sections, per: sections * per * across,
        lambda sections, section: Cost(
            4 * sections * section * channels + 8 * channels,
            4 * sections * section * channels,
            4 * sections * section * channels,
        ),
    )


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta -> y",
    examples=[
        (17, 1, 1, True, True, uint32),
        (18, 6, 0, True, False, uint32),
        (3, 3, 4, False, False, uint32),
        (513, 1, 0, True, True, int64),
    ],
)
def group_norm_apply_scalar(channels: int, groups: int, rows: int, scaled: bool, offset: bool, index: Any) -> Launch:
    """One channel a thread."""
    return _apply(channels, groups, rows, scaled, offset, index, 1)


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta -> y",
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[
        (64, 1, 1, True, True, uint32),
        (64, 32, 0, True, False, uint32),
        (64, 64, 0, False, False, uint32),
        (512, 1, 0, True, True, int64),
    ],
)
def group_norm_apply_vector(channels: int, groups: int, rows: int, scaled: bool, offset: bool, index: Any) -> Launch:
    """Four channels a thread, moved as 16 bytes: a quarter of the instructions. x, gamma, beta and y aligned to 16."""
    return _apply(channels, groups, rows, scaled, offset, index, 4)


@techniques("scalar", "vector")
def group_norm_apply(
    run: Runner,
    x: Array,
    statistics: BatchStatistics,
    groups: int,
    gamma: Array | None,
    beta: Array | None,
    y: Array,
    *,
    technique: str | None = None,
) -> None:
    """Normalize x (n, ..., c) into y by the statistics (n, groups) of its samples' groups. One launch on `run`.

    gamma and beta (c,), or no beta, or neither. The vector technique takes arrays that start at multiples of 16 bytes,
    with channels in multiples of 4, in each group too where samples have few rows.

    Raises:
        ShapeError: y is not of x's shape, groups does not divide the channels, or another array has the wrong shape.
        TechniqueError: "vector" is asked for, and cannot take the arrays.
        TypeError: beta is given without gamma.
    """
    operation = "group_norm_apply"
    seen = view(operation, x, groups, gamma=gamma, beta=beta)
    require_statistics(operation, seen, statistics)
    same_shape(operation, x=x, y=y)
    require_float32(operation, y=y)
    if gamma is None and beta is not None:
        raise TypeError(f"{operation}: beta is given without gamma; give both, or gamma alone, or neither")
    known = mean_and_scale(statistics)
    parameters = tuple(statistics.inv_std if array is None else array for array in (gamma, beta))  # not read then
    moved = {"x": x, "gamma": gamma, "beta": beta, "y": y}
    width = width_of(run, operation, technique, seen, walks_across(seen), statistics, **moved)
    rows, pieces = walk(seen, width)
    factory = group_norm_apply_vector if width == 4 else group_norm_apply_scalar
    options = seen.channels, seen.groups, rows, gamma is not None, beta is not None
    run(factory(*options, index_type(x.size)), x, *known, *parameters, y, *pieces)


class Walk(NamedTuple):
    """How blocks walk down all rows."""

    rows: int  # what the kernel closes over
    pieces: Pieces


def walk(seen: View, width: int) -> Walk:
    """Within samples where those have enough rows; else across them, each thread's channels being of one group."""
    parts = Split(seen.channels, width)
    if seen.rows < parts.depth:
        return Walk(max(seen.rows, 1), across_samples(seen, parts, BLOCKS, MOST))
    return Walk(0, within_samples(seen, parts, BLOCKS, MOST))
