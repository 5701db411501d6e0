"""Batch normalization forward: y from x and its statistics. The definition is in reference.py.

    y = ((x - shift) - delta) * (inv_std * gamma) + beta            one fused multiply-add after two differences
    then max(y, 0) for a ReLU, or max(y + residual, 0) at the end of a residual block

Shapes   x, residual, y (..., c) of one storage (kernels/storage.py), C-contiguous, taken as (rows, c); all others (c,)
         float32. y is rounded once, at the end.
Traffic  x (and residual) once, y once. The rows are visited in the reverse of the order in which the statistics' first
         launch read them, so what it read last comes from L2, and nothing that is still there is driven out first
         (`Split.way_back`). No bit depends on that order.
Edges    NaN passes the ReLU.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.split import AHEAD, BLOCK, Split, loader, require_channels, split
from kernels.device import index_type, inlined, positive
from kernels.errors import same_shape
from kernels.intrinsics import fma
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage

BLOCKS = 2048  # that a grid has if each thread has no more than MOST rows: one or two rounds of a large GPU
MOST = 16  # rows of a thread: they share what it reads of its channels


@inlined
def normalized(x, shift, delta, scale, beta):
    """Forward's value before a ReLU. Backward repeats it, to see the sign that forward saw: both round alike."""
    return fma((x - shift) - delta, scale, beta)


def _apply(channels: int, affine: bool, relu: bool, index: Any, storage: Storage, width: int) -> Launch:
    parts, size = Split(channels, width), storage.bytes
    stored: Any = storage.pointer
    held = held_rows(storage, width)
    kind, places, take, number, store = held.dtype, held.places, held.load, held.number, held.store
    lanes, depth, group = parts.lanes, parts.depth, AHEAD * parts.depth
    load, loads = loader(width), AHEAD * places

    def apply(
        x: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats, y: stored,
        rows: Int64, stretch: Int64, groups: Int64,
    ):  # fmt: skip
        values = cuda.local.array(loads, kind)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        row = cuda.threadIdx.x // lanes
        channel = (cuda.blockIdx.y * lanes + cuda.threadIdx.x % lanes) * width
        if row < depth and channel < channels:
            load(shift, channel, near, 0)
            load(delta, channel, rest, 0)
            load(inv_std, channel, scale, 0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                load(beta, channel, offset, 0)
            else:
                for j in range(width):
                    offset[j] = float32(0)
            first = cuda.blockIdx.x * stretch + (cuda.gridDim.z - 1 - cuda.blockIdx.z) * groups * group + row
            end = index(min(rows, (cuda.blockIdx.x + 1) * stretch))
            for k in range(groups):
                at = index(first + (groups - 1 - k) * group)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        take(x, index((at + i * depth) * channels + channel), values, i * places)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        for j in range(width):
                            value = number(values, i * places, j)
                            value = normalized(value, near[j], rest[j], scale[j], offset[j])
                            result[j] = positive(value) if relu else value
                        store(y, index((at + i * depth) * channels + channel), result)

    return Launch(
        apply,
        BLOCK,
        parts.grid_back,
        lambda rows: Cost(size * rows * channels + 20 * channels, size * rows * channels, 4 * rows * channels),
    )


def _add_relu_apply(channels: int, affine: bool, index: Any, storage: Storage, width: int) -> Launch:
    parts, size = Split(channels, width), storage.bytes
    stored: Any = storage.pointer
    held = held_rows(storage, width)
    kind, places, take, number, store = held.dtype, held.places, held.load, held.number, held.store
    lanes, depth, group = parts.lanes, parts.depth, AHEAD * parts.depth
    load, loads = loader(width), AHEAD * places

    def add_relu_apply(
        x: stored, residual: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        y: stored, rows: Int64, stretch: Int64, groups: Int64,
    ):  # fmt: skip
        values = cuda.local.array(loads, kind)
        others = cuda.local.array(loads, kind)
        result = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        row = cuda.threadIdx.x // lanes
        channel = (cuda.blockIdx.y * lanes + cuda.threadIdx.x % lanes) * width
        if row < depth and channel < channels:
            load(shift, channel, near, 0)
            load(delta, channel, rest, 0)
            load(inv_std, channel, scale, 0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                load(beta, channel, offset, 0)
            else:
                for j in range(width):
                    offset[j] = float32(0)
            first = cuda.blockIdx.x * stretch + (cuda.gridDim.z - 1 - cuda.blockIdx.z) * groups * group + row
            end = index(min(rows, (cuda.blockIdx.x + 1) * stretch))
            for k in range(groups):
                at = index(first + (groups - 1 - k) * group)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        take(x, index((at + i * depth) * channels + channel), values, i * places)
                        take(residual, index((at + i * depth) * channels + channel), others, i * places)
                for i in range(AHEAD):
                    if at + i * depth < end:
                        for j in range(width):
                            value = number(values, i * places, j)
                            value = normalized(value, near[j], rest[j], scale[j], offset[j])
                            result[j] = positive(value + number(others, i * places, j))
                        store(y, index((at + i * depth) * channels + channel), result)

    return Launch(
        add_relu_apply,
        BLOCK,
        parts.grid_back,
        lambda rows: Cost(2 * size * rows * channels + 20 * channels, size * rows * channels, 5 * rows * channels),
    )


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta -> y",
    examples=[
        (1, True, False, uint32, FLOAT32),
        (17, True, True, uint32, FLOAT32),
        (64, False, True, uint32, FLOAT32),
        (513, False, False, int64, FLOAT32),
        (17, True, True, uint32, BFLOAT16),
        (65, False, False, uint32, FLOAT16),
    ],
)
def batchnorm_apply_scalar(channels: int, affine: bool, relu: bool, index: Any, storage: Storage) -> Launch:
    """One channel a thread."""
    return _apply(channels, affine, relu, index, storage, 1)


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta -> y",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=72,
    examples=[
        (4, True, False, uint32, FLOAT32),
        (64, True, True, uint32, FLOAT32),
        (512, False, True, int64, FLOAT32),
        (64, True, True, uint32, BFLOAT16),
        (512, True, True, int64, FLOAT16),
    ],
)
def batchnorm_apply_vector(channels: int, affine: bool, relu: bool, index: Any, storage: Storage) -> Launch:
    """As many channels a thread as 16 bytes hold, moved at once: far fewer instructions. All arrays aligned to 16."""
    return _apply(channels, affine, relu, index, storage, storage.wide)


@kernel(
    traffic="x, residual, shift, delta, inv_std, gamma, beta -> y",
    examples=[
        (1, True, uint32, FLOAT32),
        (17, False, uint32, FLOAT32),
        (513, True, int64, FLOAT32),
        (17, True, uint32, BFLOAT16),
        (65, False, uint32, FLOAT16),
    ],
)
def batchnorm_add_relu_apply_scalar(channels: int, affine: bool, index: Any, storage: Storage) -> Launch:
    """One channel a thread."""
    return _add_relu_apply(channels, affine, index, storage, 1)


@kernel(
    traffic="x, residual, shift, delta, inv_std, gamma, beta -> y",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=96,  # eight loads of 16 bytes are under way
    examples=[
        (4, True, uint32, FLOAT32),
        (64, True, uint32, FLOAT32),
        (512, False, int64, FLOAT32),
        (64, True, uint32, BFLOAT16),
        (512, True, int64, FLOAT16),
    ],
)
def batchnorm_add_relu_apply_vector(channels: int, affine: bool, index: Any, storage: Storage) -> Launch:
    """As many channels a thread as 16 bytes hold. All arrays aligned to 16."""
    return _add_relu_apply(channels, affine, index, storage, storage.wide)


@techniques("scalar", "vector")
def batchnorm_apply(
    run: Runner,
    x: Array,
    statistics: BatchStatistics,
    gamma: Array | None,
    beta: Array | None,
    y: Array,
    relu: bool,
    *,
    technique: str | None = None,
) -> None:
    """Normalize x into y; max(y, 0) where `relu`. gamma and beta (c,) or both None. Launch on `run`.

    Raises:
        ShapeError: y is not of x's shape, or another array not (c,).
        TypeError: Only one of gamma and beta is given, images are not of one storage, or another array not float32.
        TechniqueError: "vector" is asked for, and c is no multiple of 4 (of 8 in 16 bits) or an array starts at no
            multiple of 16 bytes.
    """
    operation = "batchnorm_apply"
    rows = require_channels(operation, x, **statistics._asdict(), gamma=gamma, beta=beta)
    same_shape(operation, x=x, y=y)
    storage = common_storage(operation, x=x, y=y)
    affine, parameters = is_affine(operation, gamma, beta, statistics)
    parts = split(run, operation, technique, storage, x, y=y, **read(statistics), gamma=gamma, beta=beta)
    factory = batchnorm_apply_vector if parts.width > 1 else batchnorm_apply_scalar
    chosen = factory(parts.channels, affine, relu, index_type(x.size), storage)
    run(chosen, x, *mean_and_scale(statistics), *parameters, y, rows, *parts.way_back(rows, BLOCKS, MOST))


@techniques("scalar", "vector")
def batchnorm_add_relu_apply(
    run: Runner,
    x: Array,
    residual: Array,
    statistics: BatchStatistics,
    gamma: Array | None,
    beta: Array | None,
    y: Array,
    *,
    technique: str | None = None,
) -> None:
    """The end of a residual block: y = max(normalized x + residual, 0). Otherwise as `batchnorm_apply`."""
    operation = "batchnorm_add_relu_apply"
    rows = require_channels(operation, x, **statistics._asdict(), gamma=gamma, beta=beta)
    same_shape(operation, x=x, residual=residual, y=y)
    storage = common_storage(operation, x=x, residual=residual, y=y)
    affine, parameters = is_affine(operation, gamma, beta, statistics)
    others = {"residual": residual, "y": y, **read(statistics), "gamma": gamma, "beta": beta}
    parts = split(run, operation, technique, storage, x, **others)
    factory = batchnorm_add_relu_apply_vector if parts.width > 1 else batchnorm_add_relu_apply_scalar
    chosen = factory(parts.channels, affine, index_type(x.size), storage)
    run(chosen, x, residual, *mean_and_scale(statistics), *parameters, y, rows, *parts.way_back(rows, BLOCKS, MOST))


def mean_and_scale(statistics: BatchStatistics) -> tuple[Array, Array, Array]:
    """What of the statistics normalization reads: shift, delta and inv_std."""
    return statistics.shift, statistics.delta, statistics.inv_std


def read(statistics: BatchStatistics) -> dict[str, Array]:
    """The same by name."""
    return dict(zip(("shift", "delta", "inv_std"), mean_and_scale(statistics), strict=True))


def is_affine(
    operation: str, gamma: Array | None, beta: Array | None, statistics: BatchStatistics
) -> tuple[bool, tuple[Array, Array]]:
    """Whether there are gamma and beta, and what to pass in their place: where there are none, what is never read.

    Raises:
        TypeError: Only one of them is given.
    """
    if (gamma is None) != (beta is None):
        raise TypeError(f"{operation}: gamma and beta are given together or not at all")
    return (False, (statistics.inv_std, statistics.inv_std)) if gamma is None else (True, (gamma, beta))
