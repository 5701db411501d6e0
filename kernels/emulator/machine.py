"""What a translated kernel runs on: the memory, the barriers, and where it stands when something goes wrong."""

import operator
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.context import Observer
from kernels.emulator.faults import (
    DataRace,
    DivergentBarrier,
    KernelFault,
    MisalignedAccess,
    OutOfBounds,
    UndefinedArithmetic,
    UninitialisedRead,
    UnsupportedFeature,
)
from kernels.emulator.lanes import Batch, Lanes, merge, missing
from kernels.emulator.local import Local
from kernels.emulator.memory import Global
from kernels.emulator.pointers import Address
from kernels.emulator.release import Releases
from kernels.emulator.shadow import Clock, Place
from kernels.emulator.shared import Shared, SharedMemory
from kernels.emulator.translation import Program, SharedSite
from kernels.emulator.twin_context import TwinContext
from kernels.emulator.types import convert
from kernels.emulator.warp import Warps

Vector = NDArray[Any]
Size = tuple[int, int, int]


class Machine:
    """One launch."""

    def __init__(
        self,
        program: Program,
        grid: Size,
        block: Size,
        shared_bytes: int,
        checks: bool,
        observer: Observer | None,
        cooperative: bool = False,
    ) -> None:
        self.program = program
        self.grid = grid
        self.block = block
        self.checks = checks
        self.cooperative = cooperative or program.cooperative  # all blocks run at once
        self.observer = observer
        self.threads = block[0] * block[1] * block[2]
        self.blocks = grid[0] * grid[1] * grid[2]
        self.total_threads = self.blocks * self.threads
        self.block_size_x, self.block_size_y, self.block_size_z = (np.int32(size) for size in block)
        self.grid_size_x, self.grid_size_y, self.grid_size_z = (np.int32(size) for size in grid)
        self.warp = Warps(self)
        self.memories: list[Global] = []  # all that the launch may reach
        self.shared: dict[Any, Shared] = {}
        self.shared_memory: SharedMemory | None = None
        self.states: dict[str, Any] = {}
        self.releases = Releases(self.blocks)
        per_block = -(-self.threads // 32)
        self.clock = Clock(0, np.zeros(self.blocks, np.int64), np.zeros(0, np.int64), 0, self.threads, 0)
        self._warps_per_block = per_block
        self._layout, self.static_bytes, self.shared_bytes, self._unit = _layout(program.sites, shared_bytes)
        self._dynamic_bytes = shared_bytes

    def start(self, batch: Batch) -> Lanes:
        """Fresh shared memory for a batch of blocks. Returns its lanes."""
        self.batch = batch
        self.states = {}
        if self.program.sites:
            memory = SharedMemory(self, batch.count, self.shared_bytes, self._unit)
            self.shared_memory = memory
            self.shared = {}
            for key, site in self.program.sites.items():
                shape, group = site.shape, key
                if site.dynamic:
                    shape, group = (self._dynamic_bytes // site.dtype.itemsize,), "dynamic"
                self.shared[key] = Shared(self, site.name, site.dtype, shape, memory, self._layout[key], group)
        return batch.lanes

    def finish(self) -> None:
        """Check what was left unchecked when a batch ends."""
        if self.shared_memory is not None and self.shared_memory.shadow is not None:
            self.shared_memory.shadow.barrier(None)

    # where

    def place(self) -> Place:
        """File and line of the source that is running; of an access function (kernels/device.py), those of its call."""
        frame: Any = sys._getframe(1)
        namespace, accesses = self.program.namespace, self.program.accesses
        while frame is not None:
            if frame.f_globals is namespace and frame.f_code.co_name not in accesses:
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return "", 0

    def fault(
        self,
        kind: Callable[..., KernelFault],
        what: str,
        *,
        code: int | None = None,
        array: str | None = None,
        place: Place | None = None,
    ) -> NoReturn:
        """Raise a fault.

        Args:
            kind: Its class.
            what: What is wrong.
            code: Number of the thread in the launch.
            array: Its name.
            place: File and line; those that are running unless given.
        """
        file, line = self.place() if place is None else place
        block = thread = None
        if code is not None:
            block = self.batch.block_position(code // self.threads)
            thread = self.batch.thread_position(code % self.threads)
        raise kind(what, kernel=self.program.name, line=line, file=file, array=array, block=block, thread=thread)

    def race(self, what: str, one: int, other: int, place: Place, name: str) -> NoReturn:
        """Raise a DataRace between two threads."""
        where = (
            f"thread {self.batch.thread_position(code % self.threads)} of block "
            f"{self.batch.block_position(code // self.threads)}"
            for code in (one, other)
        )
        text = f"{what} of one element of {name} by {' and '.join(where)}, with no barrier between"
        self.fault(DataRace, text, code=one, array=name, place=place)

    # barriers

    def syncthreads(self, lanes: Lanes) -> None:
        """The barrier of a block."""
        if not lanes.whole_blocks():
            counts = np.bincount(lanes.row, minlength=lanes.batch.count)
            row = int(((counts > 0) & (counts < self.threads)).argmax())
            k = int((lanes.row == row).argmax())
            what = f"a barrier of the block is reached by {counts[row]} of its {self.threads} threads"
            self.fault(DivergentBarrier, what, code=int(lanes.code[k]))
        if self.observer is not None:
            self.observer.barrier(self.place(), "block", lanes.ids, self.threads)
        self._pass(lanes)

    def syncthreads_vote(self, lanes: Lanes, kind: str, predicate: Any) -> Any:
        """The barrier of a block that counts the threads where something holds, or whether all or any are such."""
        self.syncthreads(lanes)
        rows = np.ascontiguousarray(lanes.vector(predicate)).reshape(-1, self.threads)
        count = rows.sum(axis=1, dtype=np.int32)
        result = {"count": count, "and": count == self.threads, "or": count > 0}[kind].astype(np.int32)
        return result.repeat(self.threads) if len(result) > 1 else result[0]

    def grid_sync(self, lanes: Lanes) -> None:
        """The barrier of the grid."""
        if lanes.n != self.total_threads:
            what = f"a barrier of the grid is reached by {lanes.n} of its {self.total_threads} threads"
            self.fault(DivergentBarrier, what, code=int(lanes.code[0]))
        if self.observer is not None:
            self.observer.barrier(self.place(), "grid", lanes.ids, self.threads)
        self._pass(lanes)
        self.clock = self.clock._replace(grid=self.clock.now)

    def _pass(self, lanes: Lanes) -> None:
        if not self.checks:
            return
        whole = lanes.n == lanes.batch.lanes.n
        shadow = None if self.shared_memory is None else self.shared_memory.shadow
        if shadow is not None:
            passed = None
            if not whole:
                passed = np.zeros(lanes.batch.count, np.bool_)
                passed[lanes.row] = True
            shadow.barrier(passed)
        now = self.clock.now + 1
        blocks = self.clock.blocks.copy()
        first = lanes.batch.first
        blocks[slice(first, first + lanes.batch.count) if whole else first + lanes.row] = now
        ids = np.arange(first, first + lanes.batch.count) if whole else np.unique(first + lanes.row)
        self.clock = self.releases.passed(self.clock._replace(now=now, blocks=blocks), ids)

    def warp_barrier(self, lanes: Lanes) -> None:
        """The barrier of a warp."""
        if self.observer is not None:
            self.observer.barrier(self.place(), "warp", lanes.ids, self.threads)
        if not self.checks:
            return
        per_block, clock = self._warps_per_block, self.clock
        warps = clock.warps.copy() if clock.per_block else np.zeros(self.blocks * per_block, np.int64)
        now = clock.now + 1
        warps[lanes.batch.first * per_block + lanes.warp] = now
        self.clock = clock._replace(now=now, warps=warps, per_block=per_block)

    # memory

    def local(self, lanes: Lanes, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Local:
        """A new local array."""
        return Local(self, name, dtype, shape, lanes)

    def reached(self, address: int, dtype: np.dtype[Any], lanes: Lanes) -> tuple[Global, int]:
        """The array that an address is in, and the element there."""
        for memory in self.memories:
            offset = address - memory.address
            if memory.dtype == dtype and 0 <= offset <= memory.data.nbytes:
                if offset % dtype.itemsize:
                    self.fault(
                        MisalignedAccess, f"an address that is no multiple of {dtype.itemsize}", array=memory.name
                    )
                return memory, offset // dtype.itemsize
        what = f"address {address:#x} is in no array of {dtype} that this launch was given"
        return self.fault(OutOfBounds, what, code=int(lanes.code[0]))

    def context(self, lanes: Lanes) -> TwinContext:
        """What a twin sees."""
        return TwinContext(self, lanes)

    def pointer(self, address: Any, dtype: np.dtype[Any]) -> Address:
        """A pointer made from addresses."""
        return Address(self, address, dtype)

    # values

    def endless(self) -> NoReturn:
        """Raise UnsupportedFeature of a loop that goes on and on."""
        self.fault(
            UnsupportedFeature,
            "not supported by the emulator: a while loop of so many trips; does a thread wait for another one?",
        )

    def uniform(self, value: Any, what: str) -> Any:
        """A value that must not differ by lane."""
        if type(value) is np.ndarray:
            if np.any(value != value[0]):
                self.fault(UnsupportedFeature, f"not supported by the emulator: {what} that differs by thread")
            value = value[0]
        return value

    def trips(self, start: Any, stop: Any, step: Any) -> Any:
        """How often a loop over a range runs."""
        by = int(step)
        if by == 0:
            self.fault(UndefinedArithmetic, "a range with step 0")
        if type(start) is not np.ndarray and type(stop) is not np.ndarray:
            return np.int64(len(range(int(start), int(stop), by)))
        distance = (stop - start if by > 0 else start - stop).astype(np.int64)
        distance[(stop <= start) if by > 0 else (start <= stop)] = 0
        count = (distance + (abs(by) - 1)) // abs(by)
        return count[0] if np.all(count == count[0]) else count

    def assigned(self, lanes: Lanes, value: Any, name: str) -> Any:
        """A variable, once it is sure that all lanes have assigned it."""
        bad = missing(value, lanes.n)
        if bad is not None:
            what = f"the variable {name} is read where nothing was assigned to it"
            self.fault(UninitialisedRead, what, code=int(lanes.code[int(bad.argmax())]), array=name)
        return value

    def item(self, lanes: Lanes, items: tuple[Any, ...], index: Any) -> Any:
        """An item of a tuple, by a number that may differ by lane."""
        bad = lanes.vector((index < 0) | (index >= len(items)))
        if bad.any():
            k = int(bad.argmax())
            what = f"item {lanes.vector(index)[k]} of a tuple of {len(items)}"
            self.fault(OutOfBounds, what, code=int(lanes.code[k]))
        if type(index) is not np.ndarray:
            return items[int(index)]
        return np.choose(index, items)

    def divide(self, lanes: Lanes, sign: str, a: Any, b: Any) -> Any:
        """Integer quotient or remainder, rounded down as in Python."""
        zero = b == 0
        if np.any(zero):
            k = int(lanes.vector(zero).argmax())
            self.fault(UndefinedArithmetic, "integer division by zero", code=int(lanes.code[k]))
        return a // b if sign == "//" else a - (a // b) * b

    def shift(self, lanes: Lanes, sign: str, value: Any, by: Any) -> Any:
        """A shift by a number of bits that is no constant."""
        bits = value.dtype.itemsize * 8
        bad = lanes.vector((by < 0) | (by >= bits))
        if bad.any():
            k = int(bad.argmax())
            what = f"a shift by {lanes.vector(by)[k]} bits of a number of {bits}"
            self.fault(UndefinedArithmetic, what, code=int(lanes.code[k]))
        by = convert(by, value.dtype)
        return operator.lshift(value, by) if sign == "<<" else operator.rshift(value, by)


def choose(parent: Lanes, yes: Lanes, a: Any, no: Lanes, b: Any, dtype: Any) -> Any:
    """A value that some lanes have computed in one way, and the others in another."""
    return merge((a, b), (yes.position, no.position), parent.n, dtype)


def _layout(sites: dict[Any, SharedSite], dynamic_bytes: int) -> tuple[dict[Any, int], int, int, int]:
    """Where each shared array starts in its block's shared memory; bytes: static, of all, of its smallest element."""
    offsets = {}
    end = 0
    for key, site in sites.items():
        if not site.dynamic:
            alignment = max(site.alignment, site.dtype.itemsize)  # what Numba asks for
            end = -(-end // alignment) * alignment
            offsets[key] = end
            end += int(np.prod(site.shape)) * site.dtype.itemsize
    static = end
    end = -(-end // 16) * 16
    for key, site in sites.items():
        if site.dynamic:
            offsets[key] = end
    if any(site.dynamic for site in sites.values()):
        end += -(-dynamic_bytes // 16) * 16
    unit = min((site.dtype.itemsize for site in sites.values()), default=1)
    return offsets, static, end, unit
