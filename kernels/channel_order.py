"""Channels first and last: the order of an image's elements, and of a row of features.

    channels_first  (n, h, w, c) -> (n, c*h*w), PyTorch's flattening order; channels_last is its inverse: transposes of
                    n matrices, (h*w, c) and (c, h*w)

Shapes   on the device C-contiguous. The two arrays may be stored differently (kernels/storage.py): elements are
         converted on the way.
Traffic  every element is read once and written once.
Edges    Nothing here spreads a NaN to another element.
Source   the padded tile: G. Ruetsch, P. Micikevicius, "Optimizing matrix transpose in CUDA", NVIDIA, 2009.
"""

import functools
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.banks import BANKS, passes
from kernels.choice import choose
from kernels.device import index_type
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, SECTOR, Storage, storage_of

Array = NDArray[Any]
Shape4 = tuple[int, int, int, int]
BLOCK = 256
TILE = 1024  # elements of a tile, at most: four for each thread of the block that moves it


def channels_first_reference(x: Array) -> Array:
    """From x (n, h, w, c) to (n, c*h*w), in the order channel, height, width."""
    n, height, width, c = x.shape
    return x.transpose(0, 3, 1, 2).copy().reshape(n, c * height * width)


def channels_last_reference(x: Array, y_shape: Shape4) -> Array:
    """The inverse of `channels_first_reference`: x (n, c*h*w) to `y_shape` (n, h, w, c)."""
    n, height, width, c = y_shape
    return x.reshape(n, c, height, width).transpose(0, 2, 3, 1).copy()


@kernel(
    traffic="x -> y",
    registers=32,
    examples=[
        (uint32, 784, 33, FLOAT32, FLOAT32),
        (int64, 9, 64, FLOAT32, FLOAT32),
        (uint32, 784, 33, BFLOAT16, FLOAT32),
        (uint32, 9, 64, FLOAT32, FLOAT16),
    ],
)
def transpose_plain(index: Any, rows: int, columns: int, x_storage: Storage, y_storage: Storage) -> Launch:
    """y[image] (columns, rows) = x[image] (rows, columns), transposed. One element a thread.

    Neighbouring threads write neighbours, but read elements that are `columns` apart: a sector of 32 bytes for each.
    """
    x_stored: Any = x_storage.pointer
    y_stored: Any = y_storage.pointer
    load, store = x_storage.load, y_storage.store
    x_size, y_size = x_storage.bytes, y_storage.bytes

    def transpose(x: x_stored, y: y_stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            row = index(i % rows)
            line = index(i // rows)  # of y: image * columns + column
            image = index(line // columns)
            column = index(line % columns)
            store(y, i, load(x, index((image * rows + row) * columns + column)))

    return Launch(transpose, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(x_size * n, y_size * n))


@kernel(
    traffic="x -> y",
    registers=40,
    instructions=("LDS", "STS"),
    examples=[
        (uint32, 784, 33, FLOAT32, FLOAT32),
        (uint32, 1024, 3, FLOAT32, FLOAT32),
        (int64, 4, 512, FLOAT32, FLOAT32),
        (uint32, 784, 64, BFLOAT16, FLOAT32),
        (uint32, 512, 49, FLOAT32, FLOAT16),
    ],
)
def transpose_tiled(index: Any, rows: int, columns: int, x_storage: Storage, y_storage: Storage) -> Launch:
    """Through a tile in shared memory: neighbouring threads read neighbours, and write neighbours.

    A tile is 32 wide in both directions, or as wide as a narrower matrix and longer for it. Its rows are padded to a
    pitch by which threads meet in few banks of shared memory; an odd one, 33, where the tile is square. It holds
    float32, however x and y are stored.
    """
    x_stored: Any = x_storage.pointer
    y_stored: Any = y_storage.pointer
    load, store = x_storage.load, y_storage.store
    tile_rows, tile_columns = _tile(rows, columns, SECTOR // min(x_storage.bytes, y_storage.bytes))
    size, pitch = tile_rows * tile_columns, _pitch(tile_rows, tile_columns)
    shared = tile_rows * pitch
    down, across = blocks_for(rows, tile_rows), blocks_for(columns, tile_columns)
    steps = blocks_for(size, BLOCK)

    def transpose(x: x_stored, y: y_stored, images: Int64):  # noqa: ARG001 - images is for the grid
        tile = cuda.shared.array(shared, float32)
        block = uint32(cuda.blockIdx.x)
        image = index(block // (down * across))
        top = uint32(block // across % down * tile_rows)
        left = uint32(block % across * tile_columns)
        for step in range(steps):
            place = uint32(step * BLOCK + cuda.threadIdx.x)
            down_tile, across_tile = uint32(place // tile_columns), uint32(place % tile_columns)
            row, column = uint32(top + down_tile), uint32(left + across_tile)
            if place < size and row < rows and column < columns:
                tile[down_tile * pitch + across_tile] = load(x, index((image * rows + row) * columns + column))
        cuda.syncthreads()
        for step in range(steps):
            place = uint32(step * BLOCK + cuda.threadIdx.x)
            down_tile, across_tile = uint32(place % tile_rows), uint32(place // tile_rows)
            row, column = uint32(top + down_tile), uint32(left + across_tile)
            if place < size and row < rows and column < columns:
                place = index((image * columns + column) * rows + row)
                store(y, place, tile[down_tile * pitch + across_tile])

    reads, writes = rows * columns * x_storage.bytes, rows * columns * y_storage.bytes
    return Launch(
        transpose, BLOCK, lambda images: images * down * across, lambda images: Cost(reads * images, writes * images)
    )


@techniques("plain", "tiled")
def channels_first(run: Runner, x: DeviceArray, y: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x is (n, h, w, c) and y (n, c*h*w), TypeError for an unknown dtype."""
    n, height, width, c = _image_shape("channels_first", "x", x)
    require_shape("channels_first", "y", y, (n, c * height * width))
    _transpose("channels_first", run, x, y, n, height * width, c, technique)


@techniques("plain", "tiled")
def channels_last(run: Runner, x: DeviceArray, y: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x is (n, c*h*w) and y (n, h, w, c), TypeError for an unknown dtype."""
    n, height, width, c = _image_shape("channels_last", "y", y)
    require_shape("channels_last", "x", x, (n, c * height * width))
    _transpose("channels_last", run, x, y, n, c, height * width, technique)


def _transpose(
    operation: str,
    run: Runner,
    x: DeviceArray,
    y: DeviceArray,
    images: int,
    rows: int,
    columns: int,
    technique: str | None,
) -> None:
    storages = storage_of(x, f"{operation}: x"), storage_of(y, f"{operation}: y")
    tiled = "tiled", True, lambda: f"matrices of {rows:,}x{columns:,}, read and written in rows through shared memory"
    # Of a single row or column nothing changes its place; a small image leaves a tile idle.
    plain = "plain", True, lambda: f"matrices of {rows:,}x{columns:,}, too small or too narrow for tiles"
    suited = min(rows, columns) > 1 and rows * columns >= BLOCK
    technique = choose(run, operation, technique, (tiled, plain) if suited else (plain, tiled), x=x, y=y)
    if x.size == 0:
        return
    if technique == "tiled":
        run(transpose_tiled(index_type(x.size), rows, columns, *storages), x, y, images)
    else:
        run(transpose_plain(index_type(x.size), rows, columns, *storages), x, y, x.size)


def _tile(rows: int, columns: int, sector: int) -> tuple[int, int]:
    tile_columns = min(columns, 32)
    tile_rows = _part(rows, TILE // tile_columns, sector)
    return tile_rows, _part(columns, TILE // tile_rows, sector)


def _part(size: int, most: int, sector: int) -> int:
    """Of an axis, at most `most`: all of it, or whole sectors of so many elements, so that no two tiles share one."""
    return size if size <= most else max(most - most % sector, 1)


@functools.cache
def _pitch(tile_rows: int, tile_columns: int) -> int:
    """Of a tile's rows in shared memory: the one by which neighbours along a row, then along a column, meet least."""
    place = np.arange(tile_rows * tile_columns)

    def met(pitch: int) -> int:
        along_rows = place // tile_columns * pitch + place % tile_columns
        return passes(along_rows) + passes(place % tile_rows * pitch + place // tile_rows)

    return min(range(tile_columns, tile_columns + BANKS), key=met)


def _image_shape(operation: str, name: str, array: DeviceArray) -> Shape4:
    if array.ndim != 4:
        raise ShapeError(f"{operation}: {name} has shape {tuple(array.shape)}, expected (n, h, w, c)")
    n, height, width, c = array.shape
    return n, height, width, c
