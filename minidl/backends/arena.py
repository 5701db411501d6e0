"""Host memory that is used again and again.

A training step needs the same arrays every time. Fresh ones from the system cost page faults (a 16 MB output is 4,096
of them), so the arena keeps what is dropped and hands it out again: an array's memory returns when the last reference
to it goes. In a training loop the arena stops growing after the first steps.
"""

import math
import os
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes; a cache line, and the widest vector
SMALL = 1 << 16  # bytes; a block up to this size serves any smaller request
WASTE = 2  # a larger block serves a request of at least 1 / WASTE of it: what is kept for long pins no more than that


class _Block(NamedTuple):
    """A piece of memory; ordered by size, then by age, so that the choice of a block is reproducible."""

    size: int
    age: int  # unique, so that a comparison ends here
    address: int
    memory: np.ndarray

    @classmethod
    def of_size(cls, size: int, age: int) -> "_Block":
        """A new one, aligned."""
        memory = np.empty(size + ALIGNMENT, np.uint8)
        start = memory.ctypes.data
        return cls(size, age, start + (-start) % ALIGNMENT, memory)


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
        # Runs whenever a collection does, in the middle of `empty` too: it only appends, which is atomic.
        self.arena._returned.append(self.block)


class Arena:
    """Hands out uninitialised arrays and takes their memory back when they are dropped. Safe to use from threads."""

    def __init__(self) -> None:
        self._free: list[_Block] = []
        self._returned: deque[_Block] = deque()
        self._lock = threading.Lock()
        self.reserved_bytes = 0
        self.blocks = 0
        _arenas.add(self)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised C-contiguous array, aligned to 64 bytes."""
        dtype = np.dtype(dtype)
        size = max(1, math.prod(shape) * dtype.itemsize)
        size += (-size) % ALIGNMENT
        with self._lock:
            while self._returned:
                insort(self._free, self._returned.popleft())
            place = bisect_left(self._free, (size,))
            if place < len(self._free) and self._free[place].size <= max(SMALL, WASTE * size):
                block = self._free.pop(place)
            else:
                block = _Block.of_size(size, self.blocks)
                self.blocks += 1
                self.reserved_bytes += size
        return np.asarray(_Lease(self, block, shape, dtype))


_arenas: "weakref.WeakSet[Arena]" = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: a thread that held a lock is not there to release it."""
    for arena in _arenas:
        arena._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
