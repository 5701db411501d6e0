"""Channels side by side and apart: operations that only move elements.

    concat, split   parts (..., c_i) <-> whole (..., sum of c_i), along the channels

Shapes   on the device C-contiguous. Parts and whole have one storage (kernels/storage.py), and their bits are moved.
Traffic  every element is read once and written once; concat and split launch once for each part.
Edges    Nothing here spreads a NaN to another element.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type
from kernels.errors import ShapeError
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage

Array = NDArray[Any]
BLOCK = 256


def concat_reference(parts: Sequence[Array]) -> Array:
    """(..., sum of c_i): the parts (..., c_i) side by side."""
    return np.concatenate(parts, axis=-1)


def split_reference(whole: Array, channels: Sequence[int]) -> list[Array]:
    """The inverse of `concat_reference`: parts (..., c_i), with c_i in `channels`."""
    ends = np.cumsum(channels)
    return [whole[..., end - c : end].copy() for c, end in zip(channels, ends, strict=True)]


@kernel(
    traffic="x -> y",
    partial="y",
    registers=24,
    examples=[(uint32, 5, 5, 8, FLOAT32), (int64, 17, 83, 17, FLOAT32), (uint32, 5, 5, 8, BFLOAT16)],
)
def copy_columns_scalar(index: Any, columns: int, x_pitch: int, y_pitch: int, storage: Storage) -> Launch:
    """From a matrix with rows of `x_pitch` elements to one with rows of `y_pitch`, the first `columns` of each row.

    Other columns are copied by passing the array from there on. One element a thread.
    """
    stored: Any = storage.pointer
    copy, size = storage.copy, storage.bytes

    def copy_columns(x: stored, y: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:  # of rows * columns
            row = index(i // columns)
            column = index(i % columns)
            copy(x, index(row * x_pitch + column), y, index(row * y_pitch + column))

    return Launch(copy_columns, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(size * n, size * n))


@kernel(
    traffic="x -> y",
    partial="y",
    registers=24,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[(uint32, 16, 16, 64, FLOAT32), (int64, 32, 96, 32, FLOAT32), (uint32, 16, 16, 64, FLOAT16)],
)
def copy_columns_vector(index: Any, columns: int, x_pitch: int, y_pitch: int, storage: Storage) -> Launch:
    """As many columns a thread as 16 bytes hold, where their number and both pitches are multiples of that.

    So no row has a tail. In 16 bits they are eight.
    """
    stored: Any = storage.pointer
    copy_wide, wide, size = storage.copy_wide, storage.wide, storage.bytes
    pieces = columns // wide

    def copy_columns(x: stored, y: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if wide * i < n:
            row = index(i // pieces)
            column = index(i % pieces * wide)
            copy_wide(x, index(row * x_pitch + column), y, index(row * y_pitch + column))

    return Launch(copy_columns, BLOCK, lambda n: blocks_for(n, wide * BLOCK), lambda n: Cost(size * n, size * n))


@techniques("scalar", "vector")
def concat(run: Runner, parts: Sequence[DeviceArray], out: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`, once for each part (..., c_i) of out (..., sum of c_i).

    The vector technique takes parts that lie at multiples of four channels (eight in 16 bits) and 16 bytes. Where none
    is asked for by name, such parts are moved by it and the others by the scalar one.

    Raises:
        ShapeError: The leading axes differ, or the channels do not add up.
        TypeError: They are stored differently.
        TechniqueError: "vector" is asked for, and cannot take a part.
    """
    storage = _check_parts("concat", "out", out, parts)
    pitch, pieces = out.shape[-1], _pieces(out, parts)
    chosen = _choices(run, "concat", technique, storage, "out", pitch, parts, pieces)
    for part, piece, vector in zip(parts, pieces, chosen, strict=True):
        _copy_columns(run, part, piece, part.size, (part.shape[-1], part.shape[-1], pitch, storage), vector)


@techniques("scalar", "vector")
def split(run: Runner, whole: DeviceArray, parts: Sequence[DeviceArray], *, technique: str | None = None) -> None:
    """Launch on `run`, once for each part; the inverse of `concat`, which see."""
    storage = _check_parts("split", "whole", whole, parts)
    pitch, pieces = whole.shape[-1], _pieces(whole, parts)
    chosen = _choices(run, "split", technique, storage, "whole", pitch, parts, pieces)
    for part, piece, vector in zip(parts, pieces, chosen, strict=True):
        _copy_columns(run, piece, part, part.size, (part.shape[-1], pitch, part.shape[-1], storage), vector)


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
    storage: Storage,
    name: str,
    pitch: int,
    parts: Sequence[DeviceArray],
    pieces: Sequence[DeviceArray],
) -> list[bool]:
    """Of each part whether it is moved in vectors."""
    found, start = [], 0
    for i, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
        columns = part.shape[-1]
        counted = {f"channels of parts[{i}]": columns, "channels in all": pitch}
        moved = {f"parts[{i}]": part, f"{name} from channel {start}": piece}
        found.append(vectors(run, operation, technique, counted, storage.wide, **moved))
        start += columns
    return found


def _copy_columns(
    run: Runner, x: DeviceArray, y: DeviceArray, n: int, options: tuple[int, int, int, Storage], vector: bool
) -> None:
    if n == 0:
        return
    factory = copy_columns_vector if vector else copy_columns_scalar
    run(factory(index_type(max(x.size, y.size)), *options), x, y, n)


def _check_parts(operation: str, name: str, whole: DeviceArray, parts: Sequence[DeviceArray]) -> Storage:
    for i, part in enumerate(parts):
        if part.shape[:-1] != whole.shape[:-1]:
            raise ShapeError(
                f"{operation}: parts[{i}] has shape {tuple(part.shape)}, but {name} has {tuple(whole.shape)}; "
                "all axes but the last must be equal"
            )
    if sum(part.shape[-1] for part in parts) != whole.shape[-1]:
        channels = [part.shape[-1] for part in parts]
        raise ShapeError(f"{operation}: the parts have {channels} channels, but {name} has shape {tuple(whole.shape)}")
    return common_storage(operation, **{name: whole}, **{f"parts[{i}]": part for i, part in enumerate(parts)})
