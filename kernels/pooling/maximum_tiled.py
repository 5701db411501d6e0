"""Max pooling by tiles (tile.py): what windows share passes once.

Traffic  forward reads x once, and a halo around a tile, and writes y and index once; backward reads dy and index alike
         and writes dx once. Sums and comparisons are made in the order of maximum.py: the bits are the same.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int32, int64, uint32

from kernels.device import inlined
from kernels.intrinsics import load4, store4
from kernels.launch import Cost, Floats, Int32s, Int64, Launch, blocks_for, kernel
from kernels.pooling.extremes import LOWEST, first_real, wins
from kernels.pooling.geometry import Geometry
from kernels.pooling.tile import BLOCK, backward_tile, copier, forward_tile, item_of, place_of, slot_of

WIDE = "LDG.E.128", "STG.E.128"
OVERLAPPING = [
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1))),
    (uint32, Geometry(28, 28, 32, (3, 3), (1, 1), (1, 1))),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1))),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), (2, 3), True)),
]
EXAMPLES = [*OVERLAPPING, (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)))]


@kernel(traffic="x -> y, place", registers=64, instructions=(*WIDE, "LDS.128", "STS.128"), examples=OVERLAPPING)
def max_pool2d_forward_tiled(index: Any, geometry: Geometry) -> Launch:
    """Four channels of a window a thread, out of what the block keeps of x. c is a multiple of 4."""
    height, width, c, (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    (ho, wo), tile = geometry.output, forward_tile(geometry)
    assert tile is not None
    (_, held_across), quads, items, size = tile.held, tile.quads, tile.items, tile.floats
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)
    slot = slot_of(tile)

    @inlined
    def copy(arrays, source, target):
        x, kept = arrays
        a, b, c_, d = load4(x, source)
        store4(kept, target, a, b, c_, d)

    keep = copier(tile, c, index)(copy)

    def max_pool2d_forward(x: Floats, y: Floats, place: Int32s, images: Int64):  # noqa: ARG001 - for the grid
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
                best0 = best1 = best2 = best3 = float32(LOWEST)
                where0 = where1 = where2 = where3 = int32(first_real(up, dh) * width + first_real(back, dw))
                for i in range(kh):
                    row = up + i * dh
                    for j in range(kw):
                        column = back + j * dw
                        if 0 <= row < height and 0 <= column < width:
                            here = int32(row * width + column)
                            at = ((row - kept_row) * held_across + (column - kept_column)) * quads + quad
                            a, b, c_, d = load4(kept, uint32(4 * slot(uint32(at))))
                            if wins(a, best0):
                                best0, where0 = a, here
                            if wins(b, best1):
                                best1, where1 = b, here
                            if wins(c_, best2):
                                best2, where2 = c_, here
                            if wins(d, best3):
                                best3, where3 = d, here
                pixel = (image * ho + int64(window_row)) * wo + int64(window_column)
                target = index(pixel * c + int64(channel))
                store4(y, target, best0, best1, best2, best3)
                store4(place, target, where0, where1, where2, where3)

    tiles = tile.counts(c)
    return Launch(
        max_pool2d_forward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(
            4 * images * height * width * c, 8 * images * ho * wo * c, images * ho * wo * c * kh * kw
        ),
    )


@kernel(traffic="dy, place -> dx", registers=64, instructions=WIDE, examples=EXAMPLES)
def max_pool2d_backward_tiled(index: Any, geometry: Geometry) -> Launch:
    """Four channels of a cell a thread: of each of its windows it takes dy and the place once. c is a multiple of 4."""
    height, width, c, _, (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across), (span_down, span_across) = (
        geometry.output,
        geometry.overlap,
        geometry.span,
    )
    tile = backward_tile(geometry, 2)
    assert tile is not None
    cells_down, cells_across = tile.down.number, tile.across.number
    (_, held_across), quads, items = tile.held, tile.quads, tile.items
    keeps = geometry.overlap != (1, 1)
    size, totals_size = tile.floats if keeps else 4, 4 * sh * sw
    rounds, place_of_block, item = blocks_for(items, BLOCK), place_of(tile, c), item_of(tile)

    @inlined
    def copy(arrays, source, target):
        dy, place, gradients, places = arrays
        a, b, c_, d = load4(dy, source)
        store4(gradients, target, a, b, c_, d)
        p, q, r, s = load4(place, source)
        store4(places, target, p, q, r, s)

    keep = copier(tile, c, index)(copy)

    def max_pool2d_backward(dy: Floats, place: Int32s, dx: Floats, images: Int64):  # noqa: ARG001 - for the grid
        totals = cuda.local.array(totals_size, float32)
        image, first_row, first_column, first_channel = place_of_block()
        top = int32(int64(first_row) - (windows_down - 1))
        left = int32(int64(first_column) - (windows_across - 1))
        kept_row, kept_column = int32(max(top, 0)), int32(max(left, 0))
        if keeps:
            gradients = cuda.shared.array(size, float32, alignment=16)
            places = cuda.shared.array(size, int32, alignment=16)
            keep((dy, place, gradients, places), image, top, left, first_channel)
            cuda.syncthreads()
        for turn in range(rounds):
            e = uint32(turn * BLOCK + cuda.threadIdx.x)
            down, across, quad = item(e)
            cell_row, cell_column = int32(first_row + down), int32(first_column + across)
            channel = uint32(first_channel + 4 * quad)
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
                                at = uint32(4 * (pixel * quads + quad))
                                place0, place1, place2, place3 = load4(places, at)
                                dy0, dy1, dy2, dy3 = load4(gradients, at)
                            else:
                                pixel = image * (ho * wo) + (window_row * wo + window_column)
                                source = index(pixel * c + int64(channel))
                                place0, place1, place2, place3 = load4(place, source)
                                dy0, dy1, dy2, dy3 = load4(dy, source)
                            for i in range(sh):
                                for j in range(sw):
                                    if up * sh + i < span_down and back * sw + j < span_across:
                                        here = int32((row + i) * width + (column + j))
                                        k = 4 * (i * sw + j)
                                        totals[k] += dy0 if place0 == here else float32(0)
                                        totals[k + 1] += dy1 if place1 == here else float32(0)
                                        totals[k + 2] += dy2 if place2 == here else float32(0)
                                        totals[k + 3] += dy3 if place3 == here else float32(0)
                for i in range(sh):
                    for j in range(sw):
                        if 0 <= row + i < height and 0 <= column + j < width:
                            k = 4 * (i * sw + j)
                            pixel = (image * height + (row + i)) * width + (column + j)
                            store4(
                                dx,
                                index(pixel * c + int64(channel)),
                                totals[k],
                                totals[k + 1],
                                totals[k + 2],
                                totals[k + 3],
                            )

    tiles = tile.counts(c)
    return Launch(
        max_pool2d_backward,
        BLOCK,
        grid=lambda images: images * tiles[0] * tiles[1] * tiles[2],
        cost=lambda images: Cost(8 * images * ho * wo * c, 4 * images * height * width * c, images * ho * wo * c),
    )
