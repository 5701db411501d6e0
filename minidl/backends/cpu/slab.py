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
def place_of(numbers, image, line, lines, in_place):
    """Where a tile's windows begin, elements from line to line and from image to image: in the slab or in x."""
    w, c, stride = numbers[W], numbers[C], numbers[STRIDE_H]
    start, pitch, read = 0, numbers[SLAB_COLUMNS] * c, (lines - 1) * stride + numbers[SLAB_LINES]
    if in_place:
        pitch, read = w * c, numbers[H]
        start = (image * read + line * stride + numbers[TOP_LINE]) * pitch + numbers[LEFT_COLUMN] * c
    return start, pitch, read * pitch


@called
def clear(array, begin, count):
    """Zeros in `count` elements; assigning one to a slice takes Numba twice as long to compile."""
    part = array[begin : begin + count]
    for i in range(len(part)):
        part[i] = np.float32(0)


@called
def fill_tile(table, numbers, image, images, line, lines, how, x, dy, parameters, width, slab):
    """All that a tile reads, image after image, line after line; zeros where there is nothing.

    `how` is a pass of `table` that reads x and dy and `parameters`, whose rows are of `width`. All are flat.
    """
    h, w, c, columns = numbers[H], numbers[W], numbers[C], numbers[SLAB_COLUMNS]
    stride, left = numbers[STRIDE_H], numbers[LEFT_COLUMN]
    top = line * stride + numbers[TOP_LINE]
    begin = min(max(0, -left), columns)
    end = max(begin, min(columns, w - left))
    at = 0
    for k in range(image, image + images):
        for row in range(top, top + (lines - 1) * stride + numbers[SLAB_LINES]):
            if row < 0 or row >= h:
                clear(slab, at, columns * c)
            else:
                here, there, count = ((k * h + row) * w + left + begin) * c, at + begin * c, (end - begin) * c
                clear(slab, at, begin * c)
                call_pass(table[how], count, width, x, here, dy, here, x, 0, parameters, 0, slab, there, slab, 0)
                clear(slab, there + count, (columns - end) * c)
            at += columns * c
