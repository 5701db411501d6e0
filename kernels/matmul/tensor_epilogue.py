"""What becomes of the sums of a tile that tensor cores have made (kernels/matmul/tensor_product.py).

A thread holds pairs of neighbouring columns, eight rows apart. `in_pairs` stores them as they are: 8 bytes a store, and
a full sector of 32 bytes a row. `in_fours` takes them through shared memory, where the slabs were: then a warp stores
whole rows, 16 bytes a thread, and each thread keeps to the same four columns, which is what sums over rows want. Rows
lie there PADDING floats further apart than they are long, so neither the pairs of four rows nor the fours of one meet
in a bank. `in_chunks` is the same for a result of any storage: in 16 bits a thread keeps to eight columns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, uint32, uint64

from kernels.device import WARP, inlined
from kernels.intrinsics import load4, store2, store4
from kernels.matmul.tensor_fragments import COLUMNS, ROWS
from kernels.matmul.tensor_tiles import CHUNK, PADDING, TensorTile
from kernels.storage import Storage


class Rows(NamedTuple):
    """How threads go down a tile in shared memory: thread t has chunk t % across of columns, rows t // across on."""

    across: int
    apart: int  # rows from one of a thread's to the next
    pitch: int  # floats from one row to the next
    floats: int  # of the tile

    @classmethod
    def of(cls, tile: TensorTile, chunk: int = CHUNK) -> "Rows":
        """Those of a tile; `chunk`: columns of a thread."""
        across, pitch = tile.columns // chunk, tile.columns + PADDING
        return cls(across, tile.threads // across, pitch, tile.rows * pitch)


@inlined
def as_they_are(c, row, column, value):  # noqa: ARG001
    """`mend` where there is nothing to mend."""
    return value


def in_pairs(tile: TensorTile, index: Any, store: Callable[..., Any]) -> Callable[..., Any]:
    """Make the epilogue that stores from registers.

    Args:
        tile: Of the product.
        index: uint32 or int64.
        store: Inlined device function (c, row, column, value, next_value): two neighbours of a row, from an even
            column on.
    """
    down, across = tile.warp_rows // ROWS, tile.warp_columns // COLUMNS
    warps_across = tile.columns // tile.warp_columns
    warp_rows, warp_columns = tile.warp_rows, tile.warp_columns

    @inlined
    def finish(memory, sums, c, rows, columns, first_row, first_column):  # noqa: ARG001
        warp, lane = uint32(cuda.threadIdx.x) // WARP, uint32(cuda.threadIdx.x) % WARP
        own_row = first_row + warp // warps_across * warp_rows + lane // 4
        own_column = first_column + warp % warps_across * warp_columns + lane % 4 * 2
        for i in range(down):
            for half in range(2):
                row = index(own_row + 16 * i + 8 * half)
                if row < rows:
                    for j in range(across):
                        column = index(own_column + 8 * j)
                        if column < columns:
                            store(c, row, column, sums[i, j, 2 * half], sums[i, j, 2 * half + 1])

    return finish


def staged(tile: TensorTile, index: Any, mend: Callable[..., Any] = as_they_are) -> Callable[..., Any]:
    """Make the device function stage(memory, sums, c, rows, columns, first_row, first_column).

    It puts the sums in shared memory, as `Rows` says, and returns when all are there.

    Args:
        tile: Of the product.
        index: uint32 or int64.
        mend: Inlined device function (c, row, column, value) -> what an element that is NaN should be.
    """
    down, across = tile.warp_rows // ROWS, tile.warp_columns // COLUMNS
    warps_across = tile.columns // tile.warp_columns
    warp_rows, warp_columns = tile.warp_rows, tile.warp_columns
    pitch = Rows.of(tile).pitch
    mends, own, own_columns = mend is not as_they_are, warp_rows * warp_columns // WARP, warp_columns // 4

    @inlined
    def stage(memory, sums, c, rows, columns, first_row, first_column):
        warp, lane = uint32(cuda.threadIdx.x) // WARP, uint32(cuda.threadIdx.x) % WARP
        own_row = warp // warps_across * warp_rows + lane // 4
        own_column = warp % warps_across * warp_columns + lane % 4 * 2
        place = uint32(own_row * pitch + own_column)
        cuda.syncthreads()  # all have done with the last slab
        has_nan = False
        for i in range(down):
            for half in range(2):
                for j in range(across):
                    left, right = sums[i, j, 2 * half], sums[i, j, 2 * half + 1]
                    store2(memory, uint64(place + (16 * i + 8 * half) * pitch + 8 * j), left, right)
                    has_nan |= left != left or right != right
        if mends and has_nan:
            for i in range(own):
                row = own_row + i // own_columns * 8
                column = own_column + i % own_columns // 2 * 8 + i % 2
                value = memory[row * pitch + column]
                if value != value and first_row + row < rows and first_column + column < columns:
                    at = index(first_row + row), index(first_column + column)
                    memory[row * pitch + column] = mend(c, at[0], at[1], value)
        cuda.syncthreads()

    return stage


def in_fours(
    tile: TensorTile, index: Any, store: Callable[..., Any], mend: Callable[..., Any] = as_they_are
) -> Callable[..., Any]:
    """Make the epilogue that stores 16 bytes at a time.

    Args:
        tile: Of the product.
        index: uint32 or int64.
        store: Inlined device function (c, row, column, a, b, d, e): four neighbours of a row, from a multiple of 4 on.
        mend: As in `staged`.
    """
    stage = staged(tile, index, mend)
    across, apart, pitch, _ = Rows.of(tile)
    tile_rows = tile.rows

    @inlined
    def finish(memory, sums, c, rows, columns, first_row, first_column):
        stage(memory, sums, c, rows, columns, first_row, first_column)
        thread = uint32(cuda.threadIdx.x)
        own = thread % across * CHUNK
        column = index(first_column + own)
        if column < columns:
            for row in range(thread // across, min(tile_rows, rows - first_row), apart):
                a, b, d, e = load4(memory, uint64(row * pitch + own))
                store(c, index(first_row + row), column, a, b, d, e)

    return finish


def taken(chunk: int) -> Callable[..., Any]:
    """Make the device function take(memory, word, values): floats from a multiple of `chunk` on, 4 or 8 of them.

    With eight, neighbouring threads' first halves are 8 floats apart, so every other four threads of a pass over the
    banks begin with their second half.
    """
    if chunk == CHUNK:

        @inlined
        def take(memory, word, values):
            values[0], values[1], values[2], values[3] = load4(memory, uint64(word))

    else:

        @inlined
        def take(memory, word, values):
            swapped = uint32(cuda.threadIdx.x) // 4 % 2
            first = load4(memory, uint64(word + swapped * 4))
            second = load4(memory, uint64(word + (1 - swapped) * 4))
            for j in range(CHUNK):
                values[j] = second[j] if swapped != 0 else first[j]
                values[CHUNK + j] = first[j] if swapped != 0 else second[j]

    return take


def laid(chunk: int) -> Callable[..., Any]:
    """Make the device function lay(memory, word, values): what `taken` takes."""
    if chunk == CHUNK:

        @inlined
        def lay(memory, word, values):
            store4(memory, uint64(word), values[0], values[1], values[2], values[3])

    else:

        @inlined
        def lay(memory, word, values):
            swapped = uint32(cuda.threadIdx.x) // 4 % 2
            first = cuda.local.array(CHUNK, float32)
            second = cuda.local.array(CHUNK, float32)
            for j in range(CHUNK):
                first[j] = values[CHUNK + j] if swapped != 0 else values[j]
                second[j] = values[j] if swapped != 0 else values[CHUNK + j]
            store4(memory, uint64(word + swapped * 4), first[0], first[1], first[2], first[3])
            store4(memory, uint64(word + (1 - swapped) * 4), second[0], second[1], second[2], second[3])

    return lay


def in_chunks(
    tile: TensorTile,
    index: Any,
    storage: Storage,
    store: Callable[..., Any],
    mend: Callable[..., Any] = as_they_are,
) -> Callable[..., Any]:
    """Make the epilogue that stores 16 bytes at a time, of a result in any storage.

    Args:
        tile: Of the product.
        index: uint32 or int64.
        storage: Of the result.
        store: Inlined device function (c, row, column, values): storage.wide neighbours of a row, float32, from a
            multiple of that on.
        mend: As in `staged`.
    """
    chunk = storage.wide
    stage, take = staged(tile, index, mend), taken(chunk)
    across, apart, pitch, _ = Rows.of(tile, chunk)
    tile_rows = tile.rows

    @inlined
    def finish(memory, sums, c, rows, columns, first_row, first_column):
        stage(memory, sums, c, rows, columns, first_row, first_column)
        values = cuda.local.array(chunk, float32)
        thread = uint32(cuda.threadIdx.x)
        own = thread % across * chunk
        column = index(first_column + own)
        if column < columns:
            for row in range(thread // across, min(tile_rows, rows - first_row), apart):
                take(memory, row * pitch + own, values)
                store(c, index(first_row + row), column, values)

    return finish
