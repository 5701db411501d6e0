"""Convolution as a matrix product on tensor cores: implicit_gemm.py by kernels/matmul/tensor_product.py.

    forward          y  (pixels, c_out)  =  windows of x (pixels, taps)        @  w (taps, c_out)
    weight gradient  dw (taps, c_out)    =  windows of x, transposed           @  dy (pixels, c_out)
    input gradient   dx (pixels, c_in)   =  pixels of dy around each of x      @  w, transposed

Floats are multiplied in TF32; images in 16 bits as they are, by weights rounded to the same storage (rounded.py).
All sums are float32, and so are dw and slices; y and dx are rounded once, as they are stored.

16 bytes of neighbouring channels are moved at once, so c_in and c_out are multiples of 4, or of 8 in 16 bits, and all
arrays start at multiples of 16 bytes. Where elements are is told in tensor_core_sides.py.

Edges    As the definition's (reference.py): the padding's zeros take part, but the input gradient has no product where
         there is no dy. Rounding makes infinity of what is too large: in TF32 above (2 - 2^-11) 2^127, in float16 from
         65520 on.
"""

from typing import Any

from numba import float32, int64, uint32

from kernels.conv.direct import EXAMPLE
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core_sides import input_gradient, matrix, windows_by_pixel, windows_by_tap
from kernels.device import inlined
from kernels.launch import Floats, Int64, Launch, kernel
from kernels.matmul.tensor_epilogue import in_chunks
from kernels.matmul.tensor_product import tensor_product
from kernels.matmul.tensor_tiles import LARGE, MEDIUM, NARROW, SMALL, WIDE, TensorTile, place_of
from kernels.matmul.tiles import slices_of
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage

INSTRUCTIONS = ("HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128", "STG.E.128")
NARROW_INSTRUCTIONS = ("HMMA.16816.F32", "LDGSTS.E.BYPASS.128", "LDSM.16.M", "STG.E.128")  # ldmatrix, .trans or not
WITH_LDMATRIX = (*INSTRUCTIONS, "LDSM.16.M88.4")
REGISTERS = 255  # given out in eights: 256 for each thread of two blocks of the largest tile, 128 threads each
STAGE = Geometry(h=8, w=8, c_in=256, kh=3, kw=3, c_out=256, sh=1, sw=1, ph=1, pw=1)
STRIDED = Geometry(h=13, w=11, c_in=12, kh=5, kw=3, c_out=20, sh=2, sw=3, ph=2, pw=1)
IN_EIGHTS = Geometry(h=13, w=11, c_in=24, kh=5, kw=3, c_out=40, sh=2, sw=3, ph=2, pw=1)
POINTS = Geometry(h=16, w=16, c_in=64, kh=1, kw=1, c_out=128, sh=1, sw=1, ph=0, pw=0)


def _forward(
    tile: TensorTile, geometry: Geometry, with_bias: bool, index: Any, storage: Storage, y_storage: Storage
) -> Launch:
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    place_of_block, put = place_of(tile), y_storage.store_wide
    stored: Any = storage.pointer
    of_y: Any = y_storage.pointer
    size, y_size = storage.bytes, y_storage.bytes

    @inlined
    def begin(target, k):
        _, bias, part, _ = target
        if with_bias and part == 0:
            return bias[k], bias[k + 1]
        return float32(0), float32(0)

    @inlined
    def store(target, row, k, values):
        y, _, part, rows = target
        put(y, index((part * rows + row) * c_out + k), values)

    x_side, w_side = windows_by_pixel(geometry, index), matrix(c_out, index)
    finish = in_chunks(tile, index, y_storage, store)
    multiply = tensor_product(tile, index, x_side, w_side, finish, begin, storage)

    def conv2d_forward(x: stored, w: stored, bias: Floats, y: of_y, n: Int64, span: Int64):
        rows = n * pixels
        part, row, k = place_of_block(rows, c_out)
        first = part * span
        multiply((x, 0, 0), (w, 0, 0), (y, bias, part, rows), rows, c_out, row, k, first, min(first + span, taps))

    return Launch(
        conv2d_forward,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * pixels, c_out) * slices_of(taps, span),
        cost=lambda n, span: geometry.forward_cost(n, slices_of(taps, span), size, size, y_size),
        shared_bytes=tile.shared_bytes(True, False, storage=storage),
    )


def _backward_weight(tile: TensorTile, geometry: Geometry, index: Any, storage: Storage) -> Launch:
    c_out, taps, pixels = geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    place_of_block, put = place_of(tile), FLOAT32.store_wide
    stored: Any = storage.pointer
    size = storage.bytes

    @inlined
    def store(target, row, k, values):
        dw, part = target
        put(dw, index((part * taps + row) * c_out + k), values)

    x_side, dy_side = windows_by_tap(geometry, index), matrix(c_out, index)
    finish = in_chunks(tile, index, FLOAT32, store)
    multiply = tensor_product(tile, index, x_side, dy_side, finish, storage=storage)

    def conv2d_backward_weight(x: stored, dy: stored, dw: Floats, n: Int64, span: Int64):
        part, row, k = place_of_block(taps, c_out)
        first = part * span
        last = min(first + span, n * pixels)
        multiply((x, 0, 0), (dy, 0, 0), (dw, part), taps, c_out, row, k, first, last)

    return Launch(
        conv2d_backward_weight,
        block=tile.threads,
        grid=lambda n, span: tile.cover(taps, c_out) * slices_of(n * pixels, span),
        cost=lambda n, span: geometry.backward_weight_cost(n, slices_of(n * pixels, span), size, size),
        shared_bytes=tile.shared_bytes(False, False, storage=storage),
    )


def _backward_input(tile: TensorTile, geometry: Geometry, index: Any, storage: Storage, dx_storage: Storage) -> Launch:
    c_in = geometry.c_in
    phases, rows_of_image, depth = geometry.input_products()
    place_of_block, load, put = place_of(tile), storage.load, dx_storage.store_wide
    stored: Any = storage.pointer
    of_dx: Any = dx_storage.pointer
    size, dx_size = storage.bytes, dx_storage.bytes
    dy_side, w_side, find, again = input_gradient(geometry, index, storage=storage)

    @inlined
    def element(dy, place, channel):  # noqa: ARG001
        return load(dy, place)

    @inlined
    def mend(target, row, c, value):
        _, phase, part, n, dy, w, first, last = target
        exists, _ = find(phase, row, c, part, n)
        return again(dy, w, phase, row, c, first, last, element) if exists else value

    @inlined
    def store(target, row, channel, values):
        dx, phase, part, n, _, _, _, _ = target
        exists, place = find(phase, row, channel, part, n)
        if exists:
            put(dx, place, values)

    finish = in_chunks(tile, index, dx_storage, store, mend)
    multiply = tensor_product(tile, index, dy_side, w_side, finish, storage=storage)

    def conv2d_backward_input(dy: stored, w: stored, dx: of_dx, n: Int64, span: Int64):
        rows = n * rows_of_image
        number, row, c = place_of_block(rows, c_in)
        part, phase = number // phases, number % phases
        first = part * span
        last = min(first + span, depth)
        target = dx, phase, part, n, dy, w, first, last
        multiply((dy, phase, 0), (w, phase, 0), target, rows, c_in, row, c, first, last)

    return Launch(
        conv2d_backward_input,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * rows_of_image, c_in) * phases * slices_of(depth, span),
        cost=lambda n, span: geometry.backward_input_cost(n, slices_of(depth, span), size, size, dx_size),
        shared_bytes=tile.shared_bytes(True, True, storage=storage),
    )


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
    return _forward(tile, geometry, with_bias, index, FLOAT32, FLOAT32)


@kernel(
    traffic="x, w, bias -> y",
    registers=REGISTERS,
    instructions=NARROW_INSTRUCTIONS,
    examples=[
        (LARGE, STAGE, False, uint32, BFLOAT16, BFLOAT16),
        (WIDE, POINTS, True, uint32, FLOAT16, FLOAT16),
        (MEDIUM, STAGE, False, uint32, FLOAT16, FLOAT16),
        (NARROW, EXAMPLE, False, uint32, BFLOAT16, BFLOAT16),
        (SMALL, IN_EIGHTS, True, uint32, FLOAT16, FLOAT16),
        (LARGE, STAGE, False, int64, BFLOAT16, BFLOAT16),
        (LARGE, STAGE, False, uint32, BFLOAT16, FLOAT32),
    ],
)
def conv2d_forward_narrow_tensor_core(
    tile: TensorTile, geometry: Geometry, with_bias: bool, index: Any, storage: Storage, y_storage: Storage
) -> Launch:
    """The same of x and w in 16 bits; y is of that storage or, as slices are, float32."""
    return _forward(tile, geometry, with_bias, index, storage, y_storage)


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
    """One tile a block of dw (slices, kh, kw, c_in, c_out), float32; a slice is the sum over `span` pixels of dy."""
    return _backward_weight(tile, geometry, index, FLOAT32)


@kernel(
    traffic="x, dy -> dw",
    registers=REGISTERS,
    instructions=NARROW_INSTRUCTIONS,
    examples=[
        (LARGE, STAGE, uint32, BFLOAT16),
        (WIDE, POINTS, uint32, FLOAT16),
        (MEDIUM, STAGE, uint32, FLOAT16),
        (NARROW, EXAMPLE, uint32, BFLOAT16),
        (SMALL, IN_EIGHTS, uint32, FLOAT16),
        (LARGE, STAGE, int64, BFLOAT16),
    ],
)
def conv2d_backward_weight_narrow_tensor_core(
    tile: TensorTile, geometry: Geometry, index: Any, storage: Storage
) -> Launch:
    """The same of x and dy in 16 bits."""
    return _backward_weight(tile, geometry, index, storage)


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
    """One tile a block of dx (slices, n, h, w, c_in); a slice is the sum over `span` steps, for one of the phases."""
    return _backward_input(tile, geometry, index, FLOAT32, FLOAT32)


@kernel(
    traffic="dy, w -> dx",
    registers=REGISTERS,
    instructions=NARROW_INSTRUCTIONS,
    examples=[
        (LARGE, STAGE, uint32, BFLOAT16, BFLOAT16),
        (WIDE, POINTS, uint32, FLOAT16, FLOAT16),
        (MEDIUM, STAGE, uint32, FLOAT16, FLOAT16),
        (NARROW, EXAMPLE, uint32, BFLOAT16, BFLOAT16),
        (SMALL, IN_EIGHTS, uint32, FLOAT16, FLOAT16),
        (LARGE, STAGE, int64, BFLOAT16, BFLOAT16),
        (LARGE, STAGE, uint32, BFLOAT16, FLOAT32),
    ],
)
def conv2d_backward_input_narrow_tensor_core(
    tile: TensorTile, geometry: Geometry, index: Any, storage: Storage, dx_storage: Storage
) -> Launch:
    """The same of dy and w in 16 bits; dx is of that storage or, as slices are, float32."""
    return _backward_input(tile, geometry, index, storage, dx_storage)
