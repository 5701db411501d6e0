"""The launch as the twin of an intrinsic sees it (`kernels.emulator.context.Context`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.context import Observer
from kernels.emulator.faults import DivergentBarrier, UnsupportedFeature
from kernels.emulator.lanes import Lanes
from kernels.emulator.shadow import READ, WRITE, Access

if TYPE_CHECKING:
    from kernels.emulator.machine import Machine

Vector = NDArray[Any]


@dataclass
class Copy:
    """Shared memory that cp.async is filling: elements of the shadow, and the thread of each."""

    array: Any
    units: Vector
    code: Vector


class TwinContext:
    """The active lanes and the memory, at one instruction."""

    def __init__(self, machine: "Machine", lanes: Lanes) -> None:
        self._machine = machine
        self._lanes = lanes
        self.threads = machine.threads

    @property
    def lanes(self) -> Vector:
        """Ids of the active lanes in the batch, ascending."""
        return self._lanes.ids

    @property
    def observer(self) -> Observer | None:
        """Who counts."""
        return self._machine.observer

    @property
    def place(self) -> tuple[str, int]:
        """File and line of the source."""
        return self._machine.place()

    def load(self, pointer: Any, index: Any, count: int = 1) -> tuple[Any, ...]:
        """Consecutive elements, one value each."""
        if count == 1:
            return (pointer.load(self._lanes, index),)
        return tuple(pointer.load_wide(self._lanes, index, count))

    def store(self, pointer: Any, index: Any, values: Sequence[Any]) -> None:
        """Store consecutive elements."""
        if len(values) == 1:
            pointer.store(self._lanes, index, values[0])
        else:
            pointer.store_wide(self._lanes, index, values)

    def vector(self, value: Any) -> Vector:
        """One element a lane."""
        return self._lanes.vector(value)

    def warps(self, value: Any) -> Vector:
        """One element a lane, as (warps, 32)."""
        self._machine.warp.require(self._lanes, np.uint32(0xFFFFFFFF), "an instruction of a whole warp")
        return self._machine.warp.rows(self._lanes, value)

    def unwarp(self, rows: Vector) -> Vector:
        """(warps, 32) as one element a lane."""
        return self._machine.warp.back(self._lanes, rows)

    def shared_address(self, array: Any, index: Any) -> Vector:
        """Byte addresses in the block's shared memory."""
        if array.space != "shared":
            self.refuse(f"the shared-memory address of {array.name}, which is in {array.space} memory")
        return array.addresses(self._lanes, index)

    def at_shared(self, address: Any, dtype: Any) -> tuple[Any, Vector]:
        """The shared array at an address, taken as one row of `dtype`, and the index in it."""
        dtype = np.dtype(dtype)
        addresses = np.asarray(self._lanes.vector(address), np.int64)
        arrays = list(self._machine.shared.values())
        # an array of this type first: dynamic shared memory may be several arrays at one place
        for array in sorted(arrays, key=lambda array: array.dtype != dtype):
            offset = addresses - array.address
            size = array.length * array.dtype.itemsize
            if not 0 <= offset[0] < size:
                continue
            if np.any(offset % dtype.itemsize):
                self.refuse(f"shared memory addressed at no multiple of {dtype.itemsize} bytes")
            if any(np.any(other.contains(addresses) & ~array.contains(addresses)) for other in arrays):
                self.refuse("addresses in several shared arrays in one instruction")
            return array.reinterpreted(dtype), offset // dtype.itemsize
        return self.refuse("an address that is in no shared array")

    def at_global(self, address: Any, dtype: Any) -> Any:
        """A pointer to global memory by address."""
        return self._machine.pointer(address, np.dtype(dtype))

    def address(self, pointer: Any, index: Any) -> Vector:
        """Byte addresses in global memory."""
        wide = np.asarray(self._lanes.vector(index)).astype(np.int64) * pointer.dtype.itemsize
        return np.asarray(wide.astype(np.uint64) + np.asarray(pointer.address, np.uint64), np.uint64)

    def add_release(self, pointer: Any, index: Any, value: Any) -> None:
        """Update numbers that other blocks wait for; see `kernels.emulator.release`."""
        machine, lanes = self._machine, self._lanes
        before = pointer.atomic(lanes, "add", index, (value,))
        after = before + lanes.vector(value)
        blocks = lanes.code // machine.threads
        machine.releases.add(machine.clock, self.address(pointer, index), blocks, before, after)

    def load_acquire(self, pointer: Any, index: Any) -> Vector:
        """Such numbers, as a block may see them."""
        machine, lanes = self._machine, self._lanes
        if not machine.cooperative:
            self.refuse("waiting for other blocks, which may not run at the same time: the launch is not cooperative")
        zero = np.zeros(1, pointer.dtype)[0]
        newest = pointer.atomic(lanes, "add", index, (zero,))
        found = machine.releases.load(self.address(pointer, index), lanes.code // machine.threads, newest)
        if found is None:
            what = f"a thread waits for a change of {pointer.name} that no thread will make"
            machine.fault(DivergentBarrier, what, code=int(lanes.code[0]), array=pointer.name)
        return found

    def start_copy(self, pointer: Any, index: Any, values: Sequence[Any]) -> Any:
        """Store into shared memory what is not to be read before `finish_copy`."""
        if pointer.space != "shared":
            self.refuse(f"an asynchronous copy to {pointer.name}, which is no shared array")
        self.store(pointer, index, values)
        return self._under_way(pointer, index, len(values))

    def _under_way(self, pointer: Any, index: Any, count: int) -> Any:
        memory = pointer.memory
        if memory.written is None:
            return None
        units = pointer.units(self._lanes, index, count)
        if memory.arriving is None:
            memory.arriving = np.zeros_like(memory.written)
        memory.written[units] = False
        memory.arriving[units] = True
        return Copy(pointer, units, self._lanes.code.repeat(len(units) // self._lanes.n))

    def finish_copy(self, token: Any, arrived: Vector | None = None) -> None:
        """What was copied is there, or that of some of the lanes."""
        if token is None:
            return
        units, code = token.units, token.code
        if arrived is not None:
            meant = arrived.repeat(len(units) // len(arrived))
            units, code = units[meant], code[meant]
        memory = token.array.memory
        memory.written[units] = True
        memory.arriving[units] = False
        machine = self._machine
        access = Access(WRITE, units, code, machine.clock, machine.place(), token.array.name)
        memory.shadow.access(token.array.key, access)

    def load_block(self, pointer: Any, index: Any, count: int) -> Vector:
        """Consecutive elements for each lane, (lanes, count), as the copy engine reads them."""
        return np.asarray(pointer.load_block(self._lanes, index, count))

    def start_bulk(self, pointer: Any, index: Any, values: Vector) -> Any:
        """As `start_copy`, of (lanes, count) elements."""
        pointer.store_block(self._lanes, index, values)
        return self._under_way(pointer, index, values.shape[1])

    def load_async(self, pointer: Any, index: Any, count: int) -> tuple[tuple[Any, ...], Any]:
        """Consecutive elements, read through the async proxy, and a token for `finish_read`."""
        values = self.load(pointer, index, count)
        proxy = pointer.memory.async_proxy
        if proxy is None:
            return values, None
        units = pointer.units(self._lanes, index, count)
        proxy.read(pointer, self._lanes, units, len(units) // self._lanes.n)
        return values, Copy(pointer, units, self._lanes.code.repeat(len(units) // self._lanes.n))

    def finish_read(self, token: Any, done: Vector) -> None:
        """What was read by those of the lanes may be overwritten."""
        if token is None or not done.any():
            return
        meant = done.repeat(len(token.units) // len(done))
        units, code = token.units[meant], token.code[meant]
        memory, machine = token.array.memory, self._machine
        memory.async_proxy.done(units)
        access = Access(READ, units, code, machine.clock, machine.place(), token.array.name)
        memory.shadow.access(token.array.key, access)

    def fence_proxy(self) -> None:
        """Show the async proxy what these lanes have stored to shared memory."""
        memory = self._machine.shared_memory
        if memory is not None and memory.async_proxy is not None:
            memory.async_proxy.fence(self._lanes)

    def require_fenced(self, pointer: Any, index: Any, count: int) -> None:
        """Fault where the async proxy may not see these elements of a shared array yet."""
        proxy = pointer.memory.async_proxy
        if proxy is not None:
            proxy.require(pointer, self._lanes, pointer.units(self._lanes, index, count), count)

    def row(self, array: Any, k: int) -> Any:
        """Element k of a local array: None or Partial where it is unset."""
        if array.space != "local":
            self.refuse(f"sums in {array.name}, which is in {array.space} memory and no local array")
        return array.row(self._lanes, k)

    def set_row(self, array: Any, k: int, row: Any) -> None:
        """Replace it."""
        array.set_row(self._lanes, k, row)

    def fault(self, kind: Any, what: str, array: Any = None) -> NoReturn:
        """Raise a fault of the first lane at this line."""
        name = None if array is None else array.name
        self._machine.fault(kind, what, code=int(self._lanes.code[0]), array=name)

    def within(self, mask: Vector) -> "TwinContext":
        """The same for some of the active lanes."""
        count = int(np.count_nonzero(mask))
        return self if count == self._lanes.n else TwinContext(self._machine, self._lanes.sub(mask, count))

    def state(self, key: str, make: Callable[[], Any]) -> Any:
        """What twins keep for this batch of blocks."""
        if key not in self._machine.states:
            self._machine.states[key] = make()
        return self._machine.states[key]

    def count(self, operation: str, dtype: Any, times: int = 1) -> None:
        """Tell of arithmetic on the active lanes."""
        if self.observer is not None:
            self.observer.arithmetic(self.place, operation, np.dtype(dtype), times * self._lanes.n)

    def refuse(self, what: str) -> NoReturn:
        """Raise UnsupportedFeature at this line."""
        self._machine.fault(UnsupportedFeature, what)
