"""What is known of each element beside its value: whether it was written, and which threads accessed it when.

An earlier access by thread a is ordered before one by thread b if a is b, or a barrier came between that both passed:
of their warp, of their block, or of the grid; or if a's block released it and b's has acquired that (release.py). Two
accesses of one element that are not ordered race if one of them writes, unless both are atomic. The order in which the
emulator happens to run threads plays no part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]
READ, WRITE, ATOMIC = "read", "write", "atomic"
Place = tuple[str, int]
# called with what happened, the two threads' codes and the place in the source
LONG = 1 << 24  # accesses kept before they are folded into a record of each element
Race = Callable[[str, int, int, Place, str], NoReturn]


class Clock(NamedTuple):
    """When barriers were last passed; replaced, never changed, so that an access can keep the one it saw."""

    now: int
    blocks: Vector  # per block of the grid
    warps: Vector  # per warp of the grid
    grid: int
    threads: int  # of a block
    per_block: int  # warps
    order: Vector | None = None  # [later, earlier] blocks of the grid: up to when, by release and acquire

    def ordered(self, earlier: Vector, time: Vector, later: Vector) -> Vector:
        """Whether what thread `earlier` did at `time` is before what thread `later` does now."""
        block = earlier // self.threads
        same_block = block == later // self.threads
        result = (
            (earlier == later) | (time < self.grid) | (same_block & (time < self.blocks.take(later // self.threads)))
        )
        if self.per_block and not result.all():
            warp, mine = (
                code // self.threads * self.per_block + code % self.threads // 32 for code in (earlier, later)
            )
            result |= (warp == mine) & (time < self.warps.take(mine))
        if self.order is not None and not result.all():
            result |= time < self.order[later // self.threads, block]
        return result


class Access(NamedTuple):
    """Elements and, of each, the thread (its number in the launch) that accesses it."""

    kind: str
    elements: Vector
    code: Vector
    clock: Clock
    place: Place
    name: str


class Record:
    """Who accessed each element last, in full: writer; first, last and time of readers, and of atomic accesses."""

    def __init__(self, size: int, race: Race) -> None:
        self._race = race
        none, early = (np.full(size, -1), np.full(size, -1))
        self._writer = [none, early]
        self._readers = [none.copy(), none.copy(), early.copy()]
        self._atomics = [none.copy(), none.copy(), early.copy()]

    def access(self, access: Access) -> None:
        """Check against earlier accesses, then remember."""
        kind, index, code, clock = access[:4]
        self._check(access, [self._writer[0], *self._writer], WRITE)
        if kind != READ:
            self._check(access, self._readers, READ)
        if kind != ATOMIC:
            self._check(access, self._atomics, ATOMIC)
        if kind == WRITE:
            self._writer[0][index] = code
            self._writer[1][index] = clock.now
            check_distinct(access, self._writer[0], self._race)
        else:
            self._remember(self._readers if kind == READ else self._atomics, index, code, clock)

    def _check(self, access: Access, record: list[Vector], what: str) -> None:
        _, index, code, clock, place, name = access
        first, last, when = (part.take(index) for part in record)
        bad = (first >= 0) & ((first != code) | (last != code))
        if not bad.any():
            return
        at = bad.nonzero()[0]
        first, last, when, mine = first[at], last[at], when[at], code[at]
        for other in (first, last):
            free = ~clock.ordered(other, when, mine)
            if free.any():
                k = int(free.argmax())
                self._race(f"{access.kind} after {what}", int(mine[k]), int(other[k]), place, name)

    def _remember(self, record: list[Vector], index: Vector, code: Vector, clock: Clock) -> None:
        low, high, time = record
        # records that are ordered before this access make room for it; others are widened
        old_low, old_high, old_time = low.take(index), high.take(index), time.take(index)
        fresh = (old_low < 0) | (clock.ordered(old_low, old_time, code) & clock.ordered(old_high, old_time, code))
        low[index[fresh]] = np.iinfo(np.int64).max
        high[index[fresh]] = -1
        np.minimum.at(low, index, code)
        np.maximum.at(high, index, code)
        time[index] = clock.now


def check_distinct(access: Access, writer: Vector, race: Race) -> None:
    """Raise if two threads write one element in one instruction; `writer` has just been set."""
    found = writer.take(access.elements)
    bad = found != access.code
    if bad.any():
        k = int(bad.argmax())
        race("write and write", int(access.code[k]), int(found[k]), access.place, access.name)


class WriterShadow:
    """Of an array in global memory that is only written: its last writer is all that counts."""

    def __init__(self, size: int, race: Race) -> None:
        self._race = race
        self._writer = np.full(size, -1)
        self._time: Vector | None = None  # all 0 until the first barrier

    def access(self, access: Access) -> None:
        """Check against earlier writes, then remember."""
        index, code, clock = access.elements, access.code, access.clock
        if clock.now and self._time is None:
            self._time = np.zeros(len(self._writer), np.int64)
        found = self._writer.take(index)
        other = (found >= 0) & (found != code)
        if other.any():
            at = other.nonzero()[0]
            time = np.zeros(len(at), np.int64) if self._time is None else self._time.take(index[at])
            free = ~clock.ordered(found[at], time, code[at])
            if free.any():
                k = int(at[int(free.argmax())])
                self._race("write after write", int(code[k]), int(found[k]), access.place, access.name)
        self._writer[index] = code
        if self._time is not None:
            self._time[index] = clock.now
        check_distinct(access, self._writer, self._race)


class OwnerShadow:
    """Of an array in global memory that is read and written.

    While each element is accessed by one thread alone, its number says all. When that ends, the accesses so far are
    replayed in full.
    """

    def __init__(self, size: int, race: Race) -> None:
        self._size = size
        self._race = race
        self._owner = np.full(size, -1)
        self._log: list[Access] = []
        self._logged = 0
        self._record: Record | None = None

    def access(self, access: Access) -> None:
        """Check against earlier accesses, then remember."""
        if self._record is not None:
            self._record.access(access)
            return
        index, code = access.elements, access.code
        owner = self._owner.take(index)
        alone = bool(((owner == code) | (owner < 0)).all())
        if alone:
            self._owner[index] = code
            alone = bool((self._owner.take(index) == code).all())
        self._log.append(access)
        self._logged += len(index)
        if not alone or self._logged > LONG:
            self._record = Record(self._size, self._race)
            for earlier in self._log:
                self._record.access(earlier)
            self._log = []


class SharedShadow:
    """Of the shared memory of a batch of blocks, between barriers.

    Accesses are kept until their block passes a barrier, then checked all at once: an element that one thread has
    written no other may have touched. Only where warps synchronised in between, or atomics were used, does order count.
    """

    def __init__(self, size: int, per_block: int, launch_threads: int, race: Race) -> None:
        self._size = size
        self._per_block = per_block  # elements
        self._threads = launch_threads
        self._race = race
        self._writer = np.full(size, -1)
        self._epoch = 0
        self._log: dict[Any, list[Access]] = {}
        self._records: dict[Any, Record] = {}  # of arrays whose log grew too long
        self._logged = 0

    def access(self, key: Any, access: Access) -> None:
        """Remember; `key` tells arrays that cannot overlap apart."""
        if key in self._records:
            self._records[key].access(access)
            return
        log = self._log.setdefault(key, [])
        log.append(access)
        self._logged += len(access.elements)
        if self._logged > LONG:
            self._records[key] = Record(self._size, self._race)
            for earlier in log:
                self._records[key].access(earlier)
            log.clear()
            self._logged = 0

    def barrier(self, passed: Vector | None) -> None:
        """Check what was logged of the blocks that pass a barrier (rows of the batch; None for all)."""
        if passed is None:
            self._check_all()
            self._log.clear()
            self._logged = 0
            return
        rest: dict[Any, list[Access]] = {}
        for key, log in self._log.items():
            for access in log:
                stays = ~passed[access.elements // self._per_block]
                if stays.any():
                    kept = access._replace(elements=access.elements[stays], code=access.code[stays])
                    rest.setdefault(key, []).append(kept)
        self._check_all()
        self._log = rest
        self._logged = sum(len(access.elements) for log in rest.values() for access in log)

    def _check_all(self) -> None:
        for log in self._log.values():
            if not log or all(access.kind == READ for access in log):
                continue
            first = log[0].clock
            if any(access.kind == ATOMIC or access.clock is not first for access in log):
                self._replay(log)
            else:
                self._check_unordered(log)

    def _check_unordered(self, log: list[Access]) -> None:
        self._epoch += 1
        start = self._epoch * self._threads
        for kind in (WRITE, READ):
            for access in log:
                if access.kind != kind:
                    continue
                mine = access.code + start
                found = self._writer.take(access.elements)
                bad = (found >= start) & (found != mine)
                if bad.any():
                    k = int(bad.argmax())
                    other = int(found[k]) - start
                    self._race(f"{kind} and write", int(access.code[k]), other, access.place, access.name)
                if kind == WRITE:
                    self._writer[access.elements] = mine
                    check_distinct(access._replace(code=mine), self._writer, self._offset_race(start))

    def _offset_race(self, start: int) -> Race:
        def race(what: str, one: int, other: int, place: Place, name: str) -> NoReturn:
            self._race(what, one - start, other - start, place, name)

        return race

    def _replay(self, log: list[Access]) -> None:
        used, where = np.unique(np.concatenate([access.elements for access in log]), return_inverse=True)
        record = Record(len(used), self._race)
        at = 0
        for access in log:
            record.access(access._replace(elements=where[at : at + len(access.elements)]))
            at += len(access.elements)
