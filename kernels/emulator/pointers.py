"""Ways to arrays in global memory other than a flat index: several axes and strides, pointers made from addresses."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.faults import UnsupportedFeature
from kernels.emulator.lanes import Lanes
from kernels.emulator.memory import Global

if TYPE_CHECKING:
    from kernels.emulator.machine import Machine

Vector = NDArray[Any]


class View:
    """An argument that is not one contiguous row: several axes, or strides."""

    def __init__(self, memory: Global, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
        self.memory = memory
        self.name = memory.name
        self.dtype = memory.dtype
        self.dims = shape
        self.length = math.prod(shape)
        self.shape = tuple(np.int64(extent) for extent in shape)
        self.size = np.int64(self.length)
        self._strides = strides  # in elements
        self._offset = offset

    def _flat(self, lanes: Lanes, index: Any) -> Any:
        indices = index if type(index) is tuple else (index,)
        flat: Any = self._offset
        for axis, (given, extent, stride) in enumerate(zip(indices, self.dims, self._strides, strict=True)):
            wide = given.astype(np.int64) if type(given) is np.ndarray else int(given)
            bad = lanes.vector((wide < 0) | (wide >= extent))
            if bad.any():
                what = "index" if len(self.dims) == 1 else f"index {axis}"
                self.memory.outside(lanes, lanes.vector(wide), bad, what)
            flat = flat + wide * stride
        return flat

    def load(self, lanes: Lanes, index: Any) -> Any:
        """As `Memory.load`."""
        return self.memory.load(lanes, self._flat(lanes, index))

    def store(self, lanes: Lanes, index: Any, value: Any) -> None:
        """As `Memory.store`."""
        self.memory.store(lanes, self._flat(lanes, index), value)

    def atomic(self, lanes: Lanes, operation: str, index: Any, values: Sequence[Any]) -> Any:
        """As `Memory.atomic`."""
        return self.memory.atomic(lanes, operation, self._flat(lanes, index), values)

    def load_wide(self, *_: Any) -> NoReturn:
        """Refuse: what is consecutive is not clear."""
        what = f"not supported by the emulator: wide access to {self.name}, which is no flat array"
        self.memory.machine.fault(UnsupportedFeature, what, array=self.name)

    store_wide = load_wide

    def elements(self) -> Vector:
        """Flat indices of all elements in the memory."""
        flat = np.full(self.dims, self._offset)
        for axis, (extent, stride) in enumerate(zip(self.dims, self._strides, strict=True)):
            steps = np.arange(extent) * stride
            flat = flat + steps.reshape([-1 if a == axis else 1 for a in range(len(self.dims))])
        return flat.ravel()


class Address:
    """A pointer made from an address, which may differ by lane; it leads to arrays that the launch may reach."""

    def __init__(self, machine: "Machine", address: Any, dtype: np.dtype[Any]) -> None:
        self.machine = machine
        self.address = address
        self.dtype = dtype
        self.name = "memory by address"

    def narrowed(self, position: Vector) -> "Address":
        """The pointer at some of its lanes."""
        address = self.address
        return Address(self.machine, address.take(position) if type(address) is np.ndarray else address, self.dtype)

    def merged(self, values: Sequence[Any], positions: Sequence[Vector], n: int) -> "Address":
        """One pointer of several."""
        return merged_pointers(values, positions, n)

    def _parts(self, lanes: Lanes, index: Any) -> list[tuple[Global, Lanes, Vector | None, Any]]:
        """The arrays reached, each with the lanes, their positions among all (None for all) and flat indices."""
        address = self.address
        if type(address) is not np.ndarray:
            memory, start = self.machine.reached(int(address), self.dtype, lanes)
            if type(index) is not np.ndarray:
                return [(memory, lanes, None, int(index) + start)]
            return [(memory, lanes, None, index.astype(np.int64) + start if start else index)]
        where = np.asarray(lanes.vector(index)).astype(np.int64)
        parts: list[tuple[Global, Lanes, Vector | None, Any]] = []
        bases, which = np.unique(address, return_inverse=True)
        for k, base in enumerate(bases):
            memory, start = self.machine.reached(int(base), self.dtype, lanes)
            position = (which == k).nonzero()[0]
            some = lanes if len(position) == lanes.n else Lanes.of(lanes.batch, lanes.ids.take(position))
            parts.append((memory, some, position, where.take(position) + start))
        return parts

    def load(self, lanes: Lanes, index: Any) -> Any:
        """As `Memory.load`."""
        return self.load_wide(lanes, index, 1)[0]

    def load_wide(self, lanes: Lanes, index: Any, count: int) -> tuple[Any, ...]:
        """As `Memory.load_wide`."""
        parts = self._parts(lanes, index)
        if parts[0][2] is None:
            memory, some, _, flat = parts[0]
            return (memory.load(some, flat),) if count == 1 else memory.load_wide(some, flat, count)
        out = np.empty((count, lanes.n), self.dtype)
        for memory, some, position, flat in parts:
            loaded = (memory.load(some, flat),) if count == 1 else memory.load_wide(some, flat, count)
            for row, values in zip(out, loaded, strict=True):
                row[position] = values
        return tuple(out)

    def store(self, lanes: Lanes, index: Any, value: Any) -> None:
        """As `Memory.store`."""
        self.store_wide(lanes, index, [value])

    def store_wide(self, lanes: Lanes, index: Any, values: Sequence[Any]) -> None:
        """As `Memory.store_wide`."""
        for memory, some, position, flat in self._parts(lanes, index):
            here = values
            if position is not None:
                here = [lanes.vector(value).take(position) for value in values]
            if len(values) == 1:
                memory.store(some, flat, here[0])
            else:
                memory.store_wide(some, flat, here)

    def atomic(self, lanes: Lanes, operation: str, index: Any, values: Sequence[Any]) -> Any:
        """As `Memory.atomic`."""
        out = np.empty(lanes.n, self.dtype)
        for memory, some, position, flat in self._parts(lanes, index):
            here = [lanes.vector(value) for value in values]
            if position is None:
                return memory.atomic(some, operation, flat, here)
            out[position] = memory.atomic(some, operation, flat, [value.take(position) for value in here])
        return out


def merged_pointers(values: Sequence[Any], positions: Sequence[Vector], n: int) -> Any:
    """One pointer of several, that differ by lane."""
    machine, dtype = values[0].machine, values[0].dtype
    address = np.zeros(n, np.uint64)
    for value, position in zip(values, positions, strict=True):
        address[position] = value.address
    return Address(machine, address, dtype)
