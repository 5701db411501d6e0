"""Average pooling by tiles (tile.py): what windows share passes once.

Traffic  forward reads x once, and a halo around a tile, and writes y once; backward reads dy alike and writes dx once.
         Sums are made in the order of average.py.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int32, int64, uint32

from kernels.launch import Cost, Int64, Launch, blocks_for, kernel
from kernels.pooling.divisor import divisor_of
from kernels.pooling.geometry import Geometry
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
    (uint32, Geometry(32, 32, 64, (3, 3), (1, 1), (1, 1)), False, FLOAT32),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1)), False, FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), ceil_mode=True), True, FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (1, 1), (1, 1)), False, BFLOAT16),
    (int64, Geometry(7, 11, 8, (5, 3), (1, 2), (2, 1)), False, FLOAT16),
]
EXAMPLES = [
    *OVERLAPPING,
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), True, FLOAT32),
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), True, BFLOAT16),
]


@kernel(traffic="x -> y", registers=64, instructions=(*WIDE, "LDS.128", "STS.128"), examples=OVERLAPPING)
def avg_pool2d_forward_tiled(index: Any, geometry: Geometry, count_include_pad: bool, storage: Storage) -> Launch:
    """A group of channels of a window a thread, out of what the block keeps of x. c is a multiple of a group."""
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    of_one, kept_as = storage.bytes, kept_type(storage)
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), tile, divisor = geometry.output, forward_tile(geometry, wide), divisor_of(geometry, count_include_pad)
    assert tile is not None
    (_, held_across), quads, items, size = tile.held, tile.quads, tile.items, tile.floats
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    slot = slot_of(tile)
    keep = copier(tile, c, index)(group_copier(storage))

    def avg_pool2d_forward(x: stored, y: stored, images: Int64):  # noqa: ARG001 - images is for the grid
        kept = cuda.shared.array(size, kept_as, alignment=16)
        totals = cuda.local.array(wide, float32)
        values = cuda.local.array(wide, float32)
        image, first_row, first_column, first_channel = place_of_block()
        top, left = int32(int64(first_row) * sh - ph), int32(int64(first_column) * sw - pw)
        keep((x, kept), image, top, left, first_channel)
        cuda.syncthreads()
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            window_row, window_column = uint32(first_row + down), uint32(first_column + across)
            channel = uint32(first_channel + wide * quad)
            if e < items and window_row < ho and window_column < wo and channel < c:
                up, back = int32(top + down * sh), int32(left + across * sw)
                for k in range(wide):
                    totals[k] = float32(0)
                for i in range(kh):
                    row = up + i
                    for j in range(kw):
                        column = back + j
                        if 0 <= row < height and 0 <= column < width:
                            at = ((row - kept_row) * held_across + (column - kept_column)) * quads + quad
                            load_wide(kept, uint32(wide * slot(uint32(at))), values)
                            for k in range(wide):
                                totals[k] += values[k]
                by = divisor(window_row, window_column)
                pixel = (image * ho + int64(window_row)) * wo + int64(window_column)
                for k in range(wide):
                    totals[k] /= by
                store_wide(y, index(pixel * c + int64(channel)), totals)

    tiles = tile.counts(c)
    return Launch(
        avg_pool2d_forward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            of_one * images * height * width * c, of_one * images * ho * wo * c, images * ho * wo * c * kh * kw
        ),
    )


@kernel(traffic="dy -> dx", registers=64, instructions=WIDE, examples=EXAMPLES)
def avg_pool2d_backward_tiled(index: Any, geometry: Geometry, count_include_pad: bool, storage: Storage) -> Launch:
    """A group of channels of a cell a thread: of each of its windows it takes dy once. c is a multiple of a group."""
    stored: Any = storage.pointer
    load_wide, wide = storage.load_wide, storage.wide
    of_one, kept_as = storage.bytes, kept_type(storage)
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    tile, divisor = backward_tile(geometry, 1, wide), divisor_of(geometry, count_include_pad)
    assert tile is not None
    cells_down, cells_across = tile.down.number, tile.across.number
    (_, held_across), quads, items = tile.held, tile.quads, tile.items
    keeps = geometry.overlap != (1, 1)
    size, totals_size = tile.floats if keeps else wide, wide * sh * sw
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    keep, store_cell = copier(tile, c, index)(group_copier(storage)), cell_storer(geometry, index, storage)

    def avg_pool2d_backward(dy: stored, dx: stored, images: Int64):  # noqa: ARG001 - images is for the grid
        totals = cuda.local.array(totals_size, float32)
        values = cuda.local.array(wide, float32)
        image, first_row, first_column, first_channel = place_of_block()
        top = int32(int64(first_row) - (windows_down - 1))
        left = int32(int64(first_column) - (windows_across - 1))
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        if keeps:
            gradients = cuda.shared.array(size, kept_as, alignment=16)
            keep((dy, gradients), image, top, left, first_channel)
            cuda.syncthreads()
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            cell_row, cell_column = int32(first_row + down), int32(first_column + across)
            channel = uint32(first_channel + wide * quad)
            if e < items and cell_row < cells_down and cell_column < cells_across and channel < c:
                for k in range(totals_size):
                    totals[k] = float32(0)
                for up in range(windows_down):
                    window_row = int32(cell_row - up)
                    for back in range(windows_across):
                        window_column = int32(cell_column - back)
                        if 0 <= window_row < ho and 0 <= window_column < wo:
                            if keeps:
                                pixel = (window_row - kept_row) * held_across + (window_column - kept_column)
                                load_wide(gradients, uint32(wide * (pixel * quads + quad)), values)
                            else:
                                pixel = image * (ho * wo) + (window_row * wo + window_column)
                                load_wide(dy, index(pixel * c + int64(channel)), values)
                            share = float32(1) / divisor(window_row, window_column)
                            for i in range(sh):
                                for j in range(sw):
                                    if up * sh + i < kh and back * sw + j < kw:
                                        first = wide * (i * sw + j)
                                        for k in range(wide):
                                            totals[first + k] += values[k] * share
                row, column = int32(cell_row * sh - ph), int32(cell_column * sw - pw)
                store_cell(dx, image, row, column, channel, totals, values)

    tiles = tile.counts(c)
    return Launch(
        avg_pool2d_backward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            of_one * images * ho * wo * c, of_one * images * height * width * c, images * ho * wo * c * kh * kw
        ),
    )
