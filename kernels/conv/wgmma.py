"""Convolution by wgmma, Hopper's own tensor-core instruction, in TF32: tensor_core.py by matmul/wgmma_product.py.

    forward          y  (pixels, c_out)  =  windows of x (pixels, taps)        @  w (taps, c_out)
    input gradient   dx (pixels, c_in)   =  pixels of dy around each of x      @  w, transposed
    weight gradient  dw (taps, c_out)    =  windows of x, transposed           @  dy (pixels, c_out)

The activations are rounded on their way through registers, the weights when they are packed (wgmma_pack.py), from where
the bulk copy engine brings them. The weight gradient turns both of its factors as it stores them to shared memory: one
more instruction a word, and no pass over memory.

Channels, alignment, edges and non-finite numbers are as in tensor_core.py.
"""

from typing import Any

from numba import cuda, int64, uint32

from kernels.conv.direct import EXAMPLE
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core import POINTS, STAGE, STRIDED
from kernels.conv.tensor_core_sides import input_gradient, matrix, windows_by_pixel, windows_by_tap
from kernels.conv.wgmma_pack import slabs_shape
from kernels.device import WARP, inlined
from kernels.intrinsics import store2
from kernels.launch import Floats, Int64, Launch, UInt32s, kernel
from kernels.matmul.tensor_tiles import DEPTH
from kernels.matmul.tiles import Tile, slices_of
from kernels.matmul.tiles import place_of as place_of_tile
from kernels.matmul.wgmma_product import wgmma_product
from kernels.matmul.wgmma_tiles import LARGE, LOW, NARROW, WIDE, WgmmaTile

ARCHITECTURES = ("sm_90",)
TURNED = ("HGMMA", "LDG.E.128", "STS", "STG.E.64", "FENCE.VIEW.ASYNC")
IN_BULK = ("HGMMA", "LDG.E.128", "STS.128", "STG.E.64", "FENCE.VIEW.ASYNC", "UBLKCP", "SYNCS")
REGISTERS = 128  # of which the register file holds two blocks of 256 threads
BOTH = 160  # where a thread keeps its parts of both factors: one block


def _place_of(tile: WgmmaTile) -> Any:
    return place_of_tile(Tile(tile.rows, tile.columns, DEPTH, 1, 1))


@kernel(
    traffic="x, w, bias -> y",
    registers=REGISTERS,
    instructions=IN_BULK,
    architectures=ARCHITECTURES,
    examples=[
        (LARGE, STAGE, False, uint32),
        (WIDE, POINTS, True, uint32),
        (NARROW, EXAMPLE, False, uint32),
        (LOW, STRIDED, True, uint32),
        (LARGE, STAGE, True, int64),
    ],
)
def conv2d_forward_wgmma(tile: WgmmaTile, geometry: Geometry, with_bias: bool, index: Any) -> Launch:
    """One tile a block of y (slices, n, ho, wo, c_out); a slice is the sum over `span` taps, the first has the bias.

    w is that of conv2d_forward_pack_wgmma.
    """
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    _, _, slabs, _, _ = slabs_shape(tile, c_out, taps)
    column_floats, tile_columns = slabs * tile.slab_floats, tile.columns
    place_of_block = _place_of(tile)

    @inlined
    def store(target, row, k, left, right):
        y, bias, part, rows = target
        if with_bias and part == 0:
            left, right = left + bias[k], right + bias[k + 1]
        store2(y, index((part * rows + row) * c_out + k), left, right)

    multiply = wgmma_product(tile, index, windows_by_pixel(geometry, index), None, store)

    def conv2d_forward(x: Floats, w: UInt32s, bias: Floats, y: Floats, n: Int64, span: Int64):
        rows = n * pixels
        part, row, k = place_of_block(rows, c_out)
        first = part * span
        slabs = w, k // tile_columns * column_floats
        multiply((x, 0), slabs, (y, bias, part, rows), rows, c_out, row, k, first, min(first + span, taps))

    return Launch(
        conv2d_forward,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * pixels, c_out) * slices_of(taps, span),
        cost=lambda n, span: geometry.forward_cost(n, slices_of(taps, span)),
        shared_bytes=tile.shared_bytes,
    )


@kernel(
    traffic="dy, packed, w -> dx",
    registers=REGISTERS,
    instructions=IN_BULK,
    architectures=ARCHITECTURES,
    examples=[
        (LARGE, STAGE, uint32),
        (WIDE, POINTS, uint32),
        (NARROW, EXAMPLE, uint32),
        (LOW, STRIDED, uint32),
        (LARGE, STAGE, int64),
    ],
)
def conv2d_backward_input_wgmma(tile: WgmmaTile, geometry: Geometry, index: Any) -> Launch:
    """One tile a block of dx (slices, n, h, w, c_in); a slice is the sum over `span` steps, for one of the phases.

    `packed` is w by conv2d_backward_input_pack_wgmma; w itself is read where a sum is NaN.
    """
    c_in = geometry.c_in
    phases, rows_of_image, depth = geometry.input_products()
    _, across, slabs, _, _ = slabs_shape(tile, c_in, depth, phases)
    column_floats, tile_columns = slabs * tile.slab_floats, tile.columns
    place_of_block = _place_of(tile)
    dy_side, _, find, again = input_gradient(geometry, index)
    own = tile_columns // 2

    @inlined
    def element(dy, place, channel):  # noqa: ARG001
        return dy[place]

    @inlined
    def store(target, row, c, left, right):
        dx, phase, part, n = target
        exists, place = find(phase, row, c, part, n)
        if exists:
            store2(dx, place, left, right)

    multiply = wgmma_product(tile, index, dy_side, None, store)

    def conv2d_backward_input(dy: Floats, packed: UInt32s, w: Floats, dx: Floats, n: Int64, span: Int64):
        rows = n * rows_of_image
        number, first_row, first_c = place_of_block(rows, c_in)
        part, phase = number // phases, number % phases
        first = part * span
        last = min(first + span, depth)
        slabs = packed, (phase * across + first_c // tile_columns) * column_floats
        if multiply((dy, phase), slabs, (dx, phase, part, n), rows, c_in, first_row, first_c, first, last):
            # Perhaps zero times what is not finite, see `input_gradient`: the thread's elements that are NaN once more.
            warp, lane = uint32(cuda.threadIdx.x) // WARP, uint32(cuda.threadIdx.x) % WARP
            for i in range(own):
                row = index(first_row + warp * 16 + lane // 4 + i // 2 % 2 * 8)
                c = index(first_c + i // 4 * 8 + lane % 4 * 2 + i % 2)
                if row < rows and c < c_in:
                    exists, place = find(phase, row, c, part, n)
                    if exists and dx[place] != dx[place]:
                        dx[place] = again(dy, w, phase, row, c, first, last, element)

    return Launch(
        conv2d_backward_input,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * rows_of_image, c_in) * phases * slices_of(depth, span),
        cost=lambda n, span: geometry.backward_input_cost(n, slices_of(depth, span)),
        shared_bytes=tile.shared_bytes,
    )


@kernel(
    traffic="x, dy -> dw",
    registers=BOTH,
    instructions=TURNED,
    architectures=ARCHITECTURES,
    examples=[
        (LARGE, STAGE, uint32),
        (WIDE, POINTS, uint32),
        (NARROW, EXAMPLE, uint32),
        (LOW, STRIDED, uint32),
        (LARGE, STAGE, int64),
    ],
)
def conv2d_backward_weight_wgmma(tile: WgmmaTile, geometry: Geometry, index: Any) -> Launch:
    """One tile a block of dw (slices, kh, kw, c_in, c_out); a slice is the sum over `span` pixels of dy."""
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    place_of_block = _place_of(tile)

    @inlined
    def store(target, row, k, left, right):
        dw, part = target
        store2(dw, index((part * taps + row) * c_out + k), left, right)

    multiply = wgmma_product(tile, index, windows_by_tap(geometry, index), matrix(c_out, index), store)

    def conv2d_backward_weight(x: Floats, dy: Floats, dw: Floats, n: Int64, span: Int64):
        part, row, k = place_of_block(taps, c_out)
        first = part * span
        multiply((x, 0), (dy, 0), (dw, part), taps, c_out, row, k, first, min(first + span, n * pixels))

    return Launch(
        conv2d_backward_weight,
        block=tile.threads,
        grid=lambda n, span: tile.cover(taps, c_out) * slices_of(n * pixels, span),
        cost=lambda n, span: geometry.backward_weight_cost(n, slices_of(n * pixels, span)),
        shared_bytes=tile.shared_bytes,
    )
