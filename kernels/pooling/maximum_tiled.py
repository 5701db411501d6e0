"""Max pooling by tiles (tile.py): what windows share passes once.

Traffic  forward reads x once, and a halo around a tile, and writes y and index once; backward reads dy and index alike
         and writes dx once. Sums and comparisons are made in the order of maximum.py: the bits are the same.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int32, int64, uint32

from kernels.device import inlined
from kernels.intrinsics import load4, store4
from kernels.launch import Cost, Int32s, Int64, Launch, blocks_for, kernel
from kernels.pooling.extremes import LOWEST, first_real, wins
from kernels.pooling.geometry import Geometry
from kernels.pooling.places import load_places, store_places
from kernels.pooling.tile import (
    BLOCK,
    backward_tile,
    cell_storer,
    copier,
    forward_tile,
    group_copier,
    item_of,
    kept_type,
    place_of,
    slot_of,
)
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage

WIDE = "LDG.E.128", "STG.E.128"
OVERLAPPING = [
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1)), FLOAT32),
    (uint32, Geometry(28, 28, 32, (3, 3), (1, 1), (1, 1)), FLOAT32),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1)), FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), (2, 3), True), FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1)), BFLOAT16),
    (int64, Geometry(7, 11, 8, (5, 3), (1, 2), (2, 1)), FLOAT16),
]
EXAMPLES = [
    *OVERLAPPING,
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), FLOAT32),
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), BFLOAT16),
]


@kernel(traffic="x -> y, place", registers=64, instructions=(*WIDE, "LDS.128", "STS.128"), examples=OVERLAPPING)
def max_pool2d_forward_tiled(index: Any, geometry: Geometry, storage: Storage) -> Launch:
    """A group of channels of a window a thread, out of what the block keeps of x. c is a multiple of a group."""
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    size_of_one, kept_as = storage.bytes, kept_type(storage)
    height, width, c, (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    (ho, wo), tile = geometry.output, forward_tile(geometry, wide)
    assert tile is not None
    (_, held_across), quads, items, size = tile.held, tile.quads, tile.items, tile.floats
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    slot, in_pairs = slot_of(tile), wide == 8 and quads % 2 == 0
    keep = copier(tile, c, index)(group_copier(storage))

    def max_pool2d_forward(x: stored, y: stored, place: Int32s, images: Int64):  # noqa: ARG001 - for the grid
        kept = cuda.shared.array(size, kept_as, alignment=16)
        best = cuda.local.array(wide, float32)
        where = cuda.local.array(wide, int32)
        values = cuda.local.array(wide, float32)
        image, first_row, first_column, first_channel = place_of_block()
        top, left = int32(int64(first_row) * sh - ph), int32(int64(first_column) * sw - pw)
        keep((x, kept), image, top, left, first_channel)
        cuda.syncthreads()
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        if in_pairs:
            for k in range(wide):
                where[k] = 0
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            window_row, window_column = uint32(first_row + down), uint32(first_column + across)
            channel = uint32(first_channel + wide * quad)
            if e < items and window_row < ho and window_column < wo and channel < c:
                up, back = int32(top + down * sh), int32(left + across * sw)
                first = int32(first_real(up, dh) * width + first_real(back, dw))
                for k in range(wide):
                    best[k] = float32(LOWEST)
                    where[k] = first
                for i in range(kh):
                    row = up + i * dh
                    for j in range(kw):
                        column = back + j * dw
                        if 0 <= row < height and 0 <= column < width:
                            here = int32(row * width + column)
                            at = ((row - kept_row) * held_across + (column - kept_column)) * quads + quad
                            load_wide(kept, uint32(wide * slot(uint32(at))), values)
                            for k in range(wide):
                                if wins(values[k], best[k]):
                                    best[k] = values[k]
                                    where[k] = here
                pixel = (image * ho + int64(window_row)) * wo + int64(window_column)
                target = index(pixel * c + int64(channel))
                store_wide(y, target, best)
                if not in_pairs:
                    for k in range(0, wide, 4):
                        store4(place, target + k, where[k], where[k + 1], where[k + 2], where[k + 3])
            if in_pairs:
                pixel = (image * ho + int64(window_row)) * wo + int64(window_column)
                there = e < items and window_row < ho and window_column < wo
                even = channel - 8 * (cuda.threadIdx.x & 1)
                store_places(place, pixel * c + int64(channel), there and even < c, there and even + 8 < c, where)

    tiles = tile.counts(c)
    return Launch(
        max_pool2d_forward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            size_of_one * images * height * width * c,
            (size_of_one + 4) * images * ho * wo * c,
            images * ho * wo * c * kh * kw,
        ),
    )


def _fours(wide: int) -> tuple[Any, Any]:
    """Where what is kept of places lies: device functions of the number of a four, and of a group and a channel of it.

    See `max_pool2d_backward_tiled`; fours of a group begin at channels 0 and 4.
    """

    @inlined
    def exchanged(four):
        return uint32(4 * (four ^ four >> 3 & 1))

    def of_group(at, k):
        return uint32(4 * at + k)

    def of_eight(at, k):
        return exchanged(uint32(2 * at + k // 4))

    return exchanged, inlined(of_eight if wide == 8 else of_group)


@kernel(traffic="dy, place -> dx", registers=72, instructions=WIDE, examples=EXAMPLES)
def max_pool2d_backward_tiled(index: Any, geometry: Geometry, storage: Storage) -> Launch:
    """A group of channels of a cell a thread: of each of its windows it takes dy and the place once.

    c is a multiple of a group. Eight places are brought and kept in fours; fours change places with their neighbours as
    a first layer's halves do (kernels/conv/first_layer_access.py), so that lanes of a warp read from different banks.
    """
    stored: Any = storage.pointer
    load_wide, wide, copy_wide = storage.load_wide, storage.wide, storage.copy_wide
    size_of_one, kept_as = storage.bytes, kept_type(storage)
    height, width, c, _, (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across), (span_down, span_across) = (
        geometry.output,
        geometry.overlap,
        geometry.span,
    )
    tile = backward_tile(geometry, 2, wide)
    assert tile is not None
    cells_down, cells_across = tile.down.number, tile.across.number
    (_, held_across), quads, items = tile.held, tile.quads, tile.items
    keeps = geometry.overlap != (1, 1)
    size, totals_size = tile.floats if keeps else wide, wide * sh * sw
    in_fours, in_pairs = wide == 8, wide == 8 and quads % 2 == 0 and not keeps  # how places are moved
    place_of_four, place_in_group = _fours(wide)
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    store_cell = cell_storer(geometry, index, storage)

    @inlined
    def copy(arrays, source, target):
        dy, place, gradients, places = arrays
        copy_wide(dy, source, gradients, uint32(wide * target))
        if not in_fours:
            for k in range(0, wide, 4):
                p, q, r, s = load4(place, source + k)
                store4(places, place_in_group(target, k), p, q, r, s)

    @inlined
    def copy_four(arrays, source, target):
        _, place, _, places = arrays
        p, q, r, s = load4(place, source)
        store4(places, place_of_four(target), p, q, r, s)

    keep = copier(tile, c, index)(copy)
    keep_fours = copier(tile._replace(wide=4, quads=wide // 4 * quads), c, index)(copy_four)

    def max_pool2d_backward(dy: stored, place: Int32s, dx: stored, images: Int64):  # noqa: ARG001 - for the grid
        totals = cuda.local.array(totals_size, float32)
        taken = cuda.local.array(wide, float32)
        where = cuda.local.array(wide, int32)
        image, first_row, first_column, first_channel = place_of_block()
        top = int32(int64(first_row) - (windows_down - 1))
        left = int32(int64(first_column) - (windows_across - 1))
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        if keeps:
            gradients = cuda.shared.array(size, kept_as, alignment=16)
            places = cuda.shared.array(size, int32, alignment=16)
            keep((dy, place, gradients, places), image, top, left, first_channel)
            if in_fours:
                keep_fours((dy, place, gradients, places), image, top, left, first_channel)
            cuda.syncthreads()
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            cell_row, cell_column = int32(first_row + down), int32(first_column + across)
            channel = uint32(first_channel + wide * quad)
            if in_pairs:  # of the one window of a cell
                there = e < items and cell_row < ho and cell_column < wo
                even = channel - 8 * (cuda.threadIdx.x & 1)
                pixel = image * (ho * wo) + (cell_row * wo + cell_column)
                load_places(place, pixel * c + int64(channel), there and even < c, there and even + 8 < c, where)
            if e < items and cell_row < cells_down and cell_column < cells_across and channel < c:
                for k in range(totals_size):
                    totals[k] = float32(0)
                row, column = int32(cell_row * sh - ph), int32(cell_column * sw - pw)
                for up in range(windows_down):
                    window_row = int32(cell_row - up)
                    for back in range(windows_across):
                        window_column = int32(cell_column - back)
                        if 0 <= window_row < ho and 0 <= window_column < wo:
                            if keeps:
                                pixel = (window_row - kept_row) * held_across + (window_column - kept_column)
                                at = uint32(pixel * quads + quad)
                                load_wide(gradients, uint32(wide * at), taken)
                                for k in range(0, wide, 4):
                                    where[k], where[k + 1], where[k + 2], where[k + 3] = load4(
                                        places, place_in_group(at, k)
                                    )
                            else:
                                pixel = image * (ho * wo) + (window_row * wo + window_column)
                                source = index(pixel * c + int64(channel))
                                load_wide(dy, source, taken)
                                if not in_pairs:
                                    for k in range(0, wide, 4):
                                        where[k], where[k + 1], where[k + 2], where[k + 3] = load4(place, source + k)
                            for i in range(sh):
                                for j in range(sw):
                                    if up * sh + i < span_down and back * sw + j < span_across:
                                        here = int32((row + i) * width + (column + j))
                                        first = wide * (i * sw + j)
                                        for k in range(wide):
                                            totals[first + k] += taken[k] if where[k] == here else float32(0)
                store_cell(dx, image, row, column, channel, totals, taken)

    tiles = tile.counts(c)
    return Launch(
        max_pool2d_backward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            (size_of_one + 4) * images * ho * wo * c,
            size_of_one * images * height * width * c,
            images * ho * wo * c,
        ),
    )
