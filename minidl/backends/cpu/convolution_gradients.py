"""Windows times the gradient of the output on the CPU: the gradient of a convolution's weights.

What the loops work through is laid out in convolution_plan.py.
"""

import numpy as np

from minidl.backends.cpu.blocks import VECTORS, WIDTH, multiply_block
from minidl.backends.cpu.compile import called, compiled
from minidl.backends.cpu.convolution_plan import (
    C_OUT,
    DEPTH,
    H_OUT,
    HEIGHT,
    LEFT_COLUMN,
    PLAIN,
    STRIDE_H,
    STRIDE_W,
    TOP_LINE,
    W_OUT,
    C,
    H,
    W,
)
from minidl.backends.cpu.machine_code import LANES, SUMS
from minidl.backends.cpu.passes import COPY
from minidl.backends.cpu.slab import fill_pixels, fill_tile, place_of, tile_of


@called
def _fill_gradients(table, numbers, t, padded, how, x, dy, parameters, width, slab):
    """The gradients of tile t's outputs, image after image, `padded` numbers for a pixel."""
    image, images, line, lines = tile_of(numbers, t)
    c_out, pixels = numbers[C_OUT], lines * numbers[W_OUT]
    if padded > c_out:
        slab[: images * pixels * padded] = np.float32(0)
    for k in range(images):
        place = ((image + k) * numbers[H_OUT] + line) * numbers[W_OUT] * c_out
        fill_pixels(*(table, how, x, dy, parameters, width, place, pixels, c_out, slab, k * pixels * padded, padded))


@called
def _multiply_taps(
    blocks, source, window, x_image, x_row, x_step, gradient, place, g_image, g_row, padded, images, rows, depth,
    total, row, taps, begin_out, end_out,
):  # fmt: skip
    """Rows `row` and on of `total`, `taps` of them: sums over images, lines and pixels."""
    for lane in range(begin_out, end_out, WIDTH):
        vectors = min(WIDTH, padded - lane) // LANES
        parts = -(-taps * vectors // SUMS)
        for part in range(parts):
            begin, end = taps * part // parts, taps * (part + 1) // parts
            function = blocks[vectors, end - begin]
            multiply_block(
                *(function, source, window + begin, 1, x_image, x_row, x_step),
                *(gradient, place + lane, g_image, g_row, padded, images, rows, depth),
                *(total, (row + begin) * padded + lane, padded, 1),
            )


@called
def _multiply_tile(
    blocks, numbers, kh, kw, clips, t, source, in_place, gradient, in_place_dy, padded, begin_out, end_out, total
):
    """Add what tile t contributes to the weights, a few lines or images at a time; no sum takes more than DEPTH."""
    image, images, line, lines = tile_of(numbers, t)
    start, pitch, size = place_of(numbers, t, in_place)
    stride_h, stride_w, c = numbers[STRIDE_H], numbers[STRIDE_W], numbers[C]
    h_out, w_out, taps = numbers[H_OUT], numbers[W_OUT], kw * c
    start_dy, size_dy = 0, lines * w_out * padded
    if in_place_dy:
        start_dy, size_dy = (image * h_out + line) * w_out * padded, h_out * w_out * padded
    run = c if c * VECTORS >= SUMS else taps  # of few channels all taps of a line are done together
    few_lines = min(lines, max(1, DEPTH // 2 // w_out))
    few_images = max(1, DEPTH // 2 // (few_lines * w_out)) if few_lines == numbers[HEIGHT] else 1
    for k in range(0, images, few_images):
        for i in range(0, lines, few_lines):
            for r in range(kh):
                above = (line + i) * stride_h + numbers[TOP_LINE] + r  # the line that the first window's row r is in
                i0, i1 = i, min(i + few_lines, lines)
                if clips:
                    i0 = i + max(0, -(above // stride_h))
                    i1 = min(i1, i + (numbers[H] - 1 - above) // stride_h + 1)
                if i0 >= i1:
                    continue
                for tap in range(0, taps, run):
                    left = numbers[LEFT_COLUMN]
                    j0, j1 = 0, w_out
                    if clips:
                        j0 = max(0, -((left + (tap + run - 1) // c) // stride_w))
                        j1 = min(w_out, (numbers[W] - 1 - left - tap // c) // stride_w + 1)
                    pieces = -(-(j1 - j0) // DEPTH)
                    for piece in range(pieces):
                        begin = j0 + (j1 - j0) * piece // pieces
                        end = j0 + (j1 - j0) * (piece + 1) // pieces
                        window = start + k * size + (i0 * stride_h + r) * pitch + begin * stride_w * c + tap
                        place = start_dy + k * size_dy + (i0 * w_out + begin) * padded
                        _multiply_taps(
                            *(blocks, source, window, size, stride_h * pitch, stride_w * c),
                            *(gradient, place, size_dy, w_out * padded, padded),
                            *(min(few_images, images - k), i1 - i0, end - begin),
                            *(total, r * taps + tap, run, begin_out, end_out),
                        )


@compiled
def multiply_gradients(
    first,
    last,
    blocks,
    table,
    numbers,
    kernel,
    clips,
    shares,
    how,
    x,
    parameters,
    width,
    how_dy,
    x_dy,
    dy,
    parameters_dy,
    width_dy,
    partial,
    slab,
    slab_dy,
):
    """Shares first to last of dw, each added up over its tiles into its own `partial` (kh, kw, c_in, padded c_out).

    `clips`: products with the padding's zeros are left out, where that leaves out whole lines or columns.
    `shares` (number, 5) int64: first and last tile, first and last output channel, and where its partial sums begin.
    """
    in_place = numbers[PLAIN] == 1 and how == COPY
    source = x if in_place else slab
    padded = -(-numbers[C_OUT] // LANES) * LANES
    in_place_dy = padded == numbers[C_OUT] and how_dy == COPY
    gradient = x_dy if in_place_dy else slab_dy
    rows = kernel[0] * kernel[1] * numbers[C]
    for share in range(first, last):
        begin_out, end_out, base = shares[share, 2], shares[share, 3], shares[share, 4]
        total = partial[base : base + rows * padded]
        for row in range(rows):
            total[row * padded + begin_out : row * padded + end_out] = np.float32(0)
        for t in range(shares[share, 0], shares[share, 1]):
            if not in_place:
                fill_tile(table, numbers, t, how, x, x, parameters, width, slab)
            if not in_place_dy:
                _fill_gradients(table, numbers, t, padded, how_dy, x_dy, dy, parameters_dy, width_dy, slab_dy)
            _multiply_tile(
                *(blocks, numbers, kernel[0], kernel[1], clips, t, source, in_place, gradient, in_place_dy),
                *(padded, begin_out, end_out, total),
            )


@compiled
def sum_shares(first, last, partial, groups, size, c_out, dw):
    """Rows first to last of dw (kh*kw*c_in, c_out): the sum of the groups' partial sums, in their order."""
    padded = -(-c_out // LANES) * LANES
    for row in range(first, last):
        for lane in range(c_out):
            dw[row * c_out + lane] = partial[row * padded + lane]
        for group in range(1, groups):
            for lane in range(c_out):
                dw[row * c_out + lane] += partial[group * size + row * padded + lane]
