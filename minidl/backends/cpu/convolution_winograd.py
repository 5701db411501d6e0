"""When and how a convolution of 3x3 without a stride is done on the CPU by Winograd's F(2x2, 3x3).

The maths is in winograd.py and the loops over a tile are in winograd_loops.py.
"""

import dataclasses
import functools

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
from minidl.backends.cpu.winograd import POSITIONS
from minidl.backends.protocol import Pair

KERNEL = (3, 3)

FEWEST = 16  # channels on either side
MOST = 1 << 16  # products of them; beyond it transformed weights do not fit a cache
MOST_GRADIENTS = 1 << 14  # the same for their gradient, which every share adds up on its own
FULL = 0.8  # of the outputs of all tiles, that are outputs
STRIP_BYTES = 1 << 18  # of what is transformed at a time, of each factor
STRIP = 112  # tiles, at most
FEWEST_SHARES = 4  # of a weight's gradient, if it has as many tiles
PER_TILE = 128  # numbers of a share for each tile that is added to it, at most: it takes work to sum them
PACKED = 1 << 15  # numbers of the weights that a thread transforms at a time


def takes(kernel: tuple[int, ...], stride: Pair) -> bool:
    """Whether it can be done so."""
    return kernel == KERNEL and stride == (1, 1)


def pays(plan: Plan, of_weights: bool) -> bool:
    """Whether that is faster than the definition; `of_weights`: their gradient."""
    _, h, w, c_out = plan.target
    c_in = plan.source[3]
    full = h * w / max(1, 4 * -(-h // 2) * -(-w // 2))
    return min(c_in, c_out) >= FEWEST and c_in * c_out <= (MOST_GRADIENTS if of_weights else MOST) and full >= FULL


@dataclasses.dataclass(frozen=True)
class Cut:
    """A plan's tiles, cut into tiles of 2x2 outputs; sizes are in numbers.

    Attributes:
        few: Lines of them that go at a time.
        numbers: The plan's, with slabs of whole tiles.
        numbers_dy: The same, where what is read is the gradient of the output.
        slab, slab_dy: Slabs.
        taken, taken_dy: What is transformed of them at a time.
        products: What that is multiplied to.
        edge: Two lines of outputs.
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
    across, wide = -(-w_out // 2), max(_padded(c_in), _padded(c_out))
    few = max(1, min(STRIP, STRIP_BYTES // (4 * POSITIONS * wide)) // max(1, across))

    def strip(padded: int) -> int:
        """16 positions, LANES apart: powers of two would meet in the cache."""
        return POSITIONS * (few * across * padded + LANES)

    numbers = plan.numbers.copy()
    numbers[[SLAB_LINES, SLAB_COLUMNS]] = 4, 2 * across + 2  # beyond the first line of outputs, and of an odd one more
    numbers_dy = numbers.copy()
    numbers_dy[[H, W, C]] = h_out, w_out, c_out
    numbers_dy[[TOP_LINE, LEFT_COLUMN, SLAB_LINES, SLAB_COLUMNS]] = 0, 0, 2, 2 * across
    return Cut(
        few=few,
        numbers=numbers,
        numbers_dy=numbers_dy,
        slab=plan.together * (plan.tile + 3) * (2 * across + 2) * c_in + LANES,  # whose last pixel is read as a vector
        slab_dy=plan.together * (plan.tile + 1) * 2 * across * c_out + LANES,
        taken=strip(_padded(c_in)),
        taken_dy=strip(_padded(c_out)),
        products=strip(WIDTH),
        edge=4 * across * WIDTH,
    )


@functools.lru_cache(1024)
def shares_of(plan: Plan) -> Shares:
    """Of the gradient of the weights, before its last transform."""
    _, _, w_out, c_out = plan.target
    padded = _padded(c_out)
    size = POSITIONS * plan.source[3] * padded
    tiles = plan.tiles * plan.together * -(-plan.tile // 2) * -(-w_out // 2)
    wanted = min(SHARES, max(FEWEST_SHARES, tiles * PER_TILE // size))
    groups = max(1, min(wanted, plan.tiles, SHARED_BYTES // (4 * size)))
    table = shares_table(plan.tiles, groups, padded, size)
    return Shares(np.array((4, 4), np.int64), table, groups, size, cut_of(plan).slab_dy, clips=False)


def transformed_weights(workers: Workers, w: np.ndarray, turned: bool) -> np.ndarray:
    """Weights in the order in which they are read: (16, blocks, inputs, WIDTH); `turned` as in `pack_weights`."""
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

    workers.run(transform, padded // LANES, max(1, PACKED // (POSITIONS * inputs * LANES)))
    return packed


def finish_gradients(workers: Workers, partial: np.ndarray, shares: Shares, dw: np.ndarray) -> None:
    """Dw from the shares' partial sums."""
    inputs, outputs = dw.shape[2:]
    padded, rows = _padded(outputs), POSITIONS * inputs
    summed = workers.scratch("summed", rows * padded)[: rows * padded]
    given = partial, shares.groups, shares.size, padded, summed
    workers.run(convolution_gradients.sum_shares, rows, max(1, PACKED // padded), *given)
    made = dw if padded == outputs else _weights(workers, inputs, padded)

    def transform(first: int, last: int) -> None:
        winograd.transform_gradients(summed, made, first, last)

    workers.run(transform, padded // LANES, max(1, PACKED // (POSITIONS * inputs * LANES)))
    if made is not dw:
        dw[...] = made[..., :outputs]


def _weights(workers: Workers, inputs: int, padded: int) -> np.ndarray:
    return workers.scratch("weights", 9 * inputs * padded)[: 9 * inputs * padded].reshape(*KERNEL, inputs, padded)


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES
