"""How tiled pooling shares an image out: what a block makes, and what of the other array it keeps in shared memory.

Where windows overlap, what neighbours share is read once for each of them, from a cache or not. A block that makes a
tile, of all channels that fit into a line of 128 bytes, first copies what the whole tile needs to shared memory: so
that passes once, but for a halo around the tile. Channels go in groups of as many as 16 bytes of an image hold: four
of float32, eight of 16 bits (kernels/storage.py), which are kept as they are stored.

    forward   The tile is of windows; what is kept is of x, of size 4 or 2 bytes an element.
    backward  The tile is of cells: cell (a, b) are the sh * sw elements of dx that begin at (a * sh - ph, b * sw - pw).
              They are all in the same windows, those of (a - oh, a] x (b - ow, b] for windows that overlap oh x ow
              times. A thread makes a cell of one group, and takes from each window once what all its elements need.
              What is kept is of dy, and of the places of maxima, of 4 bytes. Where windows do not overlap, a cell has
              one window and nothing is kept.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numba import cuda, float32, int64, uint16, uint32

from kernels.device import inlined
from kernels.launch import blocks_for
from kernels.pooling.geometry import Geometry
from kernels.storage import Storage

BLOCK = 256
LINE = 8  # groups of channels of a block: 128 bytes
SHARED = 48 << 10  # bytes of a block in arrays of fixed size
ITEMS = 8 * BLOCK  # that a block makes, at most: so that small batches too make many blocks


class Axis(NamedTuple):
    """Of an image: windows (forward) or cells (backward), and what they need of the other side."""

    number: int  # of them
    step: int  # from what one needs to what the next does
    reach: int  # that one needs
    size: int  # that there are
    before: int  # where what the first one needs begins, counted backwards from 0

    def held(self, own: int) -> int:
        """What `own` neighbours need, of what there is."""
        return min((own - 1) * self.step + self.reach, self.size)


class Tile(NamedTuple):
    """What a block makes, in groups of channels.

    With `wide` channels in one; `quads` are the groups, which are of four in float32.
    """

    quads: int
    down: Axis
    across: Axis
    own: tuple[int, int]  # windows or cells, down and across
    wide: int = 4

    @property
    def held(self) -> tuple[int, int]:
        """Down and across, of the other side."""
        return self.down.held(self.own[0]), self.across.held(self.own[1])

    @property
    def items(self) -> int:
        """Quads that a block makes."""
        return self.own[0] * self.own[1] * self.quads

    @property
    def copies(self) -> int:
        """Quads that it copies."""
        return self.held[0] * self.held[1] * self.quads

    @property
    def floats(self) -> int:
        """Elements in shared memory, of one array."""
        return self.wide * LINE * blocks_for(self.copies, LINE)

    def counts(self, channels: int) -> tuple[int, int, int]:
        """Tiles of an image: down, across, and of its channels."""
        return (
            blocks_for(self.down.number, self.own[0]),
            blocks_for(self.across.number, self.own[1]),
            blocks_for(channels, self.wide * self.quads),
        )


def kept_type(storage: Storage) -> Any:
    """Of shared memory's elements: of 16 bits, their bits."""
    return float32 if storage.bytes == 4 else uint16


@functools.cache
def forward_tile(geometry: Geometry, wide: int = 4) -> Tile | None:
    """Of windows, with `wide` channels in a group; None where those of one do not fit into shared memory."""
    of_window = zip(geometry.output, geometry.stride, geometry.span, geometry[:2], geometry.padding, strict=True)
    return _tile(geometry.c, [Axis(*numbers) for numbers in of_window], wide, kept=16, made=16 + 4 * wide)


@functools.cache
def backward_tile(geometry: Geometry, arrays: int, wide: int = 4) -> Tile | None:
    """Of cells, for dy and, of two arrays, the places of maxima; None as of `forward_tile`."""
    cells = (
        (size - 1 + pad) // stride + 1
        for size, pad, stride in zip(geometry[:2], geometry.padding, geometry.stride, strict=True)
    )
    of_cell = zip(cells, geometry.overlap, geometry.output, strict=True)
    axes = [Axis(count, 1, overlap, windows, overlap - 1) for count, overlap, windows in of_cell]
    kept = 0 if geometry.overlap == (1, 1) else 16 + 4 * wide * (arrays - 1)
    return _tile(geometry.c, axes, wide, kept=kept, made=16 * geometry.stride[0] * geometry.stride[1])


def _tile(channels: int, axes: Sequence[Axis], wide: int, kept: int, made: int) -> Tile | None:
    """The tile that moves the fewest bytes for an image, idle threads counted as if they wrote.

    `kept` are bytes of a group in shared memory, `made` those of one that is written.
    """
    (down, across), quads = axes, min(LINE, channels // wide)
    best: tuple[int, Tile] | None = None
    widths = sorted({blocks_for(across.number, parts) for parts in range(1, across.number + 1)}, reverse=True)
    for width in widths if quads else ():
        for height in range(1, down.number + 1):
            tile = Tile(quads, down, across, (height, width), wide)
            if tile.floats // wide * kept > SHARED or (tile.items > ITEMS and (height, width) != (1, widths[-1])):
                break
            number = blocks_for(down.number, height) * blocks_for(across.number, width)
            moved = number * (tile.copies * kept + blocks_for(tile.items, BLOCK) * BLOCK * made)
            if best is None or moved < best[0]:
                best = moved, tile
    return best[1] if best else None


def place_of(tile: Tile, channels: int) -> Callable[..., Any]:
    """Make a device function: (image, first of its own down, across, first channel) of a block.

    Tiles of one place that differ in their channels follow one another: together they read whole pixels.
    """
    down, across, groups = tile.counts(channels)
    (own_down, own_across), width = tile.own, tile.wide * tile.quads

    @inlined
    def place():
        block = uint32(cuda.blockIdx.x)
        line = uint32(block // groups)
        row = uint32(line // across)
        return (
            int64(row // down),
            uint32(row % down * own_down),
            uint32(line % across * own_across),
            uint32(block % groups * width),
        )

    return place


def item_of(tile: Tile) -> Callable[..., Any]:
    """Make a device function: (down, across, group) of the tile's item e."""
    across, quads = tile.own[1], tile.quads

    @inlined
    def item(e):
        pixel = uint32(e // quads)
        return uint32(pixel // across), uint32(pixel % across), uint32(e % quads)

    return item


def slot_of(tile: Tile) -> Callable[..., Any]:
    """Make a device function: in which 16 bytes of shared memory group e of what is kept lies.

    Eight lanes of a warp read 128 bytes of it at a time. With fewer than eight groups and a stride of 2 they are of
    every second pixel, which would meet in the same banks: so every second group of eight has its halves exchanged.
    """
    quads = tile.quads
    exchanged = tile.across.step == 2 and quads in (1, 2, 4)

    @inlined
    def slot(e):
        return uint32(e ^ ((e >> 3 & 1) * quads)) if exchanged else uint32(e)

    return slot


def copier(tile: Tile, channels: int, index: Any) -> Callable[..., Any]:
    """Make a device function: each(copy, arrays, image, first_down, first_across, first_channel) over what is kept.

    Calls `copy(arrays, from, to)` for each group, with the number of its first element in global memory and that of its
    16 bytes in shared memory.
    """
    (down, across), (held_down, held_across), quads = (tile.down, tile.across), tile.held, tile.quads
    own_down, own_across = tile.own
    copies, slot, wide_group = tile.copies, slot_of(tile), tile.wide
    rounds = blocks_for(copies, BLOCK)
    height, width = down.size, across.size
    reach_down, reach_across = (own_down - 1) * down.step + down.reach, (own_across - 1) * across.step + across.reach
    one = (own_down, own_across) == (down.number, across.number)
    whole = one and reach_down - down.before >= held_down and reach_across - across.before >= held_across

    def make(copy: Callable[..., Any]) -> Callable[..., Any]:
        @inlined
        def each(arrays, image, top, left, first_channel):
            first_row, first_column = max(top, 0), max(left, 0)
            for turn in range(rounds):
                e = uint32(turn * BLOCK + cuda.threadIdx.x)
                pixel, quad = uint32(e // quads), uint32(e % quads)
                row, column = first_row + int64(pixel // held_across), first_column + int64(pixel % held_across)
                channel = uint32(first_channel + wide_group * quad)
                near = whole or (row < min(top + reach_down, height) and column < min(left + reach_across, width))
                if e < copies and near and channel < channels:
                    copy(
                        arrays,
                        index(((image * height + row) * width + column) * channels + channel),
                        uint32(slot(e)),
                    )

        return each

    return make


def group_copier(storage: Storage) -> Any:
    """Make a device function, as `copier` wants it: a group from an array to what is kept of it."""
    copy_wide, wide = storage.copy_wide, storage.wide

    @inlined
    def copy(arrays, source, target):
        whole, kept = arrays
        copy_wide(whole, source, kept, uint32(wide * target))

    return copy


def cell_storer(geometry: Geometry, index: Any, storage: Storage) -> Any:
    """Make a device function that stores a group of channels of a cell, which begins at (row, column), into dx.

    `totals` are those of its elements, one after another; `values` has room for a group.
    """
    height, width, c, (sh, sw) = *geometry[:3], geometry.stride
    store_wide, wide = storage.store_wide, storage.wide

    @inlined
    def store_cell(dx, image, row, column, channel, totals, values):
        for i in range(sh):
            for j in range(sw):
                if 0 <= row + i < height and 0 <= column + j < width:
                    for k in range(wide):
                        values[k] = totals[wide * (i * sw + j) + k]
                    pixel = (image * height + (row + i)) * width + (column + j)
                    store_wide(dx, index(pixel * c + int64(channel)), values)

    return store_cell
