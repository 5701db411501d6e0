"""Shared memory of the blocks of a batch."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.async_proxy import AsyncProxy
from kernels.emulator.faults import UninitialisedRead, UnsupportedFeature
from kernels.emulator.lanes import Lanes
from kernels.emulator.memory import Memory, spread
from kernels.emulator.shadow import WRITE, Access, SharedShadow
from kernels.emulator.source import parse

if TYPE_CHECKING:
    from kernels.emulator.machine import Machine

Vector = NDArray[Any]
STATIC_SHARED = 48 * 1024  # bytes of a block that the assembler grants
SHARED = 227 * 1024  # with what is asked for at launch, on compute capability 9.0
POISON = 0xA5  # what uninitialised shared memory holds: unlikely to be right by chance


class SharedMemory:
    """All shared memory of a batch: `block_bytes` a block, one after the other."""

    def __init__(self, machine: "Machine", blocks: int, block_bytes: int, unit: int) -> None:
        self.block_bytes = block_bytes
        self.unit = unit  # bytes of the smallest element; shadows count in these
        self.bytes = np.full(blocks * block_bytes, POISON, np.uint8)
        self.per_block = block_bytes // unit
        self.shadow: SharedShadow | None = None
        self.written: Vector | None = None  # per unit
        self.arriving: Vector | None = None  # per unit: being copied by cp.async
        self.async_proxy: AsyncProxy | None = None
        if machine.checks:
            self.written = np.zeros(blocks * self.per_block, np.bool_)
            self.shadow = SharedShadow(len(self.written), self.per_block, machine.total_threads, machine.race)
            if machine.program.async_proxy:
                self.async_proxy = AsyncProxy(len(self.written))


class Shared(Memory):
    """An array in shared memory, of which each block has its own."""

    space = "shared"

    def __init__(
        self,
        machine: "Machine",
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        memory: SharedMemory,
        offset: int,
        key: Any,
    ) -> None:
        # its address is what a block's threads know: bytes from the start of their block's shared memory
        super().__init__(machine, name, dtype, shape, memory.bytes.view(dtype), offset)
        self.memory = memory
        self.key = key  # arrays with different keys never overlap
        self.watched = memory.shadow is not None or machine.observer is not None
        self._units = dtype.itemsize // memory.unit
        self._stride = memory.block_bytes // dtype.itemsize
        self._start = offset // dtype.itemsize

    def _flat(self, lanes: Lanes, inside: Any) -> Any:
        # one number if the batch is one block and the index uniform
        if lanes.batch.count == 1:
            return inside + self._start
        return lanes.shared_base(self._stride, self._start) + inside

    def addresses(self, lanes: Lanes, index: Any) -> Vector:
        """Byte addresses in the block's shared memory."""
        inside = self.bounded(lanes, index)
        return np.asarray(lanes.vector(inside) * self.dtype.itemsize + self.address, np.uint32)

    def contains(self, addresses: Vector) -> Vector:
        """Of byte addresses in the block's shared memory, which are in this array."""
        return (addresses >= self.address) & (addresses < self.address + self.length * self.dtype.itemsize)

    def reinterpreted(self, dtype: np.dtype[Any]) -> "Shared":
        """The same bytes as one row of another type."""
        if dtype == self.dtype and len(self.dims) == 1:
            return self
        if dtype.itemsize < self.memory.unit:
            what = f"not supported by the emulator: {self.name}, of {self.dtype}, taken as {dtype}"
            self.machine.fault(UnsupportedFeature, what, array=self.name)
        shape = (self.length * self.dtype.itemsize // dtype.itemsize,)
        return Shared(self.machine, self.name, dtype, shape, self.memory, self.address, self.key)

    def units(self, lanes: Lanes, index: Any, count: int) -> Vector:
        """The shadow's elements of `count` elements from an index on."""
        flat = lanes.vector(self._flat(lanes, self.bounded(lanes, index, count)))
        return spread(flat * self._units, count * self._units)

    def store_block(self, lanes: Lanes, index: Any, values: Vector) -> None:
        """Store (lanes, count) consecutive elements for each lane, as the copy engine does."""
        count = values.shape[1]
        inside = self.bounded(lanes, index, count)
        flat = lanes.vector(self._flat(lanes, inside))
        self._before(WRITE, lanes, inside, flat, count, in_bulk=True)
        self.data[flat[:, None] + np.arange(count)] = values

    def _before(self, kind: str, lanes: Lanes, inside: Any, flat: Any, count: int, in_bulk: bool = False) -> None:
        machine, memory = self.machine, self.memory
        self.observe(kind, lanes, inside, count, in_bulk)
        if memory.shadow is None or memory.written is None:
            return
        elements, code = lanes.vector(flat), lanes.code
        repeat = count * self._units
        if repeat > 1:
            elements, code = spread(elements * self._units, repeat), code.repeat(repeat)
        if kind == WRITE:
            if memory.async_proxy is not None:
                memory.async_proxy.store(self, lanes, elements, repeat, in_bulk)
            memory.written[elements] = True
        else:
            there = memory.written.take(elements, mode="wrap")
            if not there.all():
                k = int((~there).argmax())
                self._uninitialised(lanes, k // repeat, elements[k], int(lanes.vector(inside)[k // repeat]))
        memory.shadow.access(self.key, Access(kind, elements, code, machine.clock, machine.place(), self.name))

    def _uninitialised(self, lanes: Lanes, k: int, element: int, index: int) -> None:
        arriving = self.memory.arriving
        if arriving is not None and arriving[element]:
            what = f"{self.name}[{index}] is read while cp.async copies it: wait for the copy first"
        else:
            what = f"{self.name}[{index}] is read before anything was written there"
        self.fault(UninitialisedRead, what, lanes, k)


def check_size(machine: "Machine", dynamic: int) -> None:
    """Refuse a launch whose blocks ask for more shared memory than a GPU has; `dynamic`: bytes asked for at launch."""
    if machine.static_bytes > STATIC_SHARED:
        tree = parse(machine.program.function).tree
        machine.fault(
            UnsupportedFeature,
            f"{machine.static_bytes:,} bytes of static shared memory; a GPU gives at most {STATIC_SHARED:,}",
            place=(machine.program.function.__code__.co_filename, tree.lineno),
        )
    if machine.static_bytes + dynamic > SHARED:
        raise ValueError(
            f"{machine.program.name}: {machine.static_bytes:,} bytes of static and {dynamic:,} of dynamic shared "
            f"memory; a GPU gives at most {SHARED:,}"
        )
