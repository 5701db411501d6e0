"""Convolution as a matrix product on tensor cores, in TF32: implicit_gemm.py by kernels/tensor_tiles.py.

    forward          y  (pixels, c_out)  =  windows of x (pixels, taps)        @  w (taps, c_out)
    weight gradient  dw (taps, c_out)    =  windows of x, transposed           @  dy (pixels, c_out)
    input gradient   dx (pixels, c_in)   =  pixels of dy around each of x      @  w, transposed

Four neighbouring channels are copied at once, so c_in and c_out are multiples of 4 and all arrays start at multiples of
16 bytes. What a pixel and what a tap contribute to an address is found apart from each other and added: a pixel's part
once for all taps, a tap's part once for all pixels of a thread. With a kernel of 1x1 and no padding all of it folds to
a row times c_in: a plain matrix product.

Edges    As the definition's (reference.py): the padding's zeros take part, but the input gradient has no product where
         there is no dy. Rounding to TF32 makes infinity of what is above (2 - 2^-11) 2^127.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.conv.direct import EXAMPLE
from kernels.conv.geometry import Geometry
from kernels.device import WARP, inlined
from kernels.intrinsics import store2
from kernels.launch import Floats, Int64, Launch, blocks_for, kernel
from kernels.tensor_tiles import (
    FAR,
    LARGE,
    MEDIUM,
    NARROW,
    SMALL,
    WIDE,
    Side,
    TensorTile,
    on_both,
    place_of,
    tensor_product,
)
from kernels.tiles import slices_of

INSTRUCTIONS = ("HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128", "STG.E.64")
WITH_LDMATRIX = (*INSTRUCTIONS, "LDSM.16.M88.4")
REGISTERS = 248  # of which the register file holds two blocks of the largest tile, 128 threads each
STAGE = Geometry(h=8, w=8, c_in=256, kh=3, kw=3, c_out=256, sh=1, sw=1, ph=1, pw=1)
STRIDED = Geometry(h=13, w=11, c_in=12, kh=5, kw=3, c_out=20, sh=2, sw=3, ph=2, pw=1)
POINTS = Geometry(h=16, w=16, c_in=64, kh=1, kw=1, c_out=128, sh=1, sw=1, ph=0, pw=0)


def _window(geometry: Geometry, index: Any) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Make the parts of `Side` for the windows of x: of a pixel, of a tap, and whether both meet within the image."""
    h, w, c_in, _, kw, _, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    is_matrix = geometry.kh == kw == sh == sw == 1 and ph == pw == 0
    is_padded = ph > 0 or pw > 0

    @inlined
    def pixel(source, row):  # noqa: ARG001
        if is_matrix:
            return 0, 0, index(row * c_in)
        line, column = row // wo % ho * sh - ph, row % wo * sw - pw
        return line, column, index(((row // (ho * wo) * h + line) * w + column) * c_in)

    @inlined
    def tap(source, step):  # noqa: ARG001
        if is_matrix:
            return 0, 0, index(step)
        i, j = step // (kw * c_in), step // c_in % kw
        return i, j, index((i * w + j) * c_in + step % c_in)

    @inlined
    def inside(line_u, line_v, step_u, step_v):
        if is_padded:
            return uint32(line_u + step_u) < h and uint32(line_v + step_v) < w
        return uint32(line_u + step_u) < FAR

    return pixel, tap, inside


def _matrix(columns: int, index: Any, along_depth: bool) -> Side:
    """A factor (depth, columns) as it is stored."""

    @inlined
    def of_line(source, line):  # noqa: ARG001
        return 0, 0, index(line)

    @inlined
    def of_step(source, step):  # noqa: ARG001
        return 0, 0, index(step * columns)

    return Side(of_line, of_step, on_both, along_depth)


@kernel(
    traffic="x, w, bias -> y",
    registers=REGISTERS,
    instructions=WITH_LDMATRIX,
    examples=[
        (LARGE, STAGE, False, uint32),
        (WIDE, POINTS, True, uint32),
        (MEDIUM, STAGE, True, uint32),
        (NARROW, EXAMPLE, False, uint32),
        (SMALL, STRIDED, True, uint32),
        (LARGE, STAGE, True, int64),
    ],
)
def conv2d_forward_tensor_core(tile: TensorTile, geometry: Geometry, with_bias: bool, index: Any) -> Launch:
    """One tile a block of y (slices, n, ho, wo, c_out); a slice is the sum over `span` taps, the first has the bias."""
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    pixel, tap, inside = _window(geometry, index)
    place_of_block = place_of(tile)

    @inlined
    def begin(target, k):
        _, bias, part, _ = target
        if with_bias and part == 0:
            return bias[k], bias[k + 1]
        return float32(0), float32(0)

    @inlined
    def store(target, row, k, left, right):
        y, _, part, rows = target
        store2(y, index((part * rows + row) * c_out + k), left, right)

    multiply = tensor_product(tile, index, Side(pixel, tap, inside, True), _matrix(c_out, index, False), store, begin)

    def conv2d_forward(x: Floats, w: Floats, bias: Floats, y: Floats, n: Int64, span: Int64):
        rows = n * pixels
        part, row, k = place_of_block(rows, c_out)
        first = part * span
        multiply((x, 0), (w, 0), (y, bias, part, rows), rows, c_out, row, k, first, min(first + span, taps))

    return Launch(
        conv2d_forward,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * pixels, c_out) * slices_of(taps, span),
        cost=lambda n, span: geometry.forward_cost(n, slices_of(taps, span)),
        shared_bytes=tile.shared_bytes(True, False),
    )


@kernel(
    traffic="x, dy -> dw",
    registers=REGISTERS,
    instructions=INSTRUCTIONS,
    examples=[
        (LARGE, STAGE, uint32),
        (WIDE, POINTS, uint32),
        (MEDIUM, STAGE, uint32),
        (NARROW, EXAMPLE, uint32),
        (SMALL, STRIDED, uint32),
        (LARGE, STAGE, int64),
    ],
)
def conv2d_backward_weight_tensor_core(tile: TensorTile, geometry: Geometry, index: Any) -> Launch:
    """One tile a block of dw (slices, kh, kw, c_in, c_out); a slice is the sum over `span` pixels of dy."""
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    pixel, tap, inside = _window(geometry, index)
    place_of_block = place_of(tile)

    @inlined
    def store(target, row, k, left, right):
        dw, part = target
        store2(dw, index((part * taps + row) * c_out + k), left, right)

    multiply = tensor_product(tile, index, Side(tap, pixel, inside, False), _matrix(c_out, index, False), store)

    def conv2d_backward_weight(x: Floats, dy: Floats, dw: Floats, n: Int64, span: Int64):
        part, row, k = place_of_block(taps, c_out)
        first = part * span
        multiply((x, 0), (dy, 0), (dw, part), taps, c_out, row, k, first, min(first + span, n * pixels))

    return Launch(
        conv2d_backward_weight,
        block=tile.threads,
        grid=lambda n, span: tile.cover(taps, c_out) * slices_of(n * pixels, span),
        cost=lambda n, span: geometry.backward_weight_cost(n, slices_of(n * pixels, span)),
        shared_bytes=tile.shared_bytes(False, False),
    )


@kernel(
    traffic="dy, w -> dx",
    registers=REGISTERS,
    instructions=WITH_LDMATRIX,
    examples=[
        (LARGE, STAGE, uint32),
        (WIDE, POINTS, uint32),
        (MEDIUM, STAGE, uint32),
        (NARROW, EXAMPLE, uint32),
        (SMALL, STRIDED, uint32),
        (LARGE, STAGE, int64),
    ],
)
def conv2d_backward_input_tensor_core(tile: TensorTile, geometry: Geometry, index: Any) -> Launch:
    """One tile a block of dx (slices, n, h, w, c_in); a slice is the sum over `span` steps.

    A block works on one of the sh*sw phases. There row (image, t, u) is the pixel (t*sh + .., u*sw + ..) of x, and step
    (a, b, k) is channel k of the dy that meets it by tap (a*sh + .., b*sw + ..). Phases are of one size, the largest.
    """
    h, w_in, c_in, kh, kw, c_out, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    lines, columns = blocks_for(h, sh), blocks_for(w_in, sw)
    taps_right = blocks_for(kw, sw)
    phases, rows_of_image, depth = geometry.input_products()
    place_of_block = place_of(tile)

    @inlined
    def of_pixel(phase, row):
        """The dy that meets a pixel of x by the phase's first tap."""
        p = row // columns % lines - (phase // sw - ph) // sh
        q = row % columns - (phase % sw - pw) // sw
        return p, q, index(((row // rows_of_image * ho + p) * wo + q) * c_out)

    @inlined
    def steps(phase, step):
        """(a, b, tap exists, its weights' offset): a and b count taps of the phase."""
        a, b = step // (taps_right * c_out), step // c_out % taps_right
        i, j = phase // sw + sh * a, phase % sw + sw * b
        return a, b, i < kh and j < kw, index((i * kw + j) * (c_in * c_out) + step % c_out)

    @inlined
    def of_tap(phase, step):
        a, b, exists, _ = steps(phase, step)
        return -a if exists else -2 * FAR, -b, index(step % c_out - (a * wo + b) * c_out)

    @inlined
    def within(line_u, line_v, step_u, step_v):
        return uint32(line_u + step_u) < ho and uint32(line_v + step_v) < wo

    @inlined
    def of_channel(phase, c):  # noqa: ARG001
        return 0, 0, index(c * c_out)

    @inlined
    def of_weights(phase, step):
        _, _, exists, offset = steps(phase, step)
        return 0 if exists else 1, 0, offset

    @inlined
    def find_dx(phase, row, c, part, n):
        """Whether the phase has such a pixel, and its place."""
        line = row // columns % lines * sh + (phase // sw - ph) % sh
        column = row % columns * sw + (phase % sw - pw) % sw
        image = part * n + row // rows_of_image
        return line < h and column < w_in, index(((image * h + line) * w_in + column) * c_in + c)

    @inlined
    def store(target, row, c, left, right):
        dx, phase, part, n = target
        exists, place = find_dx(phase, row, c, part, n)
        if exists:
            store2(dx, place, left, right)

    dy_side, w_side = Side(of_pixel, of_tap, within, True), Side(of_channel, of_weights, on_both, True)
    multiply = tensor_product(tile, index, dy_side, w_side, store)
    warp_rows, warp_columns = tile.warp_rows, tile.warp_columns
    warps_across, own_columns = tile.columns // warp_columns, warp_columns // 4
    own = warp_rows * warp_columns // WARP

    def conv2d_backward_input(dy: Floats, w: Floats, dx: Floats, n: Int64, span: Int64):
        rows = n * rows_of_image
        number, first_row, first_c = place_of_block(rows, c_in)
        part, phase = number // phases, number % phases
        first = part * span
        last = min(first + span, depth)
        target = dx, phase, part, n
        if multiply((dy, phase), (w, phase), target, rows, c_in, first_row, first_c, first, last):
            # Perhaps a zero, in place of a dy that does not exist, times a weight that is not finite; the definition
            # has no such product. So the thread sums what it stored as NaN once more, in float32 and without them.
            thread = uint32(cuda.threadIdx.x)
            warp, lane = thread // WARP, thread % WARP
            for i in range(own):
                row = index(first_row + warp // warps_across * warp_rows + i // own_columns * 8 + lane // 4)
                c = warp % warps_across * warp_columns + i % own_columns // 2 * 8 + lane % 4 * 2 + i % 2
                c = index(first_c + c)
                if row < rows and c < c_in:
                    exists, place = find_dx(phase, row, c, part, n)
                    if exists and dx[place] != dx[place]:
                        line_u, line_v, offset = of_pixel(phase, row)
                        value = float32(0)
                        for k in range(first, last):
                            step_u, step_v, step_offset = of_tap(phase, index(k))
                            if within(line_u, line_v, step_u, step_v):
                                _, _, weight = of_weights(phase, index(k))
                                value += dy[index(offset + step_offset)] * w[index(c * c_out + weight)]
                        dx[place] = value

    return Launch(
        conv2d_backward_input,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * rows_of_image, c_in) * phases * slices_of(depth, span),
        cost=lambda n, span: geometry.backward_input_cost(n, slices_of(depth, span)),
        shared_bytes=tile.shared_bytes(True, True),
    )
