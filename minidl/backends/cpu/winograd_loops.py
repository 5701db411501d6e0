"""Convolution of 3x3 without a stride on the CPU by Winograd's F(2x2, 3x3): the loops; see winograd.py for the maths.

A tile of the plan (convolution_plan.py) is copied to the cache as for the other loops, to whole tiles of 2x2 outputs.
A few lines of those at a time are transformed, multiplied by blocks of registers, position by position, and transformed
back.
"""

import numpy as np

from minidl.backends.cpu.batchnorm_loops import sum_chunks
from minidl.backends.cpu.blocks import WIDTH, multiply_block
from minidl.backends.cpu.compile import called, compiled
from minidl.backends.cpu.convolution_plan import (
    C_OUT,
    H_OUT,
    LEFT_COLUMN,
    SPLITS,
    TILES,
    TOP_LINE,
    W_OUT,
    C,
    H,
    W,
)
from minidl.backends.cpu.convolution_windows import NO_PASS, add_bias
from minidl.backends.cpu.machine_code import LANES, SUMS
from minidl.backends.cpu.passes import SUM_SHIFTED
from minidl.backends.cpu.slab import fill_lines, tile_of
from minidl.backends.cpu.winograd import (
    GRADIENTS,
    INPUTS,
    OUTPUTS,
    POSITIONS,
    give_tiles,
    take_tiles,
)


@called
def _take_lines(transforms, which, slab, lines, columns, c, rows, across, begin, many, taken, pitch):
    """Lines of tiles `begin` and on, `many` of them, of images of `rows` lines: to 16 positions `pitch` apart."""
    padded = -(-c // LANES) * LANES
    for r in range(many):
        k, i = (begin + r) // rows, (begin + r) % rows
        place = (k * lines + 2 * i) * columns * c
        for lane in range(0, c, LANES):
            take_tiles(
                *(transforms[which], slab, place + lane, columns * c, c, 2 * c),
                *(taken, r * across * padded + lane, pitch, padded, across),
            )


@called
def _multiply_positions(blocks, taken, pitch, c, packed, weights, step, vectors, count, products, pitch_out):
    """Of `count` tiles, `vectors` of the outputs: 16 products of matrices."""
    padded = -(-c // LANES) * LANES
    parts = -(-count * vectors // SUMS)
    for position in range(POSITIONS):
        for part in range(parts):
            begin, end = count * part // parts, count * (part + 1) // parts
            multiply_block(
                *(blocks[vectors, end - begin], taken, position * pitch + begin * padded, padded, 0, 0, 1),
                *(packed, weights + position * step, 0, 0, WIDTH, 1, 1, c),
                *(products, position * pitch_out + begin * vectors * LANES, vectors * LANES, 0),
            )


@called
def _give_line(transforms, products, at, pitch, across, y, place, w, c, lanes, below, edge, check):
    """A line of tiles to two lines of y, or to one where nothing is `below`, from element `place` on."""
    wide = -(-lanes // LANES) * LANES
    if below and w % 2 == 0 and lanes % LANES == 0:
        for lane in range(0, lanes, LANES):
            give_tiles(
                *(transforms[OUTPUTS], products, at + lane, pitch, wide),
                *(y, place + lane, w * c, c, 2 * c, across, check, 0),
            )
        return
    line = 2 * across * WIDTH
    for lane in range(0, lanes, LANES):
        give_tiles(
            *(transforms[OUTPUTS], products, at + lane, pitch, wide),
            *(edge, lane, line, WIDTH, 2 * WIDTH, across, check, 0),
        )
    for i in range(1 + below):
        for j in range(w):
            for lane in range(lanes):
                y[place + (i * w + j) * c + lane] = edge[i * line + j * WIDTH + lane]


@compiled
def multiply_tiles(
    first,
    last,
    blocks,
    table,
    transforms,
    numbers,
    how,
    x,
    dy,
    parameters,
    width,
    packed,
    bias,
    y,
    after,
    before,
    of_before,
    width_after,
    starts,
    firsts,
    sums,
    few,
    slab,
    taken,
    products,
    edge,
    check,
):
    """`multiply_windows` by Winograd: `packed` are the transformed weights, and `few` lines of tiles go at a time.

    `check` (LANES,) becomes NaN where a product's tile holds what is NaN or infinite.
    """
    c, c_out, many = numbers[C], numbers[C_OUT], -(-numbers[C_OUT] // WIDTH)
    h_out, w_out = numbers[H_OUT], numbers[W_OUT]
    across, padded = (w_out + 1) // 2, -(-c // LANES) * LANES
    columns = 2 * across + 2
    for piece in range(first, last):
        t, split = piece % numbers[TILES], piece // numbers[TILES]
        begin_out = many * split // numbers[SPLITS] * WIDTH
        end_out = min(many * (split + 1) // numbers[SPLITS] * WIDTH, c_out)
        image, images, line, lines = tile_of(numbers, t)
        rows = (lines + 1) // 2
        for k in range(images):
            fill_lines(
                *(table, how, x, dy, parameters, width, image + k, numbers[H], numbers[W], c),
                *(line + numbers[TOP_LINE], numbers[LEFT_COLUMN], 2 * rows + 2, columns, slab),
                k * (2 * rows + 2) * columns * c,
            )
        for begin in range(0, images * rows, few):
            some = min(few, images * rows - begin)
            count = some * across
            pitch = count * padded + LANES
            _take_lines(*(transforms, INPUTS, slab, 2 * rows + 2, columns, c, rows, across, begin, some, taken, pitch))
            for block in range(begin_out, end_out, WIDTH):
                lanes = min(WIDTH, c_out - block)
                vectors = -(-lanes // LANES)
                pitch_out = count * vectors * LANES + LANES
                _multiply_positions(
                    *(blocks, taken, pitch, c, packed, block * c, many * c * WIDTH, vectors),
                    *(count, products, pitch_out),
                )
                for r in range(some):
                    k, i = (begin + r) // rows, (begin + r) % rows
                    place = (((image + k) * h_out + line + 2 * i) * w_out) * c_out + block
                    below = 2 * i + 1 < lines
                    at = r * across * vectors * LANES
                    _give_line(
                        *(transforms, products, at, pitch_out, across, y, place, w_out, c_out, lanes, below),
                        *(edge, check),
                    )
        if bias.size:
            add_bias(numbers, t, bias, y, begin_out, end_out)
        if after != NO_PASS:
            summed = y if after == SUM_SHIFTED else before
            sum_chunks(
                *(firsts[t], firsts[t + 1], table, after, summed, y, y),
                *(c_out, width_after, starts, of_before, y, sums),
            )


@compiled
def multiply_tile_gradients(
    first,
    last,
    blocks,
    table,
    transforms,
    numbers,
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
    few,
    slab,
    slab_dy,
    taken,
    taken_dy,
):
    """`multiply_gradients` by Winograd: each `partial` is (16, c_in, padded c_out), to be transformed."""
    c, c_out, h_out, w_out = numbers[C], numbers[C_OUT], numbers[H_OUT], numbers[W_OUT]
    across, padded, padded_out = (w_out + 1) // 2, -(-c // LANES) * LANES, -(-c_out // LANES) * LANES
    columns = 2 * across + 2
    for share in range(first, last):
        begin_out, end_out, base = shares[share, 2], shares[share, 3], shares[share, 4]
        for row in range(POSITIONS * c):
            at = base + row * padded_out
            for lane in range(begin_out, end_out):
                partial[at + lane] = np.float32(0)
        for t in range(shares[share, 0], shares[share, 1]):
            image, images, line, lines = tile_of(numbers, t)
            rows = (lines + 1) // 2
            for k in range(images):
                fill_lines(
                    *(table, how, x, x, parameters, width, image + k, numbers[H], numbers[W], c),
                    *(line + numbers[TOP_LINE], numbers[LEFT_COLUMN], 2 * rows + 2, columns, slab),
                    k * (2 * rows + 2) * columns * c,
                )
                fill_lines(
                    *(table, how_dy, x_dy, dy, parameters_dy, width_dy, image + k, h_out, w_out, c_out),
                    *(line, 0, 2 * rows, 2 * across, slab_dy, k * 4 * rows * across * c_out),
                )
            for begin in range(0, images * rows, few):
                some = min(few, images * rows - begin)
                count = some * across
                pitch, pitch_dy = count * padded + LANES, count * padded_out + LANES
                _take_lines(
                    *(transforms, INPUTS, slab, 2 * rows + 2, columns, c, rows, across, begin, some, taken, pitch)
                )
                _take_lines(
                    *(transforms, GRADIENTS, slab_dy, 2 * rows, 2 * across, c_out, rows, across, begin, some),
                    *(taken_dy, pitch_dy),
                )
                for position in range(POSITIONS):
                    for lane in range(begin_out, end_out, WIDTH):
                        vectors = min(WIDTH, padded_out - lane) // LANES
                        parts = -(-c * vectors // SUMS)
                        for part in range(parts):
                            low, high = c * part // parts, c * (part + 1) // parts
                            multiply_block(
                                *(blocks[vectors, high - low], taken, position * pitch + low, 1, 0, 0, padded),
                                *(taken_dy, position * pitch_dy + lane, 0, 0, padded_out, 1, 1, count),
                                *(partial, base + (position * c + low) * padded_out + lane, padded_out, 1),
                            )
