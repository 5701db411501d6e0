"""When and how a convolution of 3x3 without a stride is done on the CPU by Winograd's F(4x4, 3x3).

The maths is in winograd.py and the loops over a tile are in winograd_loops.py.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from minidl.backends.cpu import convolution_gradients, winograd
from minidl.backends.cpu.blocks import WIDTH
from minidl.backends.cpu.convolution_plan import (
    LEFT_COLUMN,
    SHARED_BYTES,
    SHARES,
    SLAB_COLUMNS,
    SLAB_LINES,
    TOP_LINE,
    C,
    H,
    Plan,
    Shares,
    W,
    shares_table,
)
from minidl.backends.cpu.machine_code import LANES
from minidl.backends.cpu.threads import Workers
from minidl.backends.cpu.winograd import POSITIONS, SIDE, TAPS, TILE_SIDE
from minidl.backends.protocol import Pair

KERNEL = (TAPS, TAPS)

FEWEST = 8  # channels on either side
MOST = 1 << 18  # products of them, for the sake of memory
FULL = 0.5  # of the outputs of all tiles, that are outputs
# Tiles whose products take as long as the transforms of weights, and of the weights' gradients.
TILES_OF_WEIGHTS, TILES_OF_GRADIENTS = 40, 100
STRIP_BYTES = 1 << 19  # of what is transformed at a time, of each factor
STRIP = 56  # tiles, at most
FEWEST_SHARES = 8  # of a weight's gradient, if it has as many tiles
PER_TILE = 128  # numbers of a share for each tile that is added to it, at most: it takes work to sum them
PACKED = 1 << 15  # numbers of the weights that a thread transforms at a time


def takes(kernel: tuple[int, ...], stride: Pair) -> bool:
    """Whether it can be done so."""
    return kernel == KERNEL and stride == (1, 1)


def pays(plan: Plan, of_weights: bool) -> bool:
    """Whether that is faster than the definition; `of_weights`: their gradient."""
    n, h, w, c_out = plan.target
    c_in, outputs, tiles = plan.source[3], n * h * w, n * _tiles(h) * _tiles(w)
    taken = POSITIONS * (tiles + (TILES_OF_GRADIENTS if of_weights else TILES_OF_WEIGHTS))
    few, full = min(c_in, c_out) < FEWEST, outputs >= FULL * TILE_SIDE * TILE_SIDE * tiles
    return full and not few and c_in * c_out <= MOST and TAPS * TAPS * outputs > taken


def products(plan: Plan) -> int:
    """Multiply-adds, of a plan whose tiles are full."""
    return plan.products * POSITIONS // (TILE_SIDE * TAPS) ** 2


@dataclasses.dataclass(frozen=True)
class Cut:
    """A plan's tiles, cut into tiles of 4x4 outputs; sizes are in numbers.

    Attributes:
        few: Lines of them that go at a time.
        numbers: The plan's, with slabs of whole tiles.
        numbers_dy: The same, where what is read is the gradient of the output.
        slab, slab_dy: Slabs.
        taken, taken_dy: What is transformed of them at a time.
        products: What that is multiplied to.
        edge: A line of tiles' outputs.
    """

    few: int
    numbers: np.ndarray
    numbers_dy: np.ndarray
    slab: int
    slab_dy: int
    taken: int
    taken_dy: int
    products: int
    edge: int


@functools.lru_cache(1024)
def cut_of(plan: Plan) -> Cut:
    """Of a plan whose windows `takes` takes."""
    (_, _, _, c_in), (_, h_out, w_out, c_out) = plan.source, plan.target
    across, wide = _tiles(w_out), max(_padded(c_in), _padded(c_out))
    few = max(1, min(STRIP, STRIP_BYTES // (4 * POSITIONS * wide)) // max(1, across))

    def strip(padded: int) -> int:
        """36 positions, LANES apart: powers of two would meet in the cache."""
        return POSITIONS * (few * across * padded + LANES)

    # Of a slab, whole tiles of outputs and, of what they read, the lines beyond.
    extra = max(_missing(plan.tile), _missing(plan.height % plan.tile))
    numbers, lines, columns = plan.numbers.copy(), plan.tile + extra, TILE_SIDE * across
    numbers[[SLAB_LINES, SLAB_COLUMNS]] = TAPS + extra, columns + TAPS - 1
    numbers_dy = numbers.copy()
    numbers_dy[[H, W, C]] = h_out, w_out, c_out
    numbers_dy[[TOP_LINE, LEFT_COLUMN, SLAB_LINES, SLAB_COLUMNS]] = 0, 0, 1 + extra, columns
    return Cut(
        few=few,
        numbers=numbers,
        numbers_dy=numbers_dy,
        # The last pixel is read as a vector.
        slab=plan.together * (lines + TAPS - 1) * (columns + TAPS - 1) * c_in + LANES,
        slab_dy=plan.together * lines * columns * c_out + LANES,
        taken=strip(_padded(c_in)),
        taken_dy=strip(_padded(c_out)),
        products=strip(WIDTH),
        edge=TILE_SIDE * columns * WIDTH,
    )


@functools.lru_cache(1024)
def shares_of(plan: Plan) -> Shares:
    """Of the gradient of the weights, before its last transform."""
    _, _, w_out, c_out = plan.target
    padded = _padded(c_out)
    size = POSITIONS * plan.source[3] * padded
    tiles = plan.tiles * plan.together * _tiles(plan.tile) * _tiles(w_out)
    wanted = min(SHARES, max(FEWEST_SHARES, tiles * PER_TILE // size))
    groups = max(1, min(wanted, plan.tiles, SHARED_BYTES // (4 * size)))
    table = shares_table(plan.tiles, groups, padded, size, FEWEST_SHARES)
    return Shares(np.array((SIDE, SIDE), np.int64), table, groups, size, cut_of(plan).slab_dy, clips=False)


def transformed_weights(workers: Workers, w: np.ndarray, turned: bool) -> np.ndarray:
    """Weights in the order in which they are read: (36, blocks, inputs, WIDTH); `turned` as in `pack_weights`."""
    given = w[::-1, ::-1].transpose(0, 1, 3, 2) if turned else w
    inputs, outputs = given.shape[2:]
    padded, blocks = _padded(outputs), -(-outputs // WIDTH)
    if turned or padded > outputs:
        whole = _weights(workers, inputs, padded)
        whole[..., :outputs], whole[..., outputs:] = given, 0
        given = whole
    packed = workers.scratch("packed", POSITIONS * blocks * inputs * WIDTH)

    def transform(first: int, last: int) -> None:
        winograd.transform_weights(given, packed, first, last, WIDTH)

    _over_lanes(workers, transform, inputs, padded)
    return packed


def finish_gradients(workers: Workers, partial: np.ndarray, shares: Shares, dw: np.ndarray) -> None:
    """Dw from the shares' partial sums."""
    inputs, outputs = dw.shape[2:]
    padded, rows = _padded(outputs), POSITIONS * inputs
    summed = partial
    if shares.groups > 1:
        summed = workers.scratch("summed", rows * padded)[: rows * padded]
        given = partial, shares.groups, shares.size, padded, summed
        grain, elements = max(1, PACKED // padded), shares.groups * shares.size
        workers.run(convolution_gradients.sum_shares, rows, grain, *given, elements=elements)
    made = dw if padded == outputs else _weights(workers, inputs, padded)

    def transform(first: int, last: int) -> None:
        winograd.transform_gradients(summed, made, first, last)

    _over_lanes(workers, transform, inputs, padded)
    if made is not dw:
        dw[...] = made[..., :outputs]


def _over_lanes(workers: Workers, transform: Callable[[int, int], None], inputs: int, padded: int) -> None:
    """`transform` of all vectors of output channels, first to last."""
    grain = max(1, PACKED // (POSITIONS * inputs * LANES))
    workers.run(transform, padded // LANES, grain, elements=POSITIONS * inputs * padded)


def _weights(workers: Workers, inputs: int, padded: int) -> np.ndarray:
    return workers.scratch("weights", 9 * inputs * padded)[: 9 * inputs * padded].reshape(*KERNEL, inputs, padded)


def _tiles(size: int) -> int:
    return -(-size // TILE_SIDE)


def _missing(lines: int) -> int:
    """Lines until the last tile is full."""
    return -lines % TILE_SIDE


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES
