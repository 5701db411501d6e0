"""Lanes: which threads of a batch of blocks are active, and values that have one element a lane.

A value is a NumPy scalar where all active lanes have the same, else a vector over the active lanes in ascending order.
A branch on which lanes disagree splits the active lanes; inside, variables are narrowed to those that are there, so
inactive lanes never compute. Where paths meet the lanes and the variables are joined.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.context import WARP
from kernels.emulator.types import convert

Vector = NDArray[Any]


class Batch:
    """Blocks that run together, as one vector: thread t of the b-th of them is lane b * threads + t."""

    def __init__(self, grid: tuple[int, int, int], block: tuple[int, int, int], first: int, count: int) -> None:
        self.grid = grid
        self.block = block
        self.first = first  # number of the first block, x fastest
        self.count = count
        self.threads = block[0] * block[1] * block[2]
        self.warps = -(-self.threads // WARP)  # of a block; the last may be part of one
        self.lanes = Lanes(self, None, None, count * self.threads)

    def block_position(self, number: int) -> tuple[int, int, int]:
        """A block's (x, y, z) from its number in the grid."""
        x, y, _ = self.grid
        return number % x, number // x % y, number // (x * y)

    def thread_position(self, number: int) -> tuple[int, int, int]:
        """A thread's (x, y, z) from its number in the block."""
        x, y, _ = self.block
        return number % x, number // x % y, number // (x * y)


class Lanes:
    """Active lanes. Vectors that depend on them alone are made when first asked for, then kept."""

    ids: Vector  # ascending
    thread: Vector  # number in its block
    row: Vector  # number of its block in the batch
    lane: Vector  # number in its warp
    warp: Vector  # number of its warp in the batch
    code: Vector  # number in the launch: block in the grid * threads + thread
    position: Vector  # where in the parent's lanes these are

    def __init__(self, batch: Batch, parent: "Lanes | None", mask: Vector | None, n: int) -> None:
        self.batch = batch
        self.n = n
        self.full = parent is None
        self._parent = parent
        self._mask = mask
        self._bases: dict[tuple[int, int], Vector] = {}

    @classmethod
    def of(cls, batch: Batch, ids: Vector) -> "Lanes":
        """The lanes with these ids, ascending."""
        lanes = cls(batch, batch.lanes, None, len(ids))
        lanes.ids = lanes.position = ids
        return lanes

    def __getattr__(self, name: str) -> Any:
        make = _VECTORS.get(name)
        if make is None:
            raise AttributeError(name)
        if self.full or name in ("ids", "position"):
            value = make(self)
        else:
            value = _take(getattr(self.batch.lanes, name), self.ids)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        setattr(self, name, value)
        return value

    def sub(self, mask: Vector, n: int) -> "Lanes":
        """Those of these lanes where the mask is set, n in number."""
        return Lanes(self.batch, self, mask, n)

    def split(self, condition: Any) -> "tuple[Lanes | None, Lanes | None]":
        """The lanes where a condition holds, and those where not; None for nobody."""
        if type(condition) is not np.ndarray:
            return (self, None) if condition else (None, self)
        n = int(np.count_nonzero(condition))
        if n == self.n:
            return self, None
        if n == 0:
            return None, self
        return self.sub(condition, n), self.sub(~condition, self.n - n)

    def gather(self, *values: Any) -> tuple[Any, ...]:
        """Values over the parent's lanes, narrowed to these."""
        position = self.position
        return tuple(
            [
                v.take(position) if type(v) is np.ndarray else v if isinstance(v, np.generic) else narrow(v, position)
                for v in values
            ]
        )

    def narrowed(self, value: Any) -> Any:
        """One value over the parent's lanes, narrowed to these."""
        return narrow(value, self.position)

    def find(self, other: "Lanes") -> Vector:
        """Where in these lanes the others are, all of which are among them."""
        if self.full:
            return other.ids
        if other._parent is self:
            return other.position
        return np.searchsorted(self.ids, other.ids)

    def shared_base(self, stride: int, start: int) -> Vector:
        """Where element 0 of a shared array is for each lane: its block's row * stride + start."""
        if (stride, start) not in self._bases:
            self._bases[stride, start] = self.row * stride + start
        return self._bases[stride, start]

    def vector(self, value: Any) -> Vector:
        """A value as one element a lane; not to be written to."""
        return value if isinstance(value, np.ndarray) else np.broadcast_to(value, self.n)

    def whole_blocks(self) -> bool:
        """Whether of each block all threads are active or none is."""
        if self.full:
            return True
        counts = np.bincount(self.row, minlength=self.batch.count)
        return bool(np.all((counts == 0) | (counts == self.batch.threads)))


def _ids(lanes: Lanes) -> Vector:
    if lanes._parent is None:
        return np.arange(lanes.n)
    return lanes._parent.ids.take(lanes.position)


def _row(lanes: Lanes) -> Any:
    return np.repeat(np.arange(lanes.batch.count), lanes.batch.threads)


def _axis(of_block: bool, axis: int) -> Any:
    def make(lanes: Lanes) -> Any:
        batch = lanes.batch
        if (batch.grid if of_block else batch.block)[axis] == 1:
            return np.int32(0)
        if of_block:
            numbers = np.arange(batch.first, batch.first + batch.count)
            coordinate = np.array(np.unravel_index(numbers, batch.grid[::-1]))[2 - axis].astype(np.int32)
            if np.all(coordinate == coordinate[0]):
                return coordinate[0]
            return np.repeat(coordinate, batch.threads)
        threads = np.array(np.unravel_index(np.arange(batch.threads), batch.block[::-1]))[2 - axis].astype(np.int32)
        return np.tile(threads, batch.count)

    return make


_VECTORS: dict[str, Any] = {
    "ids": _ids,
    "position": lambda lanes: lanes._mask.nonzero()[0],
    "thread": lambda lanes: np.tile(np.arange(lanes.batch.threads), lanes.batch.count),
    "row": _row,
    "lane": lambda lanes: (lanes.thread % WARP).astype(np.int32),
    "warp": lambda lanes: lanes.row * lanes.batch.warps + lanes.thread // WARP,
    "code": lambda lanes: lanes.ids + lanes.batch.first * lanes.batch.threads,
    "thread_x": _axis(False, 0),
    "thread_y": _axis(False, 1),
    "thread_z": _axis(False, 2),
    "block_x": _axis(True, 0),
    "block_y": _axis(True, 1),
    "block_z": _axis(True, 2),
}


def _take(value: Any, position: Vector) -> Any:
    return value.take(position) if isinstance(value, np.ndarray) else value


class Partial:
    """A variable that some of the lanes have not assigned."""

    def __init__(self, values: Vector, there: Vector) -> None:
        self.values = values
        self.there = there

    def narrowed(self, position: Vector) -> Any:
        """The variable at some of its lanes."""
        there = self.there.take(position)
        if there.all():
            return self.values.take(position)
        return Partial(self.values.take(position), there) if there.any() else None


def narrow(value: Any, position: Vector) -> Any:
    """A value at some of its lanes: of anything that a variable can be."""
    if isinstance(value, np.ndarray):
        return value.take(position)
    if isinstance(value, tuple):
        return tuple(narrow(item, position) for item in value)
    if hasattr(value, "narrowed"):
        return value.narrowed(position)
    return value


def join(
    parent: Lanes, parts: Sequence[tuple[Lanes | None, tuple[Any, ...]]], dtypes: Sequence[Any]
) -> tuple[Any, ...]:
    """Where paths meet: the lanes of all, and each variable over them.

    Args:
        parent: The lanes that the paths came from, of which some may have left.
        parts: Of each path the lanes (None for nobody) and the variables.
        dtypes: Of the variables that are numbers, else None.

    Returns:
        The lanes (None for nobody), then the variables.
    """
    there = [(lanes, values) for lanes, values in parts if lanes is not None]
    if not there:
        return None, *(None for _ in dtypes)
    if len(there) == 1:
        return there[0][0], *(_as(v, dtype) for v, dtype in zip(there[0][1], dtypes, strict=True))
    n = sum(lanes.n for lanes, _ in there)
    if n == parent.n:
        union = parent
    elif n == parent.batch.lanes.n:
        union = parent.batch.lanes
    else:
        union = Lanes.of(parent.batch, np.sort(np.concatenate([lanes.ids for lanes, _ in there])))
    positions = [union.find(lanes) for lanes, _ in there]
    columns = zip(*(values for _, values in there), strict=True)
    return union, *(merge(column, positions, n, dtype) for column, dtype in zip(columns, dtypes, strict=True))


def _as(value: Any, dtype: Any) -> Any:
    if dtype is None or value is None:
        return value
    if isinstance(dtype, tuple):
        return tuple(_as(item, item_dtype) for item, item_dtype in zip(value, dtype, strict=True))
    if isinstance(value, Partial):
        return Partial(convert(value.values, dtype), value.there)
    return convert(value, dtype)


def merge(values: Sequence[Any], positions: Sequence[Vector], n: int, dtype: Any) -> Any:
    """One variable of several paths, over the n lanes of all."""
    first = values[0]
    if all(value is first for value in values) and not isinstance(first, np.ndarray | Partial | tuple):
        return _as(first, dtype)
    if isinstance(dtype, tuple):
        unset = (None,) * len(dtype)
        columns = zip(*(unset if value is None else value for value in values), strict=True)
        return tuple(merge(column, positions, n, kind) for column, kind in zip(columns, dtype, strict=True))
    if dtype is None:
        merged = getattr(first, "merged", None)
        return Missing if merged is None else merged(values, positions, n)
    if any(value is None or isinstance(value, Partial) for value in values):
        return _merge_partial(values, positions, n, dtype)
    if not any(isinstance(value, np.ndarray) for value in values):
        alike = [convert(value, dtype) for value in values]
        if len({value.tobytes() for value in alike}) == 1:
            return alike[0]
    out = np.empty(n, dtype)
    for value, position in zip(values, positions, strict=True):
        out[position] = value if value.dtype == dtype else convert(value, dtype)
    return out


def _merge_partial(values: Sequence[Any], positions: Sequence[Vector], n: int, dtype: Any) -> Any:
    out, there = np.zeros(n, dtype), np.zeros(n, np.bool_)
    for value, position in zip(values, positions, strict=True):
        if isinstance(value, Partial):
            out[position] = convert(value.values, dtype)
            there[position] = value.there
        elif value is not None:
            out[position] = convert(value, dtype)
            there[position] = True
    return out if there.all() else Partial(out, there)


class Missing:
    """An array that not all lanes have: not to be used."""


def missing(value: Any, n: int) -> Vector | None:
    """Which of n lanes have not assigned a variable; None where all have."""
    if isinstance(value, tuple):
        found = [where for where in (missing(item, n) for item in value) if where is not None]
        return np.logical_or.reduce(found) if found else None
    if isinstance(value, Partial):
        return ~value.there
    return np.ones(n, np.bool_) if value is None or value is Missing else None
