"""Convolution as a matrix product whose one factor, the matrix of all windows, exists only tile by tile.

    forward          y  (pixels, c_out)  =  windows of x (pixels, taps)        @  w (taps, c_out)
    weight gradient  dw (taps, c_out)    =  windows of x, transposed           @  dy (pixels, c_out)
    input gradient   dx (pixels, c_in)   =  pixels of dy around each of x      @  w, transposed

The skeleton is that of kernels/matmul/tiles.py: what is gathered goes straight into shared memory, where kh*kw*c_in
products need it, so x is not written kh*kw times over as by a separate gather (im2col).

Images may be stored in any way, each as it likes; in shared memory they are float32, as everything that is computed.

Source   S. Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014, arXiv:1410.0759, section 3.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.conv.direct import EXAMPLE, STRIDED
from kernels.conv.geometry import Geometry, windows
from kernels.device import inlined
from kernels.launch import Floats, Int64, Launch, blocks_for, kernel
from kernels.matmul.tiles import LARGE, MEDIUM, SMALL, TALL, Tile, place_of, slices_of, tile_product
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


@kernel(
    traffic="x, w, bias -> y",
    registers=80,
    examples=[
        (LARGE, EXAMPLE, False, uint32, FLOAT32, FLOAT32),
        (MEDIUM, EXAMPLE, True, uint32, FLOAT32, FLOAT32),
        (TALL, STRIDED, True, uint32, FLOAT32, FLOAT32),
        (LARGE, EXAMPLE, True, int64, FLOAT32, FLOAT32),
        (LARGE, EXAMPLE, False, uint32, BFLOAT16, BFLOAT16),
        (TALL, STRIDED, True, uint32, FLOAT32, FLOAT16),
    ],
)
def conv2d_forward_implicit_gemm(
    tile: Tile, geometry: Geometry, with_bias: bool, index: Any, x_storage: Storage, y_storage: Storage
) -> Launch:
    """One tile a block of y (slices, n, ho, wo, c_out); a slice is the sum over `span` taps, the first has the bias."""
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    window_element = windows(geometry, index, x_storage)
    place_of_block = place_of(tile)
    of_x: Any = x_storage.pointer
    of_y: Any = y_storage.pointer
    put, x_bytes, y_bytes = y_storage.store, x_storage.bytes, y_storage.bytes

    @inlined
    def load_x(x, row, tap):
        return window_element(x, row, tap)

    @inlined
    def load_w(w, tap, k):
        return w[index(tap * c_out + k)]

    @inlined
    def store(target, row, k, value):
        y, bias, part, rows = target
        if with_bias and part == 0:
            value += bias[k]
        put(y, index((part * rows + row) * c_out + k), value)

    multiply = tile_product(tile, index, load_x, load_w, store, a_along_depth=True, b_along_depth=False)

    def conv2d_forward(x: of_x, w: Floats, bias: Floats, y: of_y, n: Int64, span: Int64):
        rows = n * pixels
        part, row, k = place_of_block(rows, c_out)
        first = part * span
        multiply(x, w, (y, bias, part, rows), rows, c_out, row, k, first, min(first + span, taps))

    return Launch(
        conv2d_forward,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * pixels, c_out) * slices_of(taps, span),
        cost=lambda n, span: geometry.forward_cost(n, slices_of(taps, span), x_bytes, 4, y_bytes),
    )


@kernel(
    traffic="x, dy -> dw",
    registers=48,
    examples=[
        (LARGE, EXAMPLE, uint32, FLOAT32, FLOAT32),
        (SMALL, STRIDED, uint32, FLOAT32, FLOAT32),
        (MEDIUM, EXAMPLE, int64, FLOAT32, FLOAT32),
        (LARGE, EXAMPLE, uint32, BFLOAT16, BFLOAT16),
        (SMALL, STRIDED, uint32, FLOAT32, FLOAT16),
    ],
)
def conv2d_backward_weight_implicit_gemm(
    tile: Tile, geometry: Geometry, index: Any, x_storage: Storage, dy_storage: Storage
) -> Launch:
    """One tile a block of dw (slices, kh, kw, c_in, c_out); a slice is the sum over `span` pixels of dy."""
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    window_element = windows(geometry, index, x_storage)
    place_of_block = place_of(tile)
    of_x: Any = x_storage.pointer
    of_dy: Any = dy_storage.pointer
    get, x_bytes, dy_bytes = dy_storage.load, x_storage.bytes, dy_storage.bytes

    @inlined
    def load_x(x, tap, row):
        return window_element(x, row, tap)

    @inlined
    def load_dy(dy, row, k):
        return get(dy, index(row * c_out + k))

    @inlined
    def store(target, tap, k, value):
        dw, part = target
        dw[index((part * taps + tap) * c_out + k)] = value

    multiply = tile_product(tile, index, load_x, load_dy, store, a_along_depth=False, b_along_depth=False)

    def conv2d_backward_weight(x: of_x, dy: of_dy, dw: Floats, n: Int64, span: Int64):
        part, tap, k = place_of_block(taps, c_out)
        first = part * span
        multiply(x, dy, (dw, part), taps, c_out, tap, k, first, min(first + span, n * pixels))

    return Launch(
        conv2d_backward_weight,
        block=tile.threads,
        grid=lambda n, span: tile.cover(taps, c_out) * slices_of(n * pixels, span),
        cost=lambda n, span: geometry.backward_weight_cost(n, slices_of(n * pixels, span), x_bytes, dy_bytes),
    )


@kernel(
    traffic="dy, w -> dx",
    registers=96,
    examples=[
        (LARGE, EXAMPLE, uint32, FLOAT32, FLOAT32),
        (TALL, STRIDED, uint32, FLOAT32, FLOAT32),
        (MEDIUM, EXAMPLE, int64, FLOAT32, FLOAT32),
        (LARGE, EXAMPLE, uint32, BFLOAT16, BFLOAT16),
        (TALL, STRIDED, uint32, FLOAT32, FLOAT16),
    ],
)
def conv2d_backward_input_implicit_gemm(
    tile: Tile, geometry: Geometry, index: Any, dx_storage: Storage, dy_storage: Storage
) -> Launch:
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
    of_dx: Any = dx_storage.pointer
    of_dy: Any = dy_storage.pointer
    get, get_dx, put, dx_bytes, dy_bytes = (
        dy_storage.load, dx_storage.load, dx_storage.store, dx_storage.bytes, dy_storage.bytes
    )  # fmt: skip

    @inlined
    def tap(phase, step):
        """(i, j) of a step; beyond the kernel where the phase has fewer taps than others."""
        return phase // sw + sh * (step // (taps_right * c_out)), phase % sw + sw * (step // c_out % taps_right)

    @inlined
    def find_dy(phase, row, step):
        """Whether there is such a dy, and its place."""
        p = row // columns % lines - (phase // sw - ph) // sh - step // (taps_right * c_out)
        q = row % columns - (phase % sw - pw) // sw - step // c_out % taps_right
        i, j = tap(phase, step)
        exists = 0 <= p < ho and 0 <= q < wo and i < kh and j < kw
        return exists, index(((row // rows_of_image * ho + p) * wo + q) * c_out + step % c_out)

    @inlined
    def find_w(phase, step, c):
        """Whether the phase has such a tap, and the place of its weight."""
        i, j = tap(phase, step)
        return i < kh and j < kw, index(((i * kw + j) * c_in + c) * c_out + step % c_out)

    @inlined
    def load_dy(source, row, step):
        dy, phase = source
        exists, place = find_dy(phase, row, step)
        return get(dy, place) if exists else float32(0)

    @inlined
    def load_w(source, step, c):
        w, phase = source
        exists, place = find_w(phase, step, c)
        return w[place] if exists else float32(0)

    @inlined
    def find_dx(phase, row, c, part, n):
        """Whether the phase has such a pixel, and its place."""
        line = row // columns % lines * sh + (phase // sw - ph) % sh
        column = row % columns * sw + (phase % sw - pw) % sw
        image = part * n + row // rows_of_image
        return line < h and column < w_in, index(((image * h + line) * w_in + column) * c_in + c)

    @inlined
    def store(target, row, c, value):
        dx, phase, part, n = target
        exists, place = find_dx(phase, row, c, part, n)
        if exists:
            put(dx, place, value)

    multiply = tile_product(tile, index, load_dy, load_w, store, a_along_depth=True, b_along_depth=True)
    thread_rows, thread_columns, down, across = tile.thread_rows, tile.thread_columns, tile.down, tile.across

    def conv2d_backward_input(dy: of_dy, w: Floats, dx: of_dx, n: Int64, span: Int64):
        rows = n * rows_of_image
        number, first_row, first_c = place_of_block(rows, c_in)
        part, phase = number // phases, number % phases
        first = part * span
        last = min(first + span, depth)
        target = dx, phase, part, n
        if multiply((dy, phase), (w, phase), target, rows, c_in, first_row, first_c, first, last):
            # Perhaps a zero, in place of a dy that does not exist, times a weight that is not finite; the definition
            # has no such product. So the thread sums what it stored as NaN once more, without them.
            for i in range(thread_rows * thread_columns):
                row = index(first_row + cuda.threadIdx.x // across + i // thread_columns * down)
                c = index(first_c + cuda.threadIdx.x % across + i % thread_columns * across)
                if row < rows and c < c_in:
                    exists, place = find_dx(phase, row, c, part, n)
                    if exists and get_dx(dx, place) != get_dx(dx, place):
                        value = float32(0)
                        for k in range(first, last):
                            meets, given = find_dy(phase, row, index(k))
                            if meets:
                                _, weight = find_w(phase, index(k), c)
                                value += get(dy, given) * w[weight]
                        put(dx, place, value)

    return Launch(
        conv2d_backward_input,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * rows_of_image, c_in) * phases * slices_of(depth, span),
        cost=lambda n, span: geometry.backward_input_cost(n, slices_of(depth, span), dy_bytes, 4, dx_bytes),
    )
