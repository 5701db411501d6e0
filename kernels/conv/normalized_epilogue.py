"""What a convolution finds of its own result, tile by tile, as it stores it: sums for batch normalization.

The tile lies in shared memory (kernels/matmul/tensor_epilogue.py), and a thread keeps to four columns, or eight
where the result has 16 bits. It adds its rows of them, at most 32; then one thread adds those sums of each column, in
order. A column takes part in no other's numbers, so a NaN poisons its own channel alone.

    statistics      shift (the mean of the tile's rows, rounded), sum and sum of squares about it: two passes over the
                    tile, so the variance loses nothing where the mean is large beside it; of the float32 sums, before
                    they are rounded to be stored
    gradient sums   of g and g * centred, with x read again at the places where g is stored; of g as it is stored,
                    which is what a pending gradient subtracts their means from

They are merged by kernels/batchnorm/partial_statistics.py and partial_gradients.py.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, uint32, uint64

from kernels.activation import passed
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.merging import finite
from kernels.conv.normalized_arrival import OF_ACTIVATION, Kind, reader, rounder
from kernels.device import inlined
from kernels.matmul.tensor_epilogue import Rows, laid, staged, taken
from kernels.matmul.tensor_tiles import CHUNK, TensorTile
from kernels.storage import Storage

AHEAD = 8  # rows whose x is under way at once


def scratch_floats(tile: TensorTile, storage: Storage) -> int:
    """Of shared memory, for the tile and the sums of its columns."""
    rows = Rows.of(tile, storage.wide)
    return rows.floats + (2 * rows.apart + 1) * tile.columns


def _adders(tile: TensorTile, chunk: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Device functions: put(memory, sums, which), a thread's own; sum_of(memory, column, which), after a barrier.

    `which` is 0 or 1: two kinds of sums may be there at once.
    """
    _, apart, _, floats = Rows.of(tile, chunk)
    columns, lay = tile.columns, laid(chunk)

    @inlined
    def put(memory, sums, which):
        place = floats + which * (apart * columns) + uint32(cuda.threadIdx.x) * chunk  # a row of threads, a row of sums
        lay(memory, place, sums)

    @inlined
    def sum_of(memory, column, which):
        total = float32(0)
        for i in range(apart):
            total += memory[uint64(floats + (which * apart + i) * columns + column)]
        return total

    return put, sum_of


def with_statistics(
    tile: TensorTile, index: Any, storage: Storage, store: Callable[..., Any], keep: Callable[..., Any]
) -> Callable[..., Any]:
    """Make the epilogue that stores y and finds its statistics.

    Args:
        tile: Of the product.
        index: uint32 or int64.
        storage: Of y.
        store: As in `kernels.matmul.tensor_epilogue.in_chunks`.
        keep: Inlined device function (c, column, shift, sum, square).
    """
    chunk = storage.wide
    stage, take, (put, sum_of) = staged(tile, index), taken(chunk), _adders(tile, chunk)
    across, apart, pitch, floats = Rows.of(tile, chunk)
    tile_rows, tile_columns = tile.rows, tile.columns
    shifts = floats + 2 * apart * tile_columns  # where they are, a column each
    share = 1 / tile.rows  # a power of 2: a sum of such shares is as exact, and overflows nowhere

    @inlined
    def finish(memory, sums, c, rows, columns, first_row, first_column):
        stage(memory, sums, c, rows, columns, first_row, first_column)
        total = cuda.local.array(chunk, float32)
        square = cuda.local.array(chunk, float32)
        values = cuda.local.array(chunk, float32)
        near = cuda.local.array(chunk, float32)
        thread = uint32(cuda.threadIdx.x)
        own, count = thread % across * chunk, min(tile_rows, rows - first_row)
        column = index(first_column + own)
        for j in range(chunk):
            total[j] = float32(0)
        for row in range(thread // across, count, apart):
            take(memory, row * pitch + own, values)
            if column < columns:
                store(c, index(first_row + row), column, values)
            for j in range(chunk):
                total[j] += values[j] * float32(share)
        put(memory, total, 0)
        cuda.syncthreads()
        if thread < tile_columns:
            mean = sum_of(memory, thread, 0) * (float32(tile_rows) / float32(count))
            memory[uint64(shifts + thread)] = mean if finite(mean) else float32(0)
        cuda.syncthreads()
        take(memory, shifts + own, near)
        for j in range(chunk):
            total[j] = float32(0)
            square[j] = float32(0)
        for row in range(thread // across, count, apart):
            take(memory, row * pitch + own, values)
            for j in range(chunk):
                difference = values[j] - near[j]
                total[j] += difference
                square[j] += difference * difference
        put(memory, total, 0)
        put(memory, square, 1)
        cuda.syncthreads()
        if thread < tile_columns and first_column + thread < columns:
            shift = memory[uint64(shifts + thread)]
            keep(c, index(first_column + thread), shift, sum_of(memory, thread, 0), sum_of(memory, thread, 1))

    return finish


def with_gradient_sums(
    tile: TensorTile,
    index: Any,
    storage: Storage,
    kind: Kind,
    find: Callable[..., Any],
    keep: Callable[..., Any],
    mend: Callable[..., Any],
) -> Callable[..., Any]:
    """Make the epilogue that stores g and sums it; its c is ((g, x, known of x's channels), what the functions take).

    Args:
        tile: Of the product.
        index: uint32 or int64.
        storage: Of g and x.
        kind: Of the normalization that x went through.
        find: Inlined device function (c, row, column) -> whether there is such an element, and its place in g and x.
        keep: Inlined device function (c, column, sum, product).
        mend: As in `kernels.matmul.tensor_epilogue.staged`.
    """
    chunk = storage.wide
    stage, take, (put, sum_of) = staged(tile, index, mend), taken(chunk), _adders(tile, chunk)
    across, apart, pitch, _ = Rows.of(tile, chunk)
    tile_rows, tile_columns = tile.rows, tile.columns
    ahead = min(AHEAD * CHUNK // chunk, tile_rows // apart)
    read, relu, kept, loads = reader(kind, chunk), kind.relu, chunk * OF_ACTIVATION, chunk * ahead
    one, two, three = chunk, 2 * chunk, 3 * chunk
    load_wide, store_wide, rounded = storage.load_wide, storage.store_wide, rounder(storage)

    @inlined
    def finish(memory, sums, c, rows, columns, first_row, first_column):
        stage(memory, sums, c, rows, columns, first_row, first_column)
        numbers = cuda.local.array(kept, float32)
        x_values = cuda.local.array(loads, float32)
        there = cuda.local.array(ahead, int32)
        places = cuda.local.array(ahead, index)
        gradients = cuda.local.array(chunk, float32)
        values = cuda.local.array(chunk, float32)
        total = cuda.local.array(chunk, float32)
        product = cuda.local.array(chunk, float32)
        (dx, x, known), _ = c
        thread = uint32(cuda.threadIdx.x)
        own, count = thread % across * chunk, min(tile_rows, rows - first_row)
        column = index(first_column + own)
        for j in range(chunk):
            total[j] = float32(0)
            product[j] = float32(0)
        if column < columns:
            read(known, column, numbers)
            for begin in range(thread // across, count, ahead * apart):
                for i in range(ahead):
                    there[i] = 0
                    if begin + i * apart < count:
                        exists, places[i] = find(c, index(first_row + begin + i * apart), column)
                        if exists:
                            there[i] = 1
                            load_wide(x, places[i], values)
                            for j in range(chunk):
                                x_values[chunk * i + j] = values[j]
                for i in range(ahead):
                    if there[i] != 0:
                        take(memory, (begin + i * apart) * pitch + own, values)
                        for j in range(chunk):
                            value, g = x_values[chunk * i + j], rounded(values[j])
                            if relu:
                                y = normalized(
                                    value, numbers[j], numbers[one + j], numbers[two + j], numbers[three + j]
                                )
                                g = passed(g, y)
                            gradients[j] = g
                            total[j] += g
                            product[j] += g * ((value - numbers[j]) - numbers[one + j])
                        store_wide(dx, places[i], gradients)
        put(memory, total, 0)
        put(memory, product, 1)
        cuda.syncthreads()
        if thread < tile_columns and first_column + thread < columns:
            keep(c, index(first_column + thread), sum_of(memory, thread, 0), sum_of(memory, thread, 1))

    return finish
