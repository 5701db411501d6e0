"""The matrix product through shared memory that convolution and linear share: one skeleton, other loads and stores.

A block makes one tile of the result. It walks along the depth: all threads load a slab of both factors into shared
memory, wait, multiply what is there, wait, and go on. So an element of a factor is read from global memory once for
each tile that needs it, not once for each product. In the multiplication a thread owns `thread_rows` x
`thread_columns` elements of the tile and holds them in registers: each value from shared memory is used that often.

What a and b are is up to `load_a(a, row, k)` and `load_b(b, k, column)`: a convolution gathers windows there. Where a
product has few tiles and much depth, the depth is cut into slices; each writes a result of its own, its part, and
`kernels.slices.in_slices` adds the parts up in a fixed order.

Source   V. Volkov, J. Demmel, "Benchmarking GPUs to tune dense linear algebra", SC 2008; S. Chetlur et al., "cuDNN:
         efficient primitives for deep learning", 2014, arXiv:1410.0759 (windows gathered on the way to shared memory).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, int64, uint32

from kernels.device import inlined
from kernels.launch import blocks_for

PADDING = 2  # floats after each line of a slab: neither the stores nor the loads of a warp meet in a bank


class Tile(NamedTuple):
    """What one block makes, and in which portions. `threads` is a multiple of `depth`, `rows` and `columns`."""

    rows: int
    columns: int
    depth: int  # of a slab
    thread_rows: int
    thread_columns: int

    @property
    def down(self) -> int:
        """Rows from one of a thread's elements to the next; thread t begins in row t // across."""
        return self.rows // self.thread_rows

    @property
    def across(self) -> int:
        """Columns from one of a thread's elements to the next; thread t begins in column t % across."""
        return self.columns // self.thread_columns

    @property
    def threads(self) -> int:
        """In a block."""
        return self.down * self.across

    def cover(self, rows: int, columns: int) -> int:
        """Tiles that cover a result."""
        return blocks_for(rows, self.rows) * blocks_for(columns, self.columns)


LARGE = Tile(64, 64, 16, 4, 4)
MEDIUM = Tile(64, 32, 16, 4, 2)
TALL = Tile(128, 16, 16, 4, 2)
SMALL = Tile(16, 16, 16, 1, 1)
TILES = (LARGE, MEDIUM, TALL, SMALL)

ENOUGH = 512  # blocks that fill a GPU
LEAST = 128  # steps of depth below which a slice is not worth its sum


def tile_for(columns: int, rows: int | None = None) -> Tile:
    """The tile for a result of so many columns and rows; without `rows` they are taken as many."""
    if rows is not None and rows <= 32:
        return SMALL
    if columns <= 16:
        return TALL
    return MEDIUM if columns <= 32 else LARGE


def span_of(depth: int, tile: Tile, tiles: int) -> int:
    """Steps of depth for one slice, a multiple of the tile's: as many slices as fill a GPU with `tiles` blocks each."""
    slices = max(1, min(ENOUGH // max(1, tiles), depth // LEAST))
    return max(1, blocks_for(depth, slices * tile.depth)) * tile.depth


def slices_of(depth: int, span: int) -> int:
    """Slices of `span` steps that cover the depth; one where there is none, for its zeros must be written."""
    return max(1, blocks_for(depth, span))


def place_of(tile: Tile) -> Callable[..., Any]:
    """Make a device function: where in a result of `rows` x `columns` a block is.

    Returns (part, first row, first column). Tiles of a row of tiles follow one another, as they share what they read of
    a; the parts come last.
    """
    tile_rows, tile_columns = tile.rows, tile.columns

    @inlined
    def place(rows, columns):
        across = uint32((columns + tile_columns - 1) // tile_columns)
        down = uint32((rows + tile_rows - 1) // tile_rows)
        block = uint32(cuda.blockIdx.x)
        line = uint32(block // across)
        return int64(line // down), line % down * tile_rows, block % across * tile_columns

    return place


def tile_product(
    tile: Tile,
    index: Any,
    load_a: Callable[..., Any],
    load_b: Callable[..., Any],
    store: Callable[..., Any],
    a_along_depth: bool,
    b_along_depth: bool,
) -> Callable[..., Any]:
    """Make the device function of a tile: multiply(a, b, c, rows, columns, first_row, first_column, first, last).

    The product is of rows x depth and depth x columns elements; the tile that begins at (first_row, first_column) is
    summed over the depth from `first` to `last`. a, b and c are whatever the loads and the store take: pointers, or
    tuples of a pointer and what is needed besides. Returns whether an element that the thread stored is NaN.

    Args:
        tile: What a block makes.
        index: uint32 or int64; holds every row, column and step of depth.
        load_a: Inlined device function (a, row, k) -> float32; the row and k are within bounds.
        load_b: Inlined device function (b, k, column) -> float32.
        store: Inlined device function (c, row, column, value).
        a_along_depth: Whether neighbours in memory are neighbours in k rather than in the row.
        b_along_depth: Whether neighbours in memory are neighbours in k rather than in the column.
    """
    threads, depth, thread_rows, thread_columns = tile.threads, tile.depth, tile.thread_rows, tile.thread_columns
    a_slab, b_slab = (depth, tile.rows + PADDING), (depth, tile.columns + PADDING)
    a_loads, b_loads = tile.rows * depth // threads, tile.columns * depth // threads
    a_element = _spread(tile.rows, depth, threads, a_along_depth)
    b_element = _spread(tile.columns, depth, threads, b_along_depth)
    own = thread_rows, thread_columns
    down, across = tile.down, tile.across

    @inlined
    def multiply(a, b, c, rows, columns, first_row, first_column, first, last):
        a_tile = cuda.shared.array(a_slab, float32)
        b_tile = cuda.shared.array(b_slab, float32)
        sums = cuda.local.array(own, float32)
        b_values = cuda.local.array(thread_columns, float32)
        thread = uint32(cuda.threadIdx.x)
        y, x = thread // across, thread % across
        for i in range(thread_rows):
            for j in range(thread_columns):
                sums[i, j] = float32(0)

        for start in range(first, last, depth):
            for i in range(a_loads):
                line, step = a_element(thread, i)
                row, k = index(first_row + line), index(start + step)
                value = float32(0)
                if row < rows and k < last:
                    value = load_a(a, row, k)
                a_tile[step, line] = value
            for i in range(b_loads):
                line, step = b_element(thread, i)
                column, k = index(first_column + line), index(start + step)
                value = float32(0)
                if column < columns and k < last:
                    value = load_b(b, k, column)
                b_tile[step, line] = value
            cuda.syncthreads()
            for k in range(depth):
                for j in range(thread_columns):
                    b_values[j] = b_tile[k, x + j * across]
                for i in range(thread_rows):
                    a_value = a_tile[k, y + i * down]
                    for j in range(thread_columns):
                        sums[i, j] += a_value * b_values[j]
            cuda.syncthreads()

        has_nan = False
        for i in range(thread_rows):
            for j in range(thread_columns):
                row, column = index(first_row + y + i * down), index(first_column + x + j * across)
                if row < rows and column < columns:
                    store(c, row, column, sums[i, j])
                    has_nan |= sums[i, j] != sums[i, j]
        return has_nan

    return multiply


def _spread(lines: int, depth: int, threads: int, along_depth: bool) -> Callable[..., Any]:
    """Make a device function: the (line, step) of a slab that a thread loads as its i-th."""
    if along_depth:
        stride = threads // depth

        @inlined
        def element(thread, i):
            return thread // depth + i * stride, thread % depth

    else:
        stride = threads // lines

        @inlined
        def element(thread, i):
            return thread % lines, thread // lines + i * stride

    return element
