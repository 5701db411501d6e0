"""Twins of the bulk copy engine and of mbarriers, and of the load with a condition.

A copy in bulk is read when it starts and counts as not there until a thread has waited for the phase of its mbarrier,
as late as the hardware may be: reading it earlier is an UninitialisedRead. A wait for a phase that cannot end, since
arrivals or bytes are missing, would never end: a DivergentBarrier. After the wait the elements are there for the thread
that started the copy, for others after a barrier. (The hardware shows them to every thread that waits.)
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import bulk_copy, guarded_load, wgmma
from kernels.emulator.context import Context
from kernels.emulator.faults import DivergentBarrier, MisalignedAccess
from kernels.emulator.lanes import narrow
from kernels.intrinsics import TWINS

Vector = NDArray[Any]


@dataclass
class _Copy:
    """One instruction's copies."""

    token: Any
    lanes: Vector
    arrived: Vector  # of each lane


@dataclass
class _Barrier:
    """An mbarrier of one block."""

    arrivals: int  # of a phase
    missing: int  # arrivals of this phase
    phase: int = 0
    size: int = 0  # bytes that are expected less those that were sent for
    copies: list[tuple[_Copy, int]] = field(default_factory=list)  # and which of its lanes


Barriers = dict[tuple[int, int], _Barrier]  # by block of the batch and address


def _words(context: Context, barrier: Any) -> tuple[Any, Vector]:
    """The words of mbarriers, and a check that they are where they can be."""
    addresses = np.asarray(context.vector(barrier), np.int64)
    if np.any(addresses % bulk_copy.MBARRIER):
        context.fault(MisalignedAccess, f"an mbarrier at no multiple of {bulk_copy.MBARRIER} bytes")
    return context.at_shared(addresses, np.uint32)


def _found(context: Context, barrier: Any) -> list[_Barrier]:
    """The mbarrier of each lane, which somebody has initialised."""
    memory, index = _words(context, barrier)
    context.load(memory, index, 2)  # faults where nobody has, or no barrier came since
    known: Barriers = context.state("mbarrier", dict)
    blocks, addresses = context.lanes // context.threads, context.vector(barrier)
    found = []
    for key in zip(blocks.tolist(), addresses.tolist(), strict=True):
        if key not in known:
            context.refuse("an mbarrier that was not initialised")
        found.append(known[key])
    return found


def _init(context: Context, barrier: Any, arrivals: Any) -> None:
    memory, index = _words(context, barrier)
    zero = np.uint32(0)
    context.store(memory, index, (zero, zero))
    known: Barriers = context.state("mbarrier", dict)
    blocks = context.lanes // context.threads
    for block, address, count in zip(blocks, context.vector(barrier), context.vector(arrivals), strict=True):
        known[int(block), int(address)] = _Barrier(int(count), int(count))


def _expect(context: Context, barrier: Any, size: Any) -> None:
    for one, count in zip(_found(context, barrier), context.vector(size), strict=True):
        if not one.missing:
            context.fault(DivergentBarrier, "an mbarrier that has all arrivals of its phase gets another one")
        one.missing -= 1
        one.size += int(count)


def _wait(context: Context, barrier: Any, parity: Any) -> None:
    ended: dict[int, tuple[_Copy, Vector]] = {}
    waits = {id(one): (one, int(p)) for one, p in zip(_found(context, barrier), context.vector(parity), strict=True)}
    for one, wanted in waits.values():
        if one.phase % 2 != wanted:
            continue  # the phase before, which has ended
        if one.missing or one.size:
            what = f"{one.missing} arrivals and {one.size} bytes are missing"
            context.fault(DivergentBarrier, f"a thread waits for a phase of an mbarrier that will not end: {what}")
        for copy, lane in one.copies:
            ended.setdefault(id(copy), (copy, np.zeros(len(copy.lanes), np.bool_)))[1][lane] = True
        one.phase, one.missing, one.copies = one.phase + 1, one.arrivals, []
    for copy, lanes in ended.values():
        context.finish_copy(copy.token, lanes)


def _copy_bulk(context: Context, destination: Any, x: Any, i: Any, size: Any, barrier: Any) -> None:
    sizes = np.unique(context.vector(size))
    if len(sizes) > 1:
        context.refuse("copies in bulk of several sizes in one instruction")
    count = int(sizes[0])
    misaligned = (context.vector(destination) % 16, context.address(x, i) % np.uint64(16), count % 16)
    if any(np.any(one) for one in misaligned):
        context.fault(MisalignedAccess, "a copy in bulk from or to no multiple of 16 bytes, or of such a size", x)
    found = _found(context, barrier)
    words, index = _words(context, barrier)
    context.require_fenced(words, index, 2)
    values = context.load_block(x, i, count // x.dtype.itemsize)
    memory, place = context.at_shared(destination, x.dtype)
    token = context.start_bulk(memory, place, values)
    copy = _Copy(token, context.lanes, np.zeros(len(context.lanes), np.bool_))
    for k, one in enumerate(found):
        one.size -= count
        one.copies.append((copy, k))


def _load_where(context: Context, x: Any, i: Any, there: Any) -> tuple[Any, ...]:
    mask = np.asarray(context.vector(there), np.bool_)
    parts = [np.zeros(len(mask), x.dtype) for _ in range(4)]
    if mask.any():  # other lanes need no valid address
        lanes = mask.nonzero()[0]
        loading = context.within(mask)
        for part, loaded in zip(parts, loading.load(narrow(x, lanes), context.vector(i)[lanes], 4), strict=True):
            part[lanes] = loaded
    return tuple(parts)


IN_PROXY = frozenset({*wgmma.WGMMA_TF32.values(), bulk_copy.copy_bulk, bulk_copy.mbarrier_init})

TWINS.update(
    {
        bulk_copy.fence_proxy_async: lambda context: context.fence_proxy(),
        bulk_copy.mbarrier_init: _init,
        bulk_copy.mbarrier_expect: _expect,
        bulk_copy.mbarrier_wait: _wait,
        bulk_copy.copy_bulk: _copy_bulk,
        guarded_load.load4_where: _load_where,
    }
)
