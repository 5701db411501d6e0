"""Convolution by its definition: one thread an element of the result, which adds up all products that make it.

Every product takes two loads, most of them from the caches. What the threads of a warp have in common is what the
layout, channels last, gives them: they read neighbouring weights, or neighbouring channels, and the same of the other
factor. This is the kernel to read first, and the one that the others are compared with.

Images may be stored in any way, each as it likes; w, bias and dw are float32, and everything is computed so.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.conv.geometry import Geometry, windows
from kernels.launch import Floats, Int64, Launch, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage

BLOCK = 256
EXAMPLE = Geometry(h=28, w=28, c_in=16, kh=3, kw=3, c_out=32, sh=1, sw=1, ph=1, pw=1)
STRIDED = Geometry(h=13, w=11, c_in=3, kh=5, kw=3, c_out=7, sh=2, sw=3, ph=2, pw=1)


@kernel(
    traffic="x, w, bias -> y",
    registers=96,
    examples=[
        (EXAMPLE, False, uint32, FLOAT32, FLOAT32),
        (STRIDED, True, uint32, FLOAT32, FLOAT32),
        (EXAMPLE, True, int64, FLOAT32, FLOAT32),
        (EXAMPLE, False, uint32, BFLOAT16, BFLOAT16),
        (STRIDED, True, uint32, FLOAT32, FLOAT16),
    ],
)
def conv2d_forward_direct(
    geometry: Geometry, with_bias: bool, index: Any, x_storage: Storage, y_storage: Storage
) -> Launch:
    """One thread an element of y. A warp reads one element of x and 32 neighbouring weights at a time."""
    h, w_in, c_in, kh, kw, c_out, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    of_x: Any = x_storage.pointer
    of_y: Any = y_storage.pointer
    load, store, x_bytes, y_bytes = x_storage.load, y_storage.store, x_storage.bytes, y_storage.bytes

    def conv2d_forward(x: of_x, w: Floats, bias: Floats, y: of_y, n: Int64):
        place = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if place < n * (ho * wo * c_out):
            k = place % c_out
            q = place // c_out % wo
            p = place // (c_out * wo) % ho
            image = place // (c_out * wo * ho)
            total = float32(0)
            for i in range(kh):
                line = p * sh + i - ph
                for j in range(kw):
                    column = q * sw + j - pw
                    inside = 0 <= line < h and 0 <= column < w_in
                    first = ((image * h + line) * w_in + column) * c_in
                    for c in range(c_in):
                        # The padding takes part: 0 * NaN is NaN.
                        value = load(x, index(first + c)) if inside else float32(0)
                        total += value * w[index(((i * kw + j) * c_in + c) * c_out + k)]
            if with_bias:
                total += bias[k]
            store(y, place, total)

    return Launch(
        conv2d_forward,
        BLOCK,
        grid=lambda n: blocks_for(n * geometry.y_size, BLOCK),
        cost=lambda n: geometry.forward_cost(n, 1, x_bytes, 4, y_bytes),
    )


STORED = [
    (EXAMPLE, uint32, FLOAT32, FLOAT32),
    (STRIDED, uint32, FLOAT32, FLOAT32),
    (EXAMPLE, int64, FLOAT32, FLOAT32),
    (EXAMPLE, uint32, BFLOAT16, BFLOAT16),
    (STRIDED, uint32, FLOAT32, FLOAT16),
]


@kernel(traffic="dy, w -> dx", registers=112, examples=STORED)
def conv2d_backward_input_direct(geometry: Geometry, index: Any, dx_storage: Storage, dy_storage: Storage) -> Launch:
    """One thread an element of dx, gathered from all windows that it is in: no scatter, no atomics."""
    h, w_in, c_in, kh, kw, c_out, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    of_dx: Any = dx_storage.pointer
    of_dy: Any = dy_storage.pointer
    load, store, dx_bytes, dy_bytes = dy_storage.load, dx_storage.store, dx_storage.bytes, dy_storage.bytes

    def conv2d_backward_input(dy: of_dy, w: Floats, dx: of_dx, n: Int64):
        place = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if place < n * (h * w_in * c_in):
            c = place % c_in
            column = place // c_in % w_in
            line = place // (c_in * w_in) % h
            image = place // (c_in * w_in * h)
            total = float32(0)
            for tap in range(kh * kw):
                down, right = line + ph - tap // kw, column + pw - tap % kw  # (p * sh, q * sw), if it is in a window
                if 0 <= down < ho * sh and down % sh == 0 and 0 <= right < wo * sw and right % sw == 0:
                    first = ((image * ho + down // sh) * wo + right // sw) * c_out
                    for k in range(c_out):
                        total += load(dy, index(first + k)) * w[index((tap * c_in + c) * c_out + k)]
            store(dx, place, total)

    return Launch(
        conv2d_backward_input,
        BLOCK,
        grid=lambda n: blocks_for(n * geometry.x_size, BLOCK),
        cost=lambda n: geometry.backward_input_cost(n, 1, dy_bytes, 4, dx_bytes),
    )


@kernel(traffic="x, dy -> dw", registers=48, examples=STORED)
def conv2d_backward_weight_direct(geometry: Geometry, index: Any, x_storage: Storage, dy_storage: Storage) -> Launch:
    """One thread an element of dw (slices, kh, kw, c_in, c_out); a slice is the sum over `span` pixels of dy."""
    c_out, rows_of_image, size = geometry.c_out, geometry.ho * geometry.wo, geometry.w_size
    window_element = windows(geometry, index, x_storage)
    of_x: Any = x_storage.pointer
    of_dy: Any = dy_storage.pointer
    load, x_bytes, dy_bytes = dy_storage.load, x_storage.bytes, dy_storage.bytes

    def conv2d_backward_weight(x: of_x, dy: of_dy, dw: Floats, n: Int64, span: Int64, slices: Int64):
        place = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if place < slices * size:
            k = place % c_out
            tap = place // c_out % (size // c_out)
            first = place // size * span
            total = float32(0)
            for row in range(first, min(first + span, n * rows_of_image)):
                total += window_element(x, index(row), tap) * load(dy, index(row * c_out + k))
            dw[place] = total

    return Launch(
        conv2d_backward_weight,
        BLOCK,
        grid=lambda slices: blocks_for(slices * size, BLOCK),
        cost=lambda n, slices: geometry.backward_weight_cost(n, slices, x_bytes, dy_bytes),
    )
