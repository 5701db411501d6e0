"""Convolution of 3x3 without a stride on the CPU by Winograd's F(2x2, 3x3).

The maths is in winograd.py and the loops are in winograd_loops.py. What comes out NaN or infinite is not to be used: it
has spread over a tile, or overflowed on the way.
"""

import numpy as np

from minidl.backends.cpu import convolution_gradients, winograd, winograd_loops
from minidl.backends.cpu.blocks import WIDTH, block_table
from minidl.backends.cpu.convolution_factors import NOTHING, After, Source, is_finite
from minidl.backends.cpu.convolution_plan import SHARED_BYTES, SHARES, Plan, shares_table
from minidl.backends.cpu.machine_code import LANES
from minidl.backends.cpu.passes import pass_table
from minidl.backends.cpu.threads import Workers
from minidl.backends.cpu.winograd import POSITIONS, transform_table
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
DISPATCHES = 64  # times that threads go for pieces
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


class _Cut:
    """Of a plan's tiles into tiles of 2x2 outputs."""

    def __init__(self, plan: Plan, together: int) -> None:
        """`together`: numbers of a position that lie beside each other."""
        self.across = -(-plan.target[2] // 2)
        self.down = -(-plan.tile // 2)
        tiles = min(STRIP, STRIP_BYTES // (4 * POSITIONS * together))
        self.few = max(1, tiles // max(1, self.across))  # lines of tiles at a time
        self.tiles = self.few * self.across
        self.slab = plan.together * (2 * self.down + 2) * (2 * self.across + 2) * plan.source[3] + LANES
        self.slab_dy = plan.together * 4 * self.down * self.across * plan.target[3] + LANES

    def strip(self, padded: int) -> int:
        """Numbers of a strip, 16 positions that lie LANES apart: powers of two would meet in the cache."""
        return POSITIONS * (self.tiles * padded + LANES)


def multiply_windows(
    workers: Workers,
    plan: Plan,
    source: Source,
    w: np.ndarray,
    turned: bool,
    bias: np.ndarray | None,
    y: np.ndarray,
    after: After,
) -> bool:
    """Y, and what comes `after`; whether all of y is finite. `turned` as in `pack_weights`."""
    inputs = plan.source[3]
    cut = _Cut(plan, _padded(inputs))
    packed = _transformed(workers, w, turned)
    grain = max(1, plan.pieces // DISPATCHES)
    checks = np.zeros((-(-plan.pieces // grain), LANES), np.float32)
    how, x, dy, parameters = source
    tables = block_table(), pass_table(), transform_table(), plan.numbers
    added = NOTHING if bias is None else bias
    arrays = x.reshape(-1), dy.reshape(-1), parameters.reshape(-1), parameters.shape[1], packed, added, y.reshape(-1)

    def tiles(first: int, last: int) -> None:
        slab, taken = workers.scratch("slab", cut.slab), workers.scratch("taken", cut.strip(_padded(inputs)))
        products = workers.scratch("products", cut.strip(WIDTH))
        edge = workers.scratch("edge", 4 * cut.across * WIDTH)
        given = cut.few, slab, taken, products, edge, checks[first // grain]
        winograd_loops.multiply_tiles(first, last, *tables, how, *arrays, *after, *given)

    workers.run(tiles, plan.pieces, grain)
    return not checks.any()


def multiply_gradients(workers: Workers, plan: Plan, x: Source, dy: Source, dw: np.ndarray) -> bool:
    """The gradient of the weights; whether all of it is finite."""
    inputs, outputs = dw.shape[2:]
    padded = _padded(outputs)
    cut = _Cut(plan, max(_padded(inputs), padded))
    size = POSITIONS * inputs * padded
    tiles = plan.tiles * plan.together * cut.down * cut.across
    wanted = min(SHARES, max(FEWEST_SHARES, tiles * PER_TILE // size))
    groups = max(1, min(wanted, plan.tiles, SHARED_BYTES // (4 * size)))
    table = shares_table(plan.tiles, groups, padded, size)
    partial = workers.scratch("partial", groups * size)
    of_x = x.how, x.x.reshape(-1), x.parameters.reshape(-1), x.parameters.shape[1]
    of_dy = dy.how, dy.x.reshape(-1), dy.dy.reshape(-1), dy.parameters.reshape(-1), dy.parameters.shape[1]
    tables = block_table(), pass_table(), transform_table(), plan.numbers, table

    def work(first: int, last: int) -> None:
        slabs = workers.scratch("slab", cut.slab), workers.scratch("slab_dy", cut.slab_dy)
        taken = workers.scratch("taken", cut.strip(_padded(inputs))), workers.scratch("taken_dy", cut.strip(padded))
        winograd_loops.multiply_tile_gradients(first, last, *tables, *of_x, *of_dy, partial, cut.few, *slabs, *taken)

    workers.run(work, len(table), 1)
    rows = POSITIONS * inputs
    summed = workers.scratch("summed", rows * padded)[: rows * padded]
    given = partial, groups, size, padded, summed
    workers.run(convolution_gradients.sum_shares, rows, max(1, PACKED // padded), *given)
    made = dw
    if padded > outputs:
        made = workers.scratch("weights", 9 * inputs * padded)[: 9 * inputs * padded].reshape(*KERNEL, inputs, padded)

    def transform(first: int, last: int) -> None:
        winograd.transform_gradients(summed, made, first, last)

    workers.run(transform, padded // LANES, max(1, PACKED // (POSITIONS * inputs * LANES)))
    if made is not dw:
        dw[...] = made[..., :outputs]
    return is_finite(dw)


def _transformed(workers: Workers, w: np.ndarray, turned: bool) -> np.ndarray:
    """Weights in the order in which they are read: (16, blocks, inputs, WIDTH)."""
    given = w[::-1, ::-1].transpose(0, 1, 3, 2) if turned else w
    inputs, outputs = given.shape[2:]
    padded, blocks = _padded(outputs), -(-outputs // WIDTH)
    if turned or padded > outputs:
        whole = workers.scratch("weights", 9 * inputs * padded)[: 9 * inputs * padded]
        whole = whole.reshape(*KERNEL, inputs, padded)
        whole[..., :outputs], whole[..., outputs:] = given, 0
        given = whole
    packed = workers.scratch("packed", POSITIONS * blocks * inputs * WIDTH)

    def transform(first: int, last: int) -> None:
        winograd.transform_weights(given, packed, first, last, WIDTH)

    workers.run(transform, padded // LANES, max(1, PACKED // (POSITIONS * inputs * LANES)))
    return packed


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES
