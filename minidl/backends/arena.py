"""Host memory that is used again and again.

A training step needs the same arrays every time. Fresh ones from the system cost page faults (a 16 MB output is 4,096
of them), so the arena keeps what is dropped and hands it out again: an array's memory returns when the last reference
to it goes. In a training loop the arena stops growing after the first step.
"""

import math
import threading
from bisect import bisect_left, insort
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; a cache line, and the widest vector
SMALL = 1 << 16  # bytes; requests below it never take a block above it, so that a scalar does not occupy an activation


class _Block:
    """A piece of memory; ordered by size, then by age, so that the choice of a block is reproducible."""

    __slots__ = ("address", "memory", "order")

    def __init__(self, size: int, age: int) -> None:
        self.memory = np.empty(size + ALIGNMENT, np.uint8)
        start = self.memory.ctypes.data
        self.address = start + (-start) % ALIGNMENT
        self.order = (size, age)

    def __lt__(self, other: "_Block") -> bool:
        return self.order < other.order


class _Lease:
    """Owns a block for as long as an array over it lives; NumPy keeps it as the array's base."""

    __slots__ = ("__array_interface__", "arena", "block")

    def __init__(self, arena: "Arena", block: _Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.arena = arena
        self.block = block
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (block.address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self.arena._take_back(self.block)


class Arena:
    """Hands out uninitialised arrays and takes their memory back when they are dropped. Safe to use from threads."""

    def __init__(self) -> None:
        self._free: list[_Block] = []
        self._lock = threading.RLock()  # reentrant: a collection inside `empty` may drop an array
        self.reserved_bytes = 0
        self.blocks = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised C-contiguous array, aligned to 64 bytes."""
        dtype = np.dtype(dtype)
        size = max(1, math.prod(shape) * dtype.itemsize)
        size += (-size) % ALIGNMENT
        with self._lock:
            place = bisect_left(self._free, (size, -1), key=lambda block: block.order)
            if place < len(self._free) and (size >= SMALL or self._free[place].order[0] <= SMALL):
                block = self._free.pop(place)
            else:
                block = _Block(size, self.blocks)
                self.blocks += 1
                self.reserved_bytes += size
        return np.asarray(_Lease(self, block, shape, dtype))

    def _take_back(self, block: _Block) -> None:
        with self._lock:
            insort(self._free, block)
