"""The part of an image that a tile of a convolution reads, copied with its padding to where it stays in the cache.

What is copied may not exist in memory: an activation is worked out here from the convolution's output that is to be
normalized, and a gradient from its parts. So neither is ever written out.
"""

import numpy as np

from minidl.backends.cpu.compile import called
from minidl.backends.cpu.convolution_plan import (
    HEIGHT,
    LEFT_COLUMN,
    SLAB_COLUMNS,
    SLAB_LINES,
    STRIDE_H,
    TILE,
    TOGETHER,
    TOP_LINE,
    C,
    H,
    N,
    W,
)
from minidl.backends.cpu.passes import call_pass


@called
def tile_of(numbers, t):
    """The first image of tile t, how many images it has, its first line in each and how many lines."""
    tile, together, height = numbers[TILE], numbers[TOGETHER], numbers[HEIGHT]
    tiles_of_image = -(-height // tile)
    image, line = t // tiles_of_image * together, t % tiles_of_image * tile
    return image, min(together, numbers[N] - image), line, min(tile, height - line)


@called
def place_of(numbers, t, in_place):
    """Where the windows of tile t begin, elements from line to line and from image to image: in the slab or in x."""
    image, _, line, lines = tile_of(numbers, t)
    h, w, c = numbers[H], numbers[W], numbers[C]
    if in_place:
        origin = line * numbers[STRIDE_H] + numbers[TOP_LINE]
        return ((image * h + origin) * w + numbers[LEFT_COLUMN]) * c, w * c, h * w * c
    pitch = numbers[SLAB_COLUMNS] * c
    return 0, pitch, ((lines - 1) * numbers[STRIDE_H] + numbers[SLAB_LINES]) * pitch


@called
def fill_pixels(table, how, x, dy, parameters, width, place, pixels, channels, slab, at, pitch):
    """Pixels that lie side by side, from element `place` of x on, to `at` in the slab, where a pixel takes `pitch`.

    `how` is a pass of `table` that reads x and dy and `parameters`, whose rows are of `width`. All are flat.
    """
    runs, count = (1, pixels * channels) if pitch == channels else (pixels, channels)
    for run in range(runs):
        here, there = place + run * channels, at + run * pitch
        call_pass(table[how], count, width, x, here, dy, here, x, 0, parameters, 0, slab, there, slab, 0)


@called
def fill_lines(table, how, x, dy, parameters, width, image, h, w, channels, top, left, lines, columns, slab, at):
    """Lines `top` and on, columns `left` and on of an image (h, w, channels) of x; zeros where there is none."""
    begin = min(max(0, -left), columns)
    end = max(begin, min(columns, w - left))
    for line in range(top, top + lines):
        if line < 0 or line >= h:
            slab[at : at + columns * channels] = np.float32(0)
        else:
            slab[at : at + begin * channels] = np.float32(0)
            place = ((image * h + line) * w + left + begin) * channels
            middle, count = at + begin * channels, end - begin
            fill_pixels(table, how, x, dy, parameters, width, place, count, channels, slab, middle, channels)
            slab[at + end * channels : at + columns * channels] = np.float32(0)
        at += columns * channels


@called
def fill_tile(table, numbers, t, how, x, dy, parameters, width, slab):
    """All that tile t reads, image after image; see `fill_lines`."""
    image, images, line, lines = tile_of(numbers, t)
    h, w, c, columns = numbers[H], numbers[W], numbers[C], numbers[SLAB_COLUMNS]
    top, left = line * numbers[STRIDE_H] + numbers[TOP_LINE], numbers[LEFT_COLUMN]
    read = (lines - 1) * numbers[STRIDE_H] + numbers[SLAB_LINES]
    for k in range(images):
        fill_lines(
            *(table, how, x, dy, parameters, width, image + k, h, w, c),
            *(top, left, read, columns, slab, k * read * columns * c),
        )
