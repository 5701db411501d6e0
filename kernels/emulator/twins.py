"""Twins of the instructions in kernels.intrinsics and kernels.packed.

They are wide accesses, pointers, asynchronous copies, release and acquire, and numbers of 16 bits.

cp.async. What a copy brings is read when it starts (the hardware reads it some time before the wait, so writing to the
source in between is a bug that is not noticed here), and counts as not there until the copying thread waits for the
group that it was committed to: reading it earlier is an UninitialisedRead. For the thread itself it is there after the
wait, for others after a barrier that follows; a race otherwise.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import bulk_copy, guarded_load, intrinsics, packed
from kernels.emulator import libdevice
from kernels.emulator.context import Context
from kernels.emulator.lanes import narrow

Vector = NDArray[Any]
WORD = 4  # bytes of an element, or of two of 16 bits
UINT32 = np.dtype(np.uint32)


@dataclass
class _Copy:
    """One cp.async of some lanes."""

    token: Any
    lanes: Vector
    group: Vector  # of each lane: how many groups it had committed before
    there: Vector | None = None  # of each lane: whether its elements have arrived; None for not at all

    def finish(self, context: Context, complete: Vector) -> bool:
        """Let those arrive whose group is complete. Returns whether all have."""
        arrived = self.group < complete.take(self.lanes)
        if self.there is None and arrived.all():
            context.finish_copy(self.token)
            return True
        new = arrived if self.there is None else arrived & ~self.there
        if new.any():
            context.finish_copy(self.token, new)
            self.there = arrived
        return bool(arrived.all())


@dataclass
class _Copies:
    """Those of a batch of blocks that are under way."""

    pending: list[_Copy] = field(default_factory=list)
    committed: Vector = field(default_factory=lambda: np.zeros(0, np.int64))  # by lane: groups
    complete: Vector = field(default_factory=lambda: np.zeros(0, np.int64))  # by lane: groups that are known to be

    def reach(self, lanes: Vector) -> None:
        """Have room for these lanes."""
        missing = int(lanes[-1]) + 1 - len(self.committed)
        if missing > 0:
            self.committed = np.pad(self.committed, (0, missing))
            self.complete = np.pad(self.complete, (0, missing))


def _state(context: Context) -> _Copies:
    copies: _Copies = context.state("cp.async", _Copies)
    copies.reach(context.lanes)
    return copies


def _start(context: Context, destination: Any, values: tuple[Any, ...], dtype: Any) -> None:
    copies = _state(context)
    memory, index = context.at_shared(destination, dtype)
    token = context.start_copy(memory, index, values)
    lanes = context.lanes
    copies.pending.append(_Copy(token, lanes, copies.committed.take(lanes)))


def _bits(values: Any) -> Any:
    """Of numbers of 16 bits, as uint32."""
    return np.asarray(values).view(np.uint16).astype(np.uint32)[()]


def _load_words(context: Context, x: Any, i: Any, words: int) -> tuple[Any, ...]:
    """Of 4 bytes each; what has 16 bits comes two in a word, the first in the lower half."""
    if x.dtype.itemsize == WORD:
        return context.load(x, i, words)
    halves = [_bits(value) for value in context.load(x, i, 2 * words)]
    return tuple(low | high << np.uint32(16) for low, high in zip(halves[::2], halves[1::2], strict=True))


def _type_of_words(x: Any) -> np.dtype[Any]:
    return x.dtype if x.dtype.itemsize == WORD else UINT32


def _copy(words: int) -> Any:
    def twin(context: Context, destination: Any, x: Any, i: Any) -> None:
        _start(context, destination, _load_words(context, x, i, words), _type_of_words(x))

    return twin


def _copy_zero_fill(words: int) -> Any:
    def twin(context: Context, destination: Any, x: Any, i: Any, size: Any) -> None:
        size, index = context.vector(size), context.vector(i)
        if np.any((size > WORD * words) | (size % WORD != 0)):
            context.refuse(
                f"cp.async of {WORD * words} bytes with a source size that is larger, or no multiple of {WORD}"
            )
        filled = [np.zeros(len(index), _type_of_words(x)) for _ in range(words)]
        whole = size == WORD * words
        if whole.any():  # lanes that read nothing need no valid address
            lanes = whole.nonzero()[0]
            loaded = _load_words(context.within(whole), narrow(x, lanes), index[lanes], words)
            for row, values in zip(filled, loaded, strict=True):
                row[lanes] = values
        for k in range(words):
            some = (size > WORD * k) & ~whole
            if some.any():
                lanes = some.nonzero()[0]
                place = index[lanes] + k * (WORD // x.dtype.itemsize)
                filled[k][lanes] = _load_words(context.within(some), narrow(x, lanes), place, 1)[0]
        _start(context, destination, tuple(filled), _type_of_words(x))

    return twin


def _commit(context: Context) -> None:
    copies = _state(context)
    copies.committed[context.lanes] += 1


def _wait(context: Context, pending: Any) -> None:
    copies, lanes = _state(context), context.lanes
    allowed = context.vector(pending)
    allowed = np.where((allowed >= 0) & (allowed < 8), allowed, 0)
    copies.complete[lanes] = np.maximum(copies.complete.take(lanes), copies.committed.take(lanes) - allowed)
    copies.pending = [copy for copy in copies.pending if not copy.finish(context, copies.complete)]


def _load(count: int) -> Any:
    return lambda context, x, i: context.load(x, i, count)


def _load_readonly(context: Context, x: Any, i: Any) -> tuple[Any, ...]:
    if getattr(x, "is_written", False):
        context.refuse(f"reading {x.name} as memory that is only read, by a kernel that writes it")
    return context.load(x, i, 4)


def _fma(context: Context, a: Any, b: Any, c: Any) -> Any:
    context.count("fma", np.float32)
    return libdevice.fma(a, b, c)


def _store_bits(context: Context, y: Any, i: Any, word: Any) -> None:
    context.store(y, i, (np.asarray(word).astype(np.uint16).view(y.dtype)[()],))


def _store_words(context: Context, y: Any, i: Any, *words: Any) -> None:
    halves = (half for word in words for half in (word, np.asarray(word) >> np.uint32(16)))
    context.store(y, i, [np.asarray(half).astype(np.uint16).view(y.dtype)[()] for half in halves])


def _unpack_bf16(context: Context, word: Any) -> tuple[Any, Any]:  # noqa: ARG001
    word = np.asarray(word)
    return (word << np.uint32(16)).view(np.float32)[()], (word & np.uint32(0xFFFF0000)).view(np.float32)[()]


def _unpack_f16(context: Context, word: Any) -> tuple[Any, ...]:  # noqa: ARG001
    word = np.asarray(word)
    halves = word.astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)
    return tuple(half.view(np.float16).astype(np.float32)[()] for half in halves)


# what they do to the arrays that they are given; others may do both
ONLY_READ = frozenset(
    {
        intrinsics.load2,
        intrinsics.load4,
        intrinsics.load4_readonly,
        intrinsics.cp_async_4,
        intrinsics.cp_async_4_zero_fill,
        intrinsics.cp_async_16,
        intrinsics.cp_async_16_zero_fill,
        packed.load_bits,
        packed.load_words,
        guarded_load.load4_where,
        bulk_copy.copy_bulk,
    }
)
ONLY_WRITE = frozenset({intrinsics.store2, intrinsics.store4, packed.store_bits, packed.store_words})

intrinsics.TWINS.update(
    {
        intrinsics.load2: _load(2),
        intrinsics.load4: _load(4),
        intrinsics.load4_readonly: _load_readonly,
        intrinsics.store2: lambda context, y, i, *values: context.store(y, i, values),
        intrinsics.store4: lambda context, y, i, *values: context.store(y, i, values),
        intrinsics.pointer_to_float32: lambda context, address: context.at_global(address, np.dtype(np.float32)),
        intrinsics.shared_address: lambda context, array, i: context.shared_address(array, i),
        intrinsics.fma: _fma,
        intrinsics.cp_async_4: _copy(1),
        intrinsics.cp_async_4_zero_fill: _copy_zero_fill(1),
        intrinsics.cp_async_16: _copy(4),
        intrinsics.cp_async_16_zero_fill: _copy_zero_fill(4),
        intrinsics.cp_async_commit: _commit,
        intrinsics.cp_async_wait: _wait,
        intrinsics.add_release: lambda context, x, i, value: context.add_release(x, i, value),
        intrinsics.load_acquire: lambda context, x, i: context.load_acquire(x, i),
        packed.load_bits: lambda context, x, i: _bits(context.load(x, i)[0]),
        packed.store_bits: _store_bits,
        packed.load_words: lambda context, x, i: _load_words(context, x, i, 4),
        packed.store_words: _store_words,
        packed.unpack_bf16: _unpack_bf16,
        packed.unpack_f16: _unpack_f16,
    }
)
