"""A tile of a convolution of 3x3 without a stride on the CPU by Winograd's F(4x4, 3x3); winograd.py has the maths.

A slab (slab.py) holds whole tiles of 4x4 outputs. A few lines of those at a time are transformed, multiplied by blocks
of registers, position by position, and transformed back. In a slab lines follow each other, those of the next image
after those of the one before; a few lines more than are needed may be between them.
"""

from minidl.backends.cpu.blocks import WIDTH, multiply_block
from minidl.backends.cpu.compile import called
from minidl.backends.cpu.convolution_plan import C_OUT, H_OUT, SLAB_COLUMNS, SLAB_LINES, W_OUT, C
from minidl.backends.cpu.machine_code import LANES, SUMS
from minidl.backends.cpu.winograd import GRADIENTS, INPUTS, OUTPUTS, POSITIONS, TILE_SIDE, give_tiles, take_tiles


@called
def _take_lines(transforms, which, slab, numbers, lines, begin, many, across, first, last, taken, pitch):
    """Lines of tiles `begin` and on, `many` of them, of images of `lines` lines: to 36 positions `pitch` apart.

    Channels first to last of them.
    """
    c, columns, rows = numbers[C], numbers[SLAB_COLUMNS], -(-lines // TILE_SIDE)
    padded = -(-c // LANES) * LANES
    for r in range(many):
        k, i = (begin + r) // rows, (begin + r) % rows
        place = (k * (lines - 1 + numbers[SLAB_LINES]) + TILE_SIDE * i) * columns * c
        for lane in range(first, last, LANES):
            take_tiles(
                *(transforms[which], slab, place + lane, columns * c, c, TILE_SIDE * c),
                *(taken, r * across * padded + lane, pitch, padded, across),
            )


@called
def _give_line(transforms, products, at, pitch, across, y, place, w, c, lanes, lines, edge, check):
    """A line of tiles to four lines of y, or to `lines` where there are fewer, from element `place` on.

    What is beyond y of a tile goes to `edge`, and is not copied from there.
    """
    wide = -(-lanes // LANES) * LANES
    whole = w // TILE_SIDE if lines >= TILE_SIDE and lanes == wide else 0
    column, line = TILE_SIDE * WIDTH, across * TILE_SIDE * WIDTH
    for lane in range(0, lanes, LANES):
        if whole > 0:
            give_tiles(
                *(transforms[OUTPUTS], products, at + lane, pitch, wide),
                *(y, place + lane, w * c, c, TILE_SIDE * c, whole, check, 0),
            )
        if whole < across:
            give_tiles(
                *(transforms[OUTPUTS], products, at + whole * wide + lane, pitch, wide),
                *(edge, whole * column + lane, line, WIDTH, column, across - whole, check, 0),
            )
    for i in range(min(lines, TILE_SIDE)):
        for j in range(whole * TILE_SIDE, w):
            here, there = place + (i * w + j) * c, i * line + j * WIDTH
            into, out_of = y[here : here + lanes], edge[there : there + lanes]
            for lane in range(lanes):
                into[lane] = out_of[lane]


@called
def multiply_tiles(
    blocks, transforms, numbers, image, images, line, lines, slab, packed, y, begin_out, end_out,
    few, taken, products, edge, check,
):  # fmt: skip
    """Channels begin_out to end_out of a tile's outputs, `few` lines of tiles at a time.

    `packed` (36, blocks, c_in, WIDTH) are the transformed weights; `taken` and `products` hold what is transformed.
    `check` (LANES,) becomes NaN where what comes out of a tile is NaN or infinite.
    """
    c, c_out, w_out = numbers[C], numbers[C_OUT], numbers[W_OUT]
    rows, across, padded = -(-lines // TILE_SIDE), -(-w_out // TILE_SIDE), -(-c // LANES) * LANES
    step = -(-c_out // WIDTH) * c * WIDTH
    for begin in range(0, images * rows, few):
        some = min(few, images * rows - begin)
        count = some * across
        pitch = count * padded + LANES
        _take_lines(transforms, INPUTS, slab, numbers, lines, begin, some, across, 0, c, taken, pitch)
        for block in range(begin_out, end_out, WIDTH):
            lanes = min(WIDTH, c_out - block)
            vectors = -(-lanes // LANES)
            wide = vectors * LANES
            pitch_out = count * wide + LANES
            parts = -(-count * vectors // SUMS)
            for part in range(parts):
                low, high = count * part // parts, count * (part + 1) // parts
                multiply_block(
                    *(blocks[vectors, high - low], taken, low * padded, pitch, padded, 0, 0, 1),
                    *(packed, block * c, step, 0, 0, WIDTH, POSITIONS, 1, 1, c),
                    *(products, low * wide, pitch_out, wide, 0),
                )
            for r in range(some):
                k, i = (begin + r) // rows, (begin + r) % rows
                place = (((image + k) * numbers[H_OUT] + line + TILE_SIDE * i) * w_out) * c_out + block
                _give_line(
                    *(transforms, products, r * across * wide, pitch_out, across, y, place, w_out, c_out, lanes),
                    *(lines - TILE_SIDE * i, edge, check),
                )


@called
def multiply_tile_gradients(
    blocks, transforms, numbers, numbers_dy, images, lines, slab, slab_dy, begin_out, end_out, total,
    few, taken, taken_dy,
):  # fmt: skip
    """Add what a tile contributes to `total` (36, c_in, padded c_out), which is to be transformed at the end."""
    c, c_out, across = numbers[C], numbers[C_OUT], -(-numbers[W_OUT] // TILE_SIDE)
    padded, padded_out = -(-c // LANES) * LANES, -(-c_out // LANES) * LANES
    lines_of_tiles = images * -(-lines // TILE_SIDE)
    for begin in range(0, lines_of_tiles, few):
        some = min(few, lines_of_tiles - begin)
        count = some * across
        pitch, pitch_dy = count * padded + LANES, count * padded_out + LANES
        _take_lines(transforms, INPUTS, slab, numbers, lines, begin, some, across, 0, c, taken, pitch)
        _take_lines(
            *(transforms, GRADIENTS, slab_dy, numbers_dy, lines, begin, some, across),
            *(begin_out, min(end_out, c_out), taken_dy, pitch_dy),
        )
        for lane in range(begin_out, end_out, WIDTH):
            vectors = min(WIDTH, padded_out - lane) // LANES
            parts = -(-c * vectors // SUMS)
            for part in range(parts):
                low, high = c * part // parts, c * (part + 1) // parts
                multiply_block(
                    *(blocks[vectors, high - low], taken, low, pitch, 1, 0, 0, padded),
                    *(taken_dy, lane, pitch_dy, 0, 0, padded_out, POSITIONS, 1, 1, count),
                    *(total, low * padded_out + lane, c * padded_out, padded_out, 1),
                )
