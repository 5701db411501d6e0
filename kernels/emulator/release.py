"""The order between blocks that a release and an acquire establish (PTX ISA, Memory Consistency Model).

An update with release hands on what its block has done up to its last barrier, and what it had been handed itself; a
load with acquire that sees it, or a later update in the same chain, hands that to its own block, from the block's next
barrier on. (The threads that release and acquire know more than this, which no kernel here needs.)

A load need not see the newest value at once, so the first one after a change sees the oldest that it may: what this
block has seen or written before. The next one sees the newest. So a wait that ends too early ends early here, and what
is then read before it was handed on is a race.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.shadow import Clock

Vector = NDArray[Any]
PATIENCE = 1000  # loads with acquire, without a release in between, after which nothing will come any more


@dataclass
class _Flag:
    """One number that blocks signal by."""

    first: int  # what it was
    values: list[int] = field(default_factory=list)  # after each update
    handed: list[Vector] = field(default_factory=list)  # by each update: of each block, up to which time
    seen: dict[int, int] = field(default_factory=dict)  # by each block: how many updates
    asked: dict[int, int] = field(default_factory=dict)  # of each block: how many there were when it last looked

    def value(self, updates: int) -> int:
        """After so many updates."""
        return self.values[updates - 1] if updates else self.first


class Releases:
    """Of one launch."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._flags: dict[int, _Flag] = {}
        self._pending: dict[int, Vector] = {}  # by block: what its next barrier makes known to all of its threads
        self._loads = 0

    def _flag(self, address: int, value: int) -> _Flag:
        """The flag there; a new one where something other than a release has changed its value."""
        flag = self._flags.get(address)
        if flag is None or flag.value(len(flag.values)) != value:
            flag = self._flags[address] = _Flag(value)
        return flag

    def add(self, clock: Clock, addresses: Vector, blocks: Vector, before: Vector, after: Vector) -> None:
        """An update with release, one a lane: of the number at an address, by a block, from one value to another."""
        self._loads = 0
        for address, block, old, new in zip(*map(np.ndarray.tolist, (addresses, blocks, before, after)), strict=True):
            flag = self._flag(address, old)
            handed = np.zeros(self._blocks, np.int64) if clock.order is None else clock.order[block].copy()
            handed[block] = clock.blocks[block]
            if flag.handed:
                np.maximum(handed, flag.handed[-1], out=handed)
            flag.values.append(new)
            flag.handed.append(handed)
            flag.seen[block] = len(flag.values)

    def load(self, addresses: Vector, blocks: Vector, newest: Vector) -> Vector | None:
        """What each lane sees of a load with acquire; None where nobody will ever see anything else."""
        self._loads += 1
        if self._loads > PATIENCE:
            return None
        found = newest.copy()
        looked: dict[tuple[int, int], int] = {}
        for k, (address, block) in enumerate(zip(addresses.tolist(), blocks.tolist(), strict=True)):
            flag, key = self._flag(address, int(newest[k])), (address, block)
            if key not in looked:
                there = len(flag.values)
                looked[key] = there if flag.asked.get(block, 0) == there else flag.seen.get(block, 0)
                flag.asked[block] = there
                flag.seen[block] = looked[key]
            updates = looked[key]
            found[k] = flag.value(updates)
            if updates:
                handed = flag.handed[updates - 1]
                pending = self._pending.get(block)
                self._pending[block] = handed if pending is None else np.maximum(pending, handed)
        return found

    def passed(self, clock: Clock, blocks: Vector) -> Clock:
        """The clock after these blocks have passed a barrier."""
        coming = [block for block in blocks.tolist() if block in self._pending] if self._pending else []
        if not coming:
            return clock
        order = np.zeros((self._blocks, self._blocks), np.int64) if clock.order is None else clock.order.copy()
        for block in coming:
            np.maximum(order[block], self._pending.pop(block), out=order[block])
        return clock._replace(order=order)
