"""Channels side by side, apart, first and last: operations that compute nothing and only move elements.

    concat, split   parts (..., c_i) <-> whole (..., sum of c_i), along the channels
    channels_first  (n, h, w, c) -> (n, c*h*w), PyTorch's flattening order; channels_last is its inverse: transposes of
                    n matrices, (h*w, c) and (c, h*w)

Shapes   on the device float32, C-contiguous.
Traffic  every element is read once and written once; concat and split launch once for each part.
Edges    Nothing here spreads a NaN to another element.
Source   the padded tile: G. Ruetsch, P. Micikevicius, "Optimizing matrix transpose in CUDA", NVIDIA, 2009.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.banks import BANKS, passes
from kernels.choice import choose, vectors
from kernels.device import index_type
from kernels.errors import ShapeError, require_shape
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques

Array = NDArray[Any]
Shape4 = tuple[int, int, int, int]
BLOCK = 256
TILE = 1024  # elements of a tile, at most: four for each thread of the block that moves it


def concat_reference(parts: Sequence[Array]) -> Array:
    """(..., sum of c_i): the parts (..., c_i) side by side."""
    return np.concatenate(parts, axis=-1)


def split_reference(whole: Array, channels: Sequence[int]) -> list[Array]:
    """The inverse of `concat_reference`: parts (..., c_i), with c_i in `channels`."""
    ends = np.cumsum(channels)
    return [whole[..., end - c : end].copy() for c, end in zip(channels, ends, strict=True)]


def channels_first_reference(x: Array) -> Array:
    """From x (n, h, w, c) to (n, c*h*w), in the order channel, height, width."""
    n, height, width, c = x.shape
    return x.transpose(0, 3, 1, 2).copy().reshape(n, c * height * width)


def channels_last_reference(x: Array, y_shape: Shape4) -> Array:
    """The inverse of `channels_first_reference`: x (n, c*h*w) to `y_shape` (n, h, w, c)."""
    n, height, width, c = y_shape
    return x.reshape(n, c, height, width).transpose(0, 2, 3, 1).copy()


@kernel(traffic="x -> y", partial="y", registers=24, examples=[(uint32, 5, 5, 8), (int64, 17, 83, 17)])
def copy_columns_scalar(index: Any, columns: int, x_pitch: int, y_pitch: int) -> Launch:
    """From a matrix with rows of `x_pitch` elements to one with rows of `y_pitch`, the first `columns` of each row.

    Other columns are copied by passing the array from there on. One element a thread.
    """

    def copy_columns(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:  # of rows * columns
            row = index(i // columns)
            column = index(i % columns)
            y[index(row * y_pitch + column)] = x[index(row * x_pitch + column)]

    return Launch(copy_columns, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(4 * n, 4 * n))


@kernel(
    traffic="x -> y",
    partial="y",
    registers=24,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[(uint32, 16, 16, 64), (int64, 32, 96, 32)],
)
def copy_columns_vector(index: Any, columns: int, x_pitch: int, y_pitch: int) -> Launch:
    """Four columns a thread, where their number and both pitches are multiples of 4: no row has a tail."""
    quads = columns // 4

    def copy_columns(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if 4 * i < n:
            row = index(i // quads)
            column = index(i % quads * 4)
            a, b, c, d = load4(x, index(row * x_pitch + column))
            store4(y, index(row * y_pitch + column), a, b, c, d)

    return Launch(copy_columns, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), lambda n: Cost(4 * n, 4 * n))


@kernel(traffic="x -> y", registers=32, examples=[(uint32, 784, 33), (int64, 9, 64)])
def transpose_plain(index: Any, rows: int, columns: int) -> Launch:
    """y[image] (columns, rows) = x[image] (rows, columns), transposed. One element a thread.

    Neighbouring threads write neighbours, but read elements that are `columns` apart: a sector of 32 bytes for each.
    """

    def transpose(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            row = index(i % rows)
            line = index(i // rows)  # of y: image * columns + column
            image = index(line // columns)
            column = index(line % columns)
            y[i] = x[index((image * rows + row) * columns + column)]

    return Launch(transpose, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(4 * n, 4 * n))


@kernel(
    traffic="x -> y",
    registers=40,
    instructions=("LDS", "STS"),
    examples=[(uint32, 784, 33), (uint32, 1024, 3), (int64, 4, 512)],
)
def transpose_tiled(index: Any, rows: int, columns: int) -> Launch:
    """Through a tile in shared memory: neighbouring threads read neighbours, and write neighbours.

    A tile is 32 wide in both directions, or as wide as a narrower matrix and longer for it. Its rows are padded to a
    pitch by which threads meet in few banks of shared memory; an odd one, 33, where the tile is square.
    """
    tile_rows, tile_columns = _tile(rows, columns)
    size, pitch = tile_rows * tile_columns, _pitch(tile_rows, tile_columns)
    shared = tile_rows * pitch
    down, across = blocks_for(rows, tile_rows), blocks_for(columns, tile_columns)
    steps = blocks_for(size, BLOCK)

    def transpose(x: Floats, y: Floats, images: Int64):  # noqa: ARG001 - images is for the grid
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
                tile[down_tile * pitch + across_tile] = x[index((image * rows + row) * columns + column)]
        cuda.syncthreads()
        for step in range(steps):
            place = uint32(step * BLOCK + cuda.threadIdx.x)
            down_tile, across_tile = uint32(place % tile_rows), uint32(place // tile_rows)
            row, column = uint32(top + down_tile), uint32(left + across_tile)
            if place < size and row < rows and column < columns:
                y[index((image * columns + column) * rows + row)] = tile[down_tile * pitch + across_tile]

    n = rows * columns
    return Launch(
        transpose, BLOCK, lambda images: images * down * across, lambda images: Cost(4 * n * images, 4 * n * images)
    )


@techniques("scalar", "vector")
def concat(run: Runner, parts: Sequence[DeviceArray], out: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`, once for each part (..., c_i) of out (..., sum of c_i).

    The vector technique takes parts that lie at multiples of four channels and 16 bytes. Where none is asked for by
    name, such parts are moved by it and the others by the scalar one.

    Raises:
        ShapeError: The leading axes differ, or the channels do not add up.
        TechniqueError: "vector" is asked for, and cannot take a part.
    """
    _check_parts("concat", "out", out, parts)
    pitch, pieces = out.shape[-1], _pieces(out, parts)
    chosen = _choices(run, "concat", technique, "out", pitch, parts, pieces)
    for part, piece, vector in zip(parts, pieces, chosen, strict=True):
        _copy_columns(run, part, piece, part.size, part.shape[-1], part.shape[-1], pitch, vector)


@techniques("scalar", "vector")
def split(run: Runner, whole: DeviceArray, parts: Sequence[DeviceArray], *, technique: str | None = None) -> None:
    """Launch on `run`, once for each part; the inverse of `concat`, which see."""
    _check_parts("split", "whole", whole, parts)
    pitch, pieces = whole.shape[-1], _pieces(whole, parts)
    chosen = _choices(run, "split", technique, "whole", pitch, parts, pieces)
    for part, piece, vector in zip(parts, pieces, chosen, strict=True):
        _copy_columns(run, piece, part, part.size, part.shape[-1], pitch, part.shape[-1], vector)


@techniques("plain", "tiled")
def channels_first(run: Runner, x: DeviceArray, y: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x is (n, h, w, c) and y (n, c*h*w)."""
    n, height, width, c = _image_shape("channels_first", "x", x)
    require_shape("channels_first", "y", y, (n, c * height * width))
    _transpose("channels_first", run, x, y, n, height * width, c, technique)


@techniques("plain", "tiled")
def channels_last(run: Runner, x: DeviceArray, y: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x is (n, c*h*w) and y (n, h, w, c)."""
    n, height, width, c = _image_shape("channels_last", "y", y)
    require_shape("channels_last", "x", x, (n, c * height * width))
    _transpose("channels_last", run, x, y, n, c, height * width, technique)


def _pieces(whole: DeviceArray, parts: Sequence[DeviceArray]) -> list[DeviceArray]:
    """What of the whole, taken as flat, begins where each part does."""
    flat, start, found = whole.reshape(-1), 0, []
    for part in parts:
        found.append(flat[start:])
        start += part.shape[-1]
    return found


def _choices(
    run: Runner,
    operation: str,
    technique: str | None,
    name: str,
    pitch: int,
    parts: Sequence[DeviceArray],
    pieces: Sequence[DeviceArray],
) -> list[bool]:
    """Of each part whether it is moved in vectors."""
    found, start = [], 0
    for i, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
        columns = part.shape[-1]
        in_fours = {f"channels of parts[{i}]": columns, "channels in all": pitch}
        moved = {f"parts[{i}]": part, f"{name} from channel {start}": piece}
        found.append(vectors(run, operation, technique, in_fours, **moved))
        start += columns
    return found


def _copy_columns(
    run: Runner, x: DeviceArray, y: DeviceArray, n: int, columns: int, x_pitch: int, y_pitch: int, vector: bool
) -> None:
    if n == 0:
        return
    factory = copy_columns_vector if vector else copy_columns_scalar
    run(factory(index_type(max(x.size, y.size)), columns, x_pitch, y_pitch), x, y, n)


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
    tiled = "tiled", True, lambda: f"matrices of {rows:,}x{columns:,}, read and written in rows through shared memory"
    # Of a single row or column nothing changes its place; a small image leaves a tile idle.
    plain = "plain", True, lambda: f"matrices of {rows:,}x{columns:,}, too small or too narrow for tiles"
    suited = min(rows, columns) > 1 and rows * columns >= BLOCK
    technique = choose(run, operation, technique, (tiled, plain) if suited else (plain, tiled), x=x, y=y)
    if x.size == 0:
        return
    if technique == "tiled":
        run(transpose_tiled(index_type(x.size), rows, columns), x, y, images)
    else:
        run(transpose_plain(index_type(x.size), rows, columns), x, y, x.size)


def _tile(rows: int, columns: int) -> tuple[int, int]:
    tile_columns = min(columns, 32)
    tile_rows = _part(rows, TILE // tile_columns)
    return tile_rows, _part(columns, TILE // tile_rows)


def _part(size: int, most: int) -> int:
    """Of an axis, at most `most`: all of it, or a multiple of 8, so that no two tiles share a sector."""
    return size if size <= most else max(most - most % 8, 1)


@functools.cache
def _pitch(tile_rows: int, tile_columns: int) -> int:
    """Of a tile's rows in shared memory: the one by which neighbours along a row, then along a column, meet least."""
    place = np.arange(tile_rows * tile_columns)

    def met(pitch: int) -> int:
        along_rows = place // tile_columns * pitch + place % tile_columns
        return passes(along_rows) + passes(place % tile_rows * pitch + place // tile_rows)

    return min(range(tile_columns, tile_columns + BANKS), key=met)


def _check_parts(operation: str, name: str, whole: DeviceArray, parts: Sequence[DeviceArray]) -> None:
    for i, part in enumerate(parts):
        if part.shape[:-1] != whole.shape[:-1]:
            raise ShapeError(
                f"{operation}: parts[{i}] has shape {tuple(part.shape)}, but {name} has {tuple(whole.shape)}; "
                "all axes but the last must be equal"
            )
    if sum(part.shape[-1] for part in parts) != whole.shape[-1]:
        channels = [part.shape[-1] for part in parts]
        raise ShapeError(f"{operation}: the parts have {channels} channels, but {name} has shape {tuple(whole.shape)}")


def _image_shape(operation: str, name: str, array: DeviceArray) -> Shape4:
    if array.ndim != 4:
        raise ShapeError(f"{operation}: {name} has shape {tuple(array.shape)}, expected (n, h, w, c)")
    n, height, width, c = array.shape
    return n, height, width, c
