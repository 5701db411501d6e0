"""What a convolution on the CPU is cut into: phases, tiles, and their numbers as the loops read them.

Forward and the gradient of the input are one thing, a product of windows with weights. With a stride s, an element of
the input's gradient meets only every s-th tap: elements fall into as many phases as the stride has steps, and each
phase is a product without a stride, of fewer taps. Forward is one phase.

A tile is a few lines of the result, or a few whole images. Tiles follow from the shapes alone and each has its place in
every sum, so the bits do not depend on the number of threads.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minidl.backends.cpu.blocks import WIDTH
from minidl.backends.cpu.machine_code import LANES
from minidl.backends.cpu.winograd import TAPS, TILE_SIDE
from minidl.backends.protocol import Pair

TILE_BYTES = 1 << 18  # of what a tile reads and writes: a quarter of a usual L2
PIECES = 32  # to have at least, for threads to share
WEIGHT_BYTES = 1 << 19  # of the weights that all tiles go through before the next: half of a usual L2
CHUNK = 128  # rows of a tile that are summed in float32; float64 takes over
DEPTH = 256  # pixels that a sum of a weight's gradient takes before it is added to the others

SHARES = 16  # of a weight's gradient: what is added up on its own
SHARE_PIXELS = 256  # that one has at least: it takes work to clear and to sum them
SHARED_BYTES = 1 << 22  # that their partial sums may take together

Shape4 = tuple[int, int, int, int]

# Columns of `phases`.
ROW, COLUMN, LINES, COLUMNS, KH, KW, TOP, LEFT, WEIGHTS, R_FIRST, R_STEP, S_FIRST, S_STEP = range(13)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How a product of windows is done; arrays are int64.

    Attributes:
        phases: (number, 13): where the phase's outputs begin and how many there are, its taps, where its first window
            begins, where its packed weights do, and which tap of the convolution its taps are.
        stride: Of windows.
        apart: Of a phase's outputs.
        source: Shape of what windows are taken from.
        target: Shape of the result.
        top: First line of a slab, from the tile's first line times the stride on.
        left: First column.
        lines: Of a slab, beyond `stride` lines for each of the tile's but the first.
        columns: Of a slab.
        tile: Lines in a tile; those of one image or of all its images.
        together: Images in a tile.
        splits: Ranges of output channels, each with pieces of its own: for few tiles, or many weights.
        plain: Whether slabs lie in the source as they are.
    """

    phases: np.ndarray
    stride: Pair
    apart: Pair
    source: Shape4
    target: Shape4
    top: int
    left: int
    lines: int
    columns: int
    tile: int
    together: int
    splits: int
    plain: bool

    @property
    def height(self) -> int:
        """Lines to do in an image; each is `apart` lines of the result."""
        return -(-self.target[1] // self.apart[0])

    @property
    def tiles(self) -> int:
        return -(-self.height // self.tile) * -(-self.target[0] // self.together)

    @property
    def pieces(self) -> int:
        """What threads share: the tiles, once for each range of output channels."""
        return self.tiles * self.splits

    @property
    def slab(self) -> int:
        """Elements of a slab."""
        return self.together * ((self.tile - 1) * self.stride[0] + self.lines) * self.columns * self.source[3]

    @property
    def weights(self) -> int:
        """Elements of the packed weights."""
        last = self.phases[-1]
        return int(last[WEIGHTS] + last[KH] * last[KW] * self.source[3] * _padded(self.target[3]))

    @functools.cached_property
    def products(self) -> int:
        """Multiply-adds of the definition."""
        n, _, _, c_out = self.target
        taps = sum(int(phase[LINES] * phase[COLUMNS] * phase[KH] * phase[KW]) for phase in self.phases)
        return n * taps * self.source[3] * c_out

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """What the loops read, by the names below."""
        window = self.top, self.left, self.lines, self.columns
        cut = self.tile, self.together, self.height, self.tiles, self.splits
        given = *self.stride, *self.apart, *self.source, *self.target, *window, *cut, int(self.plain)
        return np.array(given, np.int64)

    @functools.cached_property
    def chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the result, tile by tile in chunks of CHUNK at most: where each begins, and each tile's first."""
        n, h, w, _ = self.target
        starts: list[int] = []
        firsts: list[int] = []
        for image in range(0, n, self.together):
            images = min(self.together, n - image)
            for line in range(0, self.height, self.tile):
                begin = (image * h + line * self.apart[0]) * w
                end = begin + ((images - 1) * h + min((line + self.tile) * self.apart[0], h) - line * self.apart[0]) * w
                firsts.append(len(starts))
                starts.extend(range(begin, end, CHUNK))
        return np.array([*starts, n * h * w], np.int64), np.array([*firsts, len(starts)], np.int64)


# Places in `numbers`.
(STRIDE_H, STRIDE_W, APART_H, APART_W, N, H, W, C, N_OUT, H_OUT, W_OUT, C_OUT) = range(12)
(TOP_LINE, LEFT_COLUMN, SLAB_LINES, SLAB_COLUMNS) = range(12, 16)
(TILE, TOGETHER, HEIGHT, TILES, SPLITS, PLAIN) = range(16, 22)


@functools.lru_cache(1024)
def forward_plan(source: Shape4, kernel: Pair, target: Shape4, stride: Pair, padding: Pair) -> Plan:
    """Of y, `target`, from x."""
    _, ho, wo, _ = target
    kh, kw = kernel
    phase = 0, 0, ho, wo, kh, kw, -padding[0], -padding[1], 0, 0, 1, 0, 1
    return _plan([phase], stride, (1, 1), source, target)


@functools.lru_cache(1024)
def input_gradient_plan(source: Shape4, kernel: Pair, target: Shape4, stride: Pair, padding: Pair) -> Plan:
    """Of dx, `target`, from dy.

    The element u = i * stride + a of dx meets tap r where u + padding - r is a multiple of the stride, and there line
    p = (u + padding - r) / stride of dy: phase a has the taps r0, r0 + stride, ..., last one first as p grows.
    """
    _, h, w, c = target
    axes = [
        [_phase(size, kernel[axis], stride[axis], padding[axis], a) for a in range(min(stride[axis], size))]
        for axis, size in enumerate((h, w))
    ]
    phases, weights = [], 0
    for a, (lines, kh, top, r_first) in enumerate(axes[0]):
        for b, (columns, kw, left, s_first) in enumerate(axes[1]):
            phases.append((a, b, lines, columns, kh, kw, top, left, weights, r_first, -stride[0], s_first, -stride[1]))
            weights += kh * kw * source[3] * _padded(c)
    return _plan(phases, (1, 1), stride, source, target)


class Shares(NamedTuple):
    """How the gradient of the weights is shared out; arrays are int64.

    Attributes:
        kernel: Its height and width.
        table: (number, 5): first and last tile, first and last output channel, and where its partial sums begin.
        groups: Partial sums of all the weights.
        size: Elements of one; output channels are padded to whole vectors.
        slab_dy: Elements of a slab of dy.
        clips: Whether some tap meets no padding: if nothing of dw is NaN or infinite, neither is dy.
    """

    kernel: np.ndarray
    table: np.ndarray
    groups: int
    size: int
    slab_dy: int
    clips: bool


@functools.lru_cache(1024)
def weight_gradient_plan(
    source: Shape4, weights: Shape4, target: Shape4, stride: Pair, padding: Pair
) -> tuple[Plan, Shares]:
    """Of dw, from x, `source`, and dy, `target`, in the tiles of forward."""
    kh, kw, c_in, c_out = weights
    plan = forward_plan(source, (kh, kw), target, stride, padding)
    padded = -(-c_out // LANES) * LANES
    size = kh * kw * c_in * padded
    pixels = target[0] * target[1] * target[2]
    groups = max(1, min(SHARES, plan.tiles, SHARED_BYTES // (4 * max(size, 1)), pixels // SHARE_PIXELS))
    table = shares_table(plan.tiles, groups, padded, size, SHARES)
    meets_none = [
        range(before, min(taps, length + before - (count - 1) * step))
        for taps, length, count, step, before in zip((kh, kw), source[1:3], target[1:3], stride, padding, strict=True)
    ]
    slab_dy = plan.together * plan.tile * target[2] * padded
    kernel = np.array((kh, kw), np.int64)
    return plan, Shares(kernel, table, groups, size, slab_dy, all(meets_none))


def shares_table(tiles: int, groups: int, padded: int, size: int, wanted: int) -> np.ndarray:
    """`Shares.table`, of so many groups of tiles; output channels are shared out too where those are not `wanted`."""
    blocks = -(-padded // WIDTH)
    ranges = max(1, min(blocks, wanted // groups))
    table = [
        (
            *(tiles * group // groups, tiles * (group + 1) // groups),
            *(blocks * k // ranges * WIDTH, min(blocks * (k + 1) // ranges * WIDTH, padded)),
            group * size,
        )
        for group in range(groups)
        for k in range(ranges)
    ]
    return np.array(table, np.int64)


def _phase(size: int, taps: int, stride: int, padding: int, a: int) -> tuple[int, int, int, int]:
    """Along one axis: outputs, taps, where the first window begins, the tap that comes first."""
    r0 = (a + padding) % stride
    count = max(0, -(-(taps - r0) // stride))
    first = (a + padding - r0) // stride - count + 1
    return -(-(size - a) // stride), count, first, r0 + (count - 1) * stride


def _plan(phases: Sequence[tuple[int, ...]], stride: Pair, apart: Pair, source: Shape4, target: Shape4) -> Plan:
    n, h, w, c = source
    met = [phase for phase in phases if phase[KH] * phase[KW]]
    top, left = (min((phase[axis] for phase in met), default=0) for axis in (TOP, LEFT))
    lines = max((phase[TOP] + phase[KH] for phase in met), default=1) - top
    columns = max(((phase[COLUMNS] - 1) * stride[1] + phase[LEFT] + phase[KW] for phase in met), default=1) - left
    height = -(-target[1] // apart[0])
    bottom = (height - 1) * stride[0] + top + lines
    plain = top >= 0 and left >= 0 and bottom <= h and left + columns <= w
    line = 4 * (stride[0] * columns * c + apart[0] * target[2] * target[3])
    fits = max(1, TILE_BYTES // line)
    blocks = -(-target[3] // WIDTH)
    weights = 4 * c * WIDTH * blocks * max((phase[KH] * phase[KW] for phase in phases), default=0)
    together = 1
    if fits >= height:
        tile, together = height, min(fits // max(height, 1), n if weights > WEIGHT_BYTES else n // PIECES)
        together = max(together, 1)
    else:
        tile = -(-height // -(-height // fits))
        if stride == apart == (1, 1) and all((phase[KH], phase[KW]) == (TAPS, TAPS) for phase in phases):
            tile += -tile % TILE_SIDE  # whole tiles of Winograd's
    tiles = -(-height // tile) * -(-n // together) if height else 0
    splits = max(1, min(blocks, max(-(-PIECES // max(tiles, 1)), -(-weights // WEIGHT_BYTES))))
    array = np.array(phases, np.int64).reshape(len(phases), 13)
    return Plan(array, stride, apart, source, target, top, left, lines, columns, tile, together, splits, plain)


def _padded(channels: int) -> int:
    return -(-channels // WIDTH) * WIDTH
