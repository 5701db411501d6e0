"""Average pooling by tiles (tile.py): what windows share passes once.

Traffic  forward reads x once, and a halo around a tile, and writes y once; backward reads dy alike and writes dx once.
         Sums are made in the order of average.py.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int32, int64, uint32

from kernels.device import inlined
from kernels.intrinsics import load4, store4
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel
from kernels.pooling.divisor import divisor_of
from kernels.pooling.geometry import Geometry
from kernels.pooling.tile import BLOCK, backward_tile, copier, forward_tile, item_of, place_of, slot_of

WIDE = "LDG.E.128", "STG.E.128"
OVERLAPPING = [
    (uint32, Geometry(32, 32, 64, (3, 3), (1, 1), (1, 1)), False),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1)), False),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), ceil_mode=True), True),
]
EXAMPLES = [*OVERLAPPING, (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), True)]


@inlined
def _copy(arrays, source, target):
    whole, kept = arrays
    a, b, c, d = load4(whole, source)
    store4(kept, target, a, b, c, d)


@kernel(traffic="x -> y", registers=64, instructions=(*WIDE, "LDS.128", "STS.128"), examples=OVERLAPPING)
def avg_pool2d_forward_tiled(index: Any, geometry: Geometry, count_include_pad: bool) -> Launch:
    """Four channels of a window a thread, out of what the block keeps of x. c is a multiple of 4."""
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), tile, divisor = geometry.output, forward_tile(geometry), divisor_of(geometry, count_include_pad)
    assert tile is not None
    (_, held_across), quads, items, size = tile.held, tile.quads, tile.items, tile.floats
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    slot = slot_of(tile)
    keep = copier(tile, c, index)(_copy)

    def avg_pool2d_forward(x: Floats, y: Floats, images: Int64):  # noqa: ARG001 - images is for the grid
        kept = cuda.shared.array(size, float32, alignment=16)
        image, first_row, first_column, first_channel = place_of_block()
        top, left = int32(int64(first_row) * sh - ph), int32(int64(first_column) * sw - pw)
        keep((x, kept), image, top, left, first_channel)
        cuda.syncthreads()
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            window_row, window_column = uint32(first_row + down), uint32(first_column + across)
            channel = uint32(first_channel + 4 * quad)
            if e < items and window_row < ho and window_column < wo and channel < c:
                up, back = int32(top + down * sh), int32(left + across * sw)
                total0 = total1 = total2 = total3 = float32(0)
                for i in range(kh):
                    row = up + i
                    for j in range(kw):
                        column = back + j
                        if 0 <= row < height and 0 <= column < width:
                            at = ((row - kept_row) * held_across + (column - kept_column)) * quads + quad
                            x0, x1, x2, x3 = load4(kept, uint32(4 * slot(uint32(at))))
                            total0 += x0
                            total1 += x1
                            total2 += x2
                            total3 += x3
                by = divisor(window_row, window_column)
                pixel = (image * ho + int64(window_row)) * wo + int64(window_column)
                store4(y, index(pixel * c + int64(channel)), total0 / by, total1 / by, total2 / by, total3 / by)

    tiles = tile.counts(c)
    return Launch(
        avg_pool2d_forward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            4 * images * height * width * c, 4 * images * ho * wo * c, images * ho * wo * c * kh * kw
        ),
    )


@kernel(traffic="dy -> dx", registers=64, instructions=WIDE, examples=EXAMPLES)
def avg_pool2d_backward_tiled(index: Any, geometry: Geometry, count_include_pad: bool) -> Launch:
    """Four channels of a cell a thread: of each of its windows it takes dy once. c is a multiple of 4."""
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    tile, divisor = backward_tile(geometry, 1), divisor_of(geometry, count_include_pad)
    assert tile is not None
    cells_down, cells_across = tile.down.number, tile.across.number
    (_, held_across), quads, items = tile.held, tile.quads, tile.items
    keeps = geometry.overlap != (1, 1)
    size, totals_size = tile.floats if keeps else 4, 4 * sh * sw
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    keep = copier(tile, c, index)(_copy)

    def avg_pool2d_backward(dy: Floats, dx: Floats, images: Int64):  # noqa: ARG001 - images is for the grid
        totals = cuda.local.array(totals_size, float32)
        image, first_row, first_column, first_channel = place_of_block()
        top = int32(int64(first_row) - (windows_down - 1))
        left = int32(int64(first_column) - (windows_across - 1))
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        if keeps:
            gradients = cuda.shared.array(size, float32, alignment=16)
            keep((dy, gradients), image, top, left, first_channel)
            cuda.syncthreads()
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            cell_row, cell_column = int32(first_row + down), int32(first_column + across)
            channel = uint32(first_channel + 4 * quad)
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
                                dy0, dy1, dy2, dy3 = load4(gradients, uint32(4 * (pixel * quads + quad)))
                            else:
                                pixel = image * (ho * wo) + (window_row * wo + window_column)
                                dy0, dy1, dy2, dy3 = load4(dy, index(pixel * c + int64(channel)))
                            share = float32(1) / divisor(window_row, window_column)
                            for i in range(sh):
                                for j in range(sw):
                                    if up * sh + i < kh and back * sw + j < kw:
                                        k = 4 * (i * sw + j)
                                        totals[k] += dy0 * share
                                        totals[k + 1] += dy1 * share
                                        totals[k + 2] += dy2 * share
                                        totals[k + 3] += dy3 * share
                row, column = int32(cell_row * sh - ph), int32(cell_column * sw - pw)
                for i in range(sh):
                    for j in range(sw):
                        if 0 <= row + i < height and 0 <= column + j < width:
                            k = 4 * (i * sw + j)
                            pixel = (image * height + (row + i)) * width + (column + j)
                            target = index(pixel * c + int64(channel))
                            store4(dx, target, totals[k], totals[k + 1], totals[k + 2], totals[k + 3])

    tiles = tile.counts(c)
    return Launch(
        avg_pool2d_backward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            4 * images * ho * wo * c, 4 * images * height * width * c, images * ho * wo * c * kh * kw
        ),
    )
