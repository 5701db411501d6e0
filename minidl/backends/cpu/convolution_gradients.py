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
from minidl.backends.cpu.passes import COPY, call_pass
from minidl.backends.cpu.pieces import next_piece
from minidl.backends.cpu.slab import clear, fill_tile, place_of, tile_of
from minidl.backends.cpu.threads import QUIET
from minidl.backends.cpu.winograd_loops import multiply_tile_gradients


@called
def _fill_gradients(table, numbers, image, images, line, lines, padded, how, x, dy, parameters, width, slab):
    """The gradients of a tile's outputs, image after image, `padded` numbers for a pixel."""
    c_out, w_out = numbers[C_OUT], numbers[W_OUT]
    runs, count = (1, lines * w_out * c_out) if padded == c_out else (lines * w_out, c_out)
    if padded > c_out:
        clear(slab, 0, images * lines * w_out * padded)
    for k in range(images):
        place, at = ((image + k) * numbers[H_OUT] + line) * w_out, k * lines * w_out * padded
        for run in range(runs):
            here, there = (place + run) * c_out, at + run * padded
            call_pass(table[how], count, width, x, here, dy, here, x, 0, parameters, 0, slab, there, slab, 0)


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
                *(function, source, window + begin, 0, 1, x_image, x_row, x_step),
                *(gradient, place + lane, 0, g_image, g_row, padded, 1, images, rows, depth),
                *(total, (row + begin) * padded + lane, 0, padded, 1),
            )


@called
def _multiply_tile(
    blocks, numbers, kh, kw, clips, image, images, line, lines, source, in_place,
    gradient, in_place_dy, padded, begin_out, end_out, total,
):  # fmt: skip
    """Add what a tile contributes to the weights, a few lines or images at a time; no sum takes more than DEPTH."""
    start, pitch, size = place_of(numbers, image, line, lines, in_place)
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
    counter,
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
    numbers_dy,
    transforms,
    few,
    taken,
    taken_dy,
):
    """Shares of dw, each added up over its tiles into its own `partial` (kh, kw, c_in, padded c_out).

    Of all those that `counter` gives (see `next_piece`); other threads do the others.

    `clips`: products with the padding's zeros are left out, where that leaves out whole lines or columns.
    `shares` (number, 5) int64: first and last tile, first and last output channel, and where its partial sums begin.

    Where `few` is not 0 it is done by Winograd (see `multiply_tile_gradients`), which reads what comes last; the slab
    of dy then is laid out by `numbers_dy`, and partial sums are of a `kernel` of 6x6 positions.
    """
    in_place = few == 0 and numbers[PLAIN] == 1 and how == COPY
    source = x if in_place else slab
    padded = -(-numbers[C_OUT] // LANES) * LANES
    in_place_dy = few == 0 and padded == numbers[C_OUT] and how_dy == COPY
    gradient = x_dy if in_place_dy else slab_dy
    rows = kernel[0] * kernel[1] * numbers[C]
    for _ in range(len(shares)):
        share = next_piece(counter)
        if share >= len(shares):
            break
        begin_out, end_out, base = shares[share, 2], shares[share, 3], shares[share, 4]
        total = partial[base : base + rows * padded]
        for row in range(rows):
            clear(total, row * padded + begin_out, end_out - begin_out)
        for t in range(shares[share, 0], shares[share, 1]):
            image, images, line, lines = tile_of(numbers, t)
            if not in_place:
                fill_tile(table, numbers, image, images, line, lines, how, x, x, parameters, width, slab)
            if few > 0:
                fill_tile(
                    *(table, numbers_dy, image, images, line, lines),
                    *(how_dy, x_dy, dy, parameters_dy, width_dy, slab_dy),
                )
                multiply_tile_gradients(
                    *(blocks, transforms, numbers, numbers_dy, images, lines, slab, slab_dy, begin_out, end_out, total),
                    *(few, taken, taken_dy),
                )
                continue
            if not in_place_dy:
                _fill_gradients(
                    *(table, numbers, image, images, line, lines, padded),
                    *(how_dy, x_dy, dy, parameters_dy, width_dy, slab_dy),
                )
            _multiply_tile(
                *(blocks, numbers, kernel[0], kernel[1], clips, image, images, line, lines, source, in_place),
                *(gradient, in_place_dy, padded, begin_out, end_out, total),
            )


def sum_shares(first, last, partial, groups, size, c_out, dw):
    """Rows first to last of dw (kh*kw*c_in, c_out): the sum of the groups' partial sums, in their order."""
    padded = -(-c_out // LANES) * LANES
    parts = partial[: groups * size].reshape(groups, -1, padded)[:, first:last, :c_out]
    with np.errstate(**QUIET):
        np.add.reduce(parts, axis=0, out=dw[first * c_out : last * c_out].reshape(-1, c_out))
