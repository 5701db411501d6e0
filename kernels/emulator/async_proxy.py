"""Shared memory as wgmma and the copy engine see it: through the async proxy, past ordinary accesses.

Kept of each unit: which thread's ordinary store the proxy may not see yet, for that thread has executed no
fence.proxy.async since; and how many products under way read it. (That ordinary reads come before a copy that
overwrites what they read would take a fence too; here a barrier is enough. Nothing of that kind is done to device
memory, which a launch before has written.)

Source  NVIDIA, "PTX ISA" 9.0, Memory Consistency Model: Proxies; Asynchronous Warpgroup Level Matrix Instructions:
        Async Proxy; Membar: fence.proxy.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.faults import DataRace, MissingFence
from kernels.emulator.lanes import Lanes

if TYPE_CHECKING:
    from kernels.emulator.shared import Shared

Vector = NDArray[Any]


class AsyncProxy:
    """Of the shared memory of a batch. Units are those of its shadow; `repeat` is how many a lane has in a row."""

    def __init__(self, size: int) -> None:
        self._unfenced = np.full(size, -1)  # the lane that stored last, and has not fenced
        self._reads = np.zeros(size, np.int32)

    def store(self, array: "Shared", lanes: Lanes, units: Vector, repeat: int, in_bulk: bool) -> None:
        """An ordinary store, or the copy engine's."""
        busy = self._reads.take(units) > 0
        if busy.any():
            what = f"{array.name} is overwritten where a product under way reads it: wait for its group first"
            array.fault(DataRace, what, lanes, int(busy.argmax()) // repeat)
        if in_bulk:
            self.require(array, lanes, units, repeat)
        else:
            self._unfenced[units] = lanes.ids.repeat(repeat)

    def fence(self, lanes: Lanes) -> None:
        """A fence.proxy.async of these lanes."""
        if lanes.full:
            self._unfenced.fill(-1)
            return
        fences = np.zeros(lanes.batch.lanes.n + 1, np.bool_)  # with one for -1
        fences[lanes.ids] = True
        self._unfenced[fences[self._unfenced]] = -1

    def require(self, array: "Shared", lanes: Lanes, units: Vector, repeat: int) -> None:
        """Fault where a store to these units was not fenced."""
        stores = self._unfenced.take(units)
        if (stores >= 0).any():
            k = int((stores >= 0).argmax())
            thread = lanes.batch.thread_position(int(stores[k]) % lanes.batch.threads)
            what = (
                f"{array.name} is used by the tensor cores or the copy engine where thread {thread} has stored: it "
                f"must execute fence_proxy_async after the store, before a barrier"
            )
            array.fault(MissingFence, what, lanes, k // repeat)

    def read(self, array: "Shared", lanes: Lanes, units: Vector, repeat: int) -> None:
        """A product begins to read."""
        self.require(array, lanes, units, repeat)
        np.add.at(self._reads, units, 1)

    def done(self, units: Vector) -> None:
        """It has read these."""
        np.subtract.at(self._reads, units, 1)
