"""Waiting for work without going to sleep: for a short while, and without Python's lock.

A thread that sleeps takes tens of microseconds to wake, and a training step has hundreds of pieces of work for it. So
it looks at a number in memory until that changes, or for as long as the pause between two pieces usually is.
"""

import ctypes
import platform
import time
from typing import Any

import numpy as np
from llvmlite import ir

from minidl.backends.cpu.machine_code import I64, built, number, once

SECONDS = 1e-3  # to look for, at most
AFTER = 4e-6  # to look away for when it has changed: who changed it holds Python's lock that long
_TRIED = 5000  # times, to see how long one takes
_PROTOTYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)


@built(("wait_for_change",))
def _addresses() -> ir.Module:
    module = ir.Module("minidl.waiting")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 4), "wait_for_change")
    place, seen, limit, after = function.args
    entry, look, rest, away, done = (
        function.append_basic_block(at) for at in ("entry", "look", "rest", "away", "done")
    )
    b = ir.IRBuilder(entry)
    pointer = b.inttoptr(place, I64.as_pointer())
    b.branch(look)

    b.position_at_end(look)
    count = b.phi(I64)
    changed = b.icmp_signed("!=", b.load_atomic(pointer, "acquire", 8), seen)
    b.cbranch(changed, away, rest)
    b.position_at_end(rest)
    _pause(b)
    following = b.add(count, number(1))
    count.add_incoming(number(0), entry)
    count.add_incoming(following, rest)
    b.cbranch(b.icmp_signed("<", following, limit), look, done)

    b.position_at_end(away)
    times = b.phi(I64)
    _pause(b)
    more = b.add(times, number(1))
    times.add_incoming(number(0), look)
    times.add_incoming(more, away)
    b.cbranch(b.icmp_signed("<", more, after), away, done)
    b.position_at_end(done)
    b.ret_void()
    return module


def _pause(b: ir.IRBuilder) -> None:
    """Tell the processor that it is waited; it may then give more to whoever shares a core."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        name = "llvm.x86.sse2.pause"
        kind = ir.FunctionType(ir.VoidType(), [])
        b.call(b.module.globals.get(name) or ir.Function(b.module, kind, name), [])


@once
def _waiting() -> tuple[Any, int, int]:
    """The function, and how often it looks in SECONDS and in AFTER."""
    function = _PROTOTYPE(_addresses()[0])
    nothing = np.zeros(1, np.int64)
    function(nothing.ctypes.data, 0, _TRIED, 1)
    began = time.perf_counter()
    function(nothing.ctypes.data, 0, _TRIED, 1)
    each = (time.perf_counter() - began) / _TRIED
    return function, max(1, int(SECONDS / each)), max(1, int(AFTER / each))


def wait_for_change(place: np.ndarray, seen: int) -> None:
    """Until the first element of `place` (int64) is not `seen`, or SECONDS have passed. Releases the GIL."""
    function, limit, after = _waiting()
    function(place.ctypes.data, seen, limit, after)
