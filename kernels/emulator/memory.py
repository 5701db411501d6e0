"""Arrays in memory, and those in global memory.

All are indexed flat by `load(lanes, index)` and `store(lanes, index, value)`; several indices are a tuple. An index is
a scalar or a vector over the lanes. Each access is checked against the array's bounds, then its shadow is told of it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.atomics import update
from kernels.emulator.faults import MisalignedAccess, ModifiedInput, OutOfBounds, UninitialisedRead
from kernels.emulator.lanes import Lanes
from kernels.emulator.shadow import ATOMIC, READ, WRITE, Access, OwnerShadow, WriterShadow

if TYPE_CHECKING:
    from kernels.emulator.machine import Machine

Vector = NDArray[Any]
INT64 = np.dtype(np.int64)
OBSERVED = {READ: "load", WRITE: "store", ATOMIC: "atomic"}


class Memory:
    """An array that kernels access by a flat index."""

    space = ""

    def __init__(
        self, machine: "Machine", name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: Vector, address: int
    ) -> None:
        self.machine = machine
        self.name = name
        self.dtype = dtype
        self.dims = shape
        self.length = math.prod(shape)
        self.data = data  # all of it, flat
        self.address = address  # in bytes, of element 0
        self.counted_from = address  # where the observer is told that it starts
        self.watched = True  # whether reads are of interest to anyone

    @property
    def shape(self) -> tuple[np.int64, ...]:
        """As the kernel sees it."""
        return tuple(np.int64(extent) for extent in self.dims)

    @property
    def size(self) -> np.int64:
        """As the kernel sees it."""
        return np.int64(self.length)

    def load(self, lanes: Lanes, index: Any) -> Any:
        """The elements at `index`, one a lane; a scalar where all are the same one."""
        inside = self.bounded(lanes, index)
        flat = self._flat(lanes, inside)
        if self.watched:
            self._before(READ, lanes, inside, flat, 1)
        return self.data.take(flat, mode="wrap") if type(flat) is np.ndarray else self.data[flat]

    def store(self, lanes: Lanes, index: Any, value: Any) -> None:
        """Store one element a lane."""
        inside = self.bounded(lanes, index)
        flat = self._flat(lanes, inside)
        self._before(WRITE, lanes, inside, flat, 1)
        if type(flat) is not np.ndarray and type(value) is np.ndarray:
            value = value[-1]  # several lanes store to one element: a race, unless there is one lane only
        self.data[flat] = value

    def load_wide(self, lanes: Lanes, index: Any, count: int) -> tuple[Any, ...]:
        """`count` consecutive elements, aligned to their width."""
        inside = self._aligned(lanes, self.bounded(lanes, index, count), count)
        flat = self._flat(lanes, inside)
        self._before(READ, lanes, inside, flat, count)
        if type(flat) is not np.ndarray:
            return tuple(self.data[flat : flat + count])
        return tuple(self.data[(flat[:, None] + np.arange(count)).T])

    def store_wide(self, lanes: Lanes, index: Any, values: Sequence[Any]) -> None:
        """Store consecutive elements, aligned to their width."""
        inside = self._aligned(lanes, self.bounded(lanes, index, len(values)), len(values))
        flat = self._flat(lanes, inside)
        self._before(WRITE, lanes, inside, flat, len(values))
        for k, value in enumerate(values):
            uniform = type(flat) is not np.ndarray and type(value) is np.ndarray
            self.data[flat + k] = value[-1] if uniform else value

    def atomic(self, lanes: Lanes, operation: str, index: Any, values: Sequence[Any]) -> Any:
        """Update elements one lane after the other. Returns what each found."""
        inside = self.bounded(lanes, index)
        flat = lanes.vector(self._flat(lanes, inside))
        self._before(ATOMIC, lanes, inside, flat, 1)
        return update(self.data, operation, flat, [lanes.vector(value) for value in values])

    def load_block(self, lanes: Lanes, index: Any, count: int) -> Vector:
        """`count` consecutive elements for each lane, (lanes, count), as the copy engine reads them."""
        inside = lanes.vector(self.bounded(lanes, index, count))
        self._before(READ, lanes, inside, inside, count, in_bulk=True)
        return np.asarray(self.data[inside[:, None] + np.arange(count)])

    def _flat(self, lanes: Lanes, inside: Any) -> Any:  # noqa: ARG002
        """Where in `data` an index is that is within bounds."""
        return inside

    def _before(self, kind: str, lanes: Lanes, inside: Any, flat: Any, count: int, in_bulk: bool = False) -> None:
        """Check an access of `count` elements, and tell who wants to know."""
        raise NotImplementedError

    def bounded(self, lanes: Lanes, index: Any, count: int = 1) -> Any:
        """The index as int, or int64 vector, after a check that index ... index + count - 1 are in the array."""
        if type(index) is tuple:
            index = self._of_axes(lanes, index)
            if count == 1:
                return index
        room = self.length - count + 1
        if type(index) is np.ndarray:
            wide = index if index.dtype == INT64 else index.astype(np.int64)
            if room <= 0 or np.maximum.reduce(wide.view(np.uint64)) >= room:
                what = "index" if count == 1 else f"{count} elements from index"
                self.outside(lanes, wide, (wide < 0) | (wide >= room), what)
            return wide
        number = int(index)
        if not 0 <= number < room:
            what = "index" if count == 1 else f"{count} elements from index"
            self.outside(lanes, np.full(lanes.n, number), np.ones(lanes.n, np.bool_), what)
        return number

    def _of_axes(self, lanes: Lanes, indices: tuple[Any, ...]) -> Any:
        """The flat index of several, each of which must be within its axis."""
        flat: Any = 0
        for axis, (index, extent) in enumerate(zip(indices, self.dims, strict=True)):
            if type(index) is np.ndarray:
                index = index if index.dtype == INT64 else index.astype(np.int64)
                inside = extent > 0 and np.maximum.reduce(index.view(np.uint64)) < extent
            else:
                index = int(index)
                inside = 0 <= index < extent
            if not inside:
                bad = lanes.vector(index)
                self.outside(lanes, bad, (bad < 0) | (bad >= extent), f"index {axis}")
            flat = flat * extent + index
        return flat

    def outside(self, lanes: Lanes, index: Vector, bad: Vector, what: str) -> NoReturn:
        """Raise OutOfBounds of the first lane where `bad` is set."""
        k = int(bad.argmax())
        size = f"of {self.length} elements" if len(self.dims) == 1 else f"of shape {self.dims}"
        hint = " (Numba counts a negative index from the end of an array)" if index[k] < 0 else ""
        self.fault(OutOfBounds, f"{what} {index[k]} is outside {self.name} {size}{hint}", lanes, k)

    def _aligned(self, lanes: Lanes, index: Any, count: int) -> Any:
        width = count * self.dtype.itemsize
        at = lanes.vector(index)
        wrong = (at * self.dtype.itemsize + self.address) % width != 0
        if wrong.any():
            k = int(wrong.argmax())
            what = f"{width}-byte access to {self.name}[{at[k]}], whose address is no multiple of that"
            self.fault(MisalignedAccess, what, lanes, k)
        return index

    def fault(self, kind: Any, what: str, lanes: Lanes, k: int) -> NoReturn:
        """Raise a fault of the k-th of these lanes."""
        self.machine.fault(kind, what, code=int(lanes.code[k]), array=self.name)

    def observe(self, kind: str, lanes: Lanes, inside: Any, count: int, in_bulk: bool = False) -> None:
        """Tell the observer, if there is one; of what is copied in bulk as if all threads had 16 bytes at a time."""
        if in_bulk:
            self._observe_in_bulk(kind, lanes, lanes.vector(inside), count)
            return
        machine = self.machine
        if machine.observer is not None:
            itemsize = self.dtype.itemsize
            address = lanes.vector(inside) * itemsize + self.counted_from
            machine.observer.memory(
                machine.place(), OBSERVED[kind], self.space, self.name, address, count * itemsize, lanes.ids,
                machine.threads,
            )  # fmt: skip

    def _observe_in_bulk(self, kind: str, lanes: Lanes, inside: Vector, count: int) -> None:
        machine, itemsize = self.machine, self.dtype.itemsize
        if machine.observer is None:
            return
        chunks = np.arange(0, count * itemsize, 16)
        for first in range(0, len(chunks), machine.threads):
            some = chunks[first : first + machine.threads]
            address = (inside[:, None] * itemsize + self.counted_from + some).ravel()
            alike = (lanes.row[:, None] * machine.threads + np.arange(len(some))).ravel()
            machine.observer.memory(
                machine.place(), OBSERVED[kind], self.space, self.name, address, 16, alike, machine.threads
            )


def spread(index: Vector, count: int) -> Vector:
    """Each index and its count - 1 successors."""
    return index if count == 1 else (index[:, None] + np.arange(count)).ravel()


def _as_on_a_gpu(data: Vector) -> int:
    """The address of an array as if the memory that it lies in had come from a GPU's allocator, 256-byte aligned."""
    owner = data
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    start = owner.ctypes.data
    return int(start - start % 256 + (data.ctypes.data - start))


class Global(Memory):
    """An argument, or an array that is reached by its address."""

    space = "global"

    def __init__(self, machine: "Machine", name: str, data: Vector) -> None:
        super().__init__(machine, name, data.dtype, data.shape, data, data.ctypes.data)
        self.counted_from = _as_on_a_gpu(data)
        self.refuses_stores = False
        self.is_read = self.is_written = False  # by the kernel, as far as its source says
        self.shift = 0  # where in the shadow, which arrays that overlap share, this one starts
        self.written: Vector | None = None  # of an output, element by element
        self.shadow: WriterShadow | OwnerShadow | None = None

    def merged(self, values: Sequence[Any], positions: Sequence[Vector], n: int) -> Any:
        """One pointer of several, that differ by lane."""
        from kernels.emulator.pointers import merged_pointers

        return merged_pointers(values, positions, n)

    def _before(self, kind: str, lanes: Lanes, inside: Any, flat: Any, count: int, in_bulk: bool = False) -> None:
        if kind != READ and self.refuses_stores:
            self.fault(ModifiedInput, f"{self.name} is only to be read", lanes, 0)
        assert self.is_read if kind == READ else self.is_written, f"{kind} of {self.name} was not foreseen"
        self.observe(kind, lanes, inside, count, in_bulk)
        if self.written is None and self.shadow is None:
            return
        elements = spread(lanes.vector(flat), count)
        if self.written is not None:
            if kind != WRITE:
                self._require_written(lanes, elements, count)
            self.written[elements] = True
        if self.shadow is not None:
            machine = self.machine
            code = lanes.code if count == 1 else lanes.code.repeat(count)
            if self.shift:
                elements = elements + self.shift
            self.shadow.access(Access(kind, elements, code, machine.clock, machine.place(), self.name))

    def _require_written(self, lanes: Lanes, elements: Vector, count: int) -> None:
        assert self.written is not None
        there = self.written.take(elements)
        if not there.all():
            k = int((~there).argmax())
            what = f"{self.name}[{elements[k]}] is read before anything was written there"
            self.fault(UninitialisedRead, what, lanes, k // count)
