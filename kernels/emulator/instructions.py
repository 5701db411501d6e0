"""What `numba.cuda` offers a kernel: positions, barriers, warp functions, atomics, shared and local arrays."""

from typing import Any

import numpy as np
from numba import cuda
from numba.core import types as numba_types

from kernels.emulator import types
from kernels.emulator.calls import HANDLERS, Arguments, Calls, handles
from kernels.emulator.translation import LOCAL, SHARED, SharedSite, Value

INT32 = numba_types.int32


def _named(path: str) -> Any:
    found: Any = cuda
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _sizes(t: Calls, arguments: Arguments, name: str, text: str) -> Value:
    t.numbers(name, arguments, 1)
    if not arguments[0].is_known or arguments[0].known not in (1, 2, 3):
        t.refuse(f"{name} of anything but 1, 2 or 3")
    count = int(arguments[0].known)
    values = [t.temporary(types.INT64, text.format(axis)) for axis in "xyz"[:count]]
    return values[0] if count == 1 else t.tuple_of(values)


@handles(_named("grid"))
def _grid(t: Calls, arguments: Arguments) -> Value:
    wide = t.program.constant(np.dtype(np.int64))
    text = f"(convert(L.block_{{0}}, {wide}) * M.block_size_{{0}} + L.thread_{{0}})"
    return _sizes(t, arguments, "cuda.grid", text)


@handles(_named("gridsize"))
def _gridsize(t: Calls, arguments: Arguments) -> Value:
    wide = t.program.constant(np.dtype(np.int64))
    return _sizes(t, arguments, "cuda.gridsize", f"convert(M.grid_size_{{0}}, {wide}) * M.block_size_{{0}}")


# barriers


@handles(_named("syncthreads"))
def _syncthreads(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.syncthreads", arguments, 0)
    t.emit("M.syncthreads(L)")
    return t.constant(None)


def _voting_barrier(name: str) -> None:
    def handler(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"cuda.{name}", arguments, 1)
        return t.temporary(INT32, f"M.syncthreads_vote(L, {name[12:]!r}, {t.truth(arguments[0]).text})")

    HANDLERS[_named(name)] = handler


for _name in ("syncthreads_count", "syncthreads_and", "syncthreads_or"):
    _voting_barrier(_name)


@handles(_named("syncwarp"))
def _syncwarp(t: Calls, arguments: Arguments) -> Value:
    if len(arguments) > 1:
        t.numbers("cuda.syncwarp", arguments, 1)
    mask = arguments[0].text if arguments else t.constant(np.uint32(0xFFFFFFFF)).text
    t.emit(f"M.warp.sync(L, {mask})")
    return t.constant(None)


@handles(_named("threadfence"), _named("threadfence_block"), _named("threadfence_system"))
def _threadfence(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.threadfence", arguments, 0)
    return t.constant(None)  # orders one thread's accesses; it lets no thread wait for another


@handles(_named("nanosleep"))
def _nanosleep(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.nanosleep", arguments, 1)
    return t.constant(None)


class _GridGroup:
    """What cuda.cg.this_grid() returns, while translating."""

    def sync(self) -> None:
        """Its barrier, as `handles` knows it."""


_THE_GRID = _GridGroup()
_GRID_SYNC = _THE_GRID.sync


@handles(_named("cg.this_grid"))
def _this_grid(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.cg.this_grid", arguments, 0)
    t.program.cooperative = True
    return Value(None, "None", known=_THE_GRID)


@handles(_GRID_SYNC)
def _grid_sync(t: Calls, arguments: Arguments) -> Value:
    t.numbers("a grid's sync", arguments, 0)
    t.emit("M.grid_sync(L)")
    return t.constant(None)


# warps


def _shuffle(name: str) -> None:
    target = _named(f"shfl{name}_sync")

    def handler(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"cuda.shfl{name}_sync", arguments, 3)
        given, result = t.signature(target, tuple(a.type for a in arguments), f"cuda.shfl{name}_sync")
        mask, value, by = arguments
        value = t.cast(value, given[1])
        return t.temporary(result, f"M.warp.shuffle(L, {name!r}, {mask.text}, {value.text}, {by.text})")

    HANDLERS[target] = handler


for _name in ("", "_up", "_down", "_xor"):
    _shuffle(_name)


def _vote(name: str) -> None:
    target = _named(f"{name}_sync")

    def handler(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"cuda.{name}_sync", arguments, 2)
        mask, predicate = arguments
        result = INT32 if name == "ballot" else types.BOOLEAN
        return t.temporary(result, f"M.warp.vote(L, {name!r}, {mask.text}, {t.truth(predicate).text})")

    HANDLERS[target] = handler


for _name in ("ballot", "all", "any", "eq"):
    _vote(_name)


@handles(_named("match_any_sync"))
def _match_any(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.match_any_sync", arguments, 2)
    return t.temporary(INT32, f"M.warp.match(L, {arguments[0].text}, {arguments[1].text})")


@handles(_named("activemask"))
def _activemask(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.activemask", arguments, 0)
    return t.temporary(INT32, "M.warp.active(L)")


@handles(_named("lanemask_lt"))
def _lanemask(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.lanemask_lt", arguments, 0)
    return t.temporary(INT32, "M.warp.lower_lanes(L)")


# atomics

_ATOMICS = {
    "add": "add", "sub": "sub", "max": "max", "min": "min", "nanmax": "nanmax", "nanmin": "nanmin", "exch": "exch",
    "and_": "and", "or_": "or", "xor": "xor", "inc": "inc", "dec": "dec", "cas": "cas",
}  # fmt: skip


def _atomic(name: str, operation: str) -> None:
    operands = 2 if operation == "cas" else 1

    def handler(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"cuda.atomic.{name}", arguments, 2 + operands)
        array, index, *values = arguments
        if not types.is_array(array.type) or types.is_pointer(array.type):
            t.refuse(f"cuda.atomic.{name} on {array.type}, which Numba has for arrays only")
        kinds = (array.type, index.type, *(value.type for value in values))
        t.signature(_named(f"atomic.{name}"), kinds, f"cuda.atomic.{name}")
        return t.atomic(operation, array, index, values)

    target = _named(f"atomic.{name}")
    if target is not None:
        HANDLERS[target] = handler


for _name, _operation in _ATOMICS.items():
    _atomic(_name, _operation)


@handles(_named("atomic.compare_and_swap"))
def _compare_and_swap(t: Calls, arguments: Arguments) -> Value:
    t.numbers("cuda.atomic.compare_and_swap", arguments, 3)
    array, *values = arguments
    if not types.is_array(array.type) or types.is_pointer(array.type):
        t.refuse(f"cuda.atomic.compare_and_swap on {array.type}, which Numba has for arrays only")
    return t.atomic("cas", array, t.constant(0), values)


# memory


def _shape(t: Calls, value: Value, name: str) -> tuple[int, ...]:
    if not value.is_known:
        t.refuse(f"{name} with a shape that is no constant")
    known = value.known if isinstance(value.known, tuple) else (value.known,)
    if not all(isinstance(extent, int | np.integer) and extent >= 0 for extent in known):
        t.refuse(f"{name} of shape {known}")
    return tuple(int(extent) for extent in known)


def _element(t: Calls, value: Value, name: str) -> Any:
    known = value.known if value.is_known else None
    if isinstance(known, type) and issubclass(known, np.generic):
        known = types.of_dtype(np.dtype(known))
    if not isinstance(known, numba_types.Type) or not types.is_number(known):
        t.refuse(f"{name} with elements that are {known}")
    return types.dtype_of(known)


@handles(_named("shared.array"))
def _shared_array(t: Calls, arguments: Arguments, **keywords: Value) -> Value:
    shape, dtype, alignment = _declared(t, arguments, keywords, "cuda.shared.array")
    key = (t.identity, *t.place)
    site = SharedSite(t.target or "a shared array", dtype, shape, alignment)
    if t.program.sites.setdefault(key, site) != site:
        t.refuse("a shared array whose size or type differs by the call, in a device function that is not inlined")
    t.program.shared_arrays += 1
    kind = types.array(dtype, len(shape), True)
    return Value(kind, f"M.shared[{t.program.constant(key)}]", origin=SHARED)


@handles(_named("local.array"))
def _local_array(t: Calls, arguments: Arguments, **keywords: Value) -> Value:
    shape, dtype, _ = _declared(t, arguments, keywords, "cuda.local.array")
    name = t.target or "a local array"
    kind = types.array(dtype, len(shape), True)
    element, extents = t.program.constant(dtype), t.program.constant(shape)
    return t.temporary(kind, f"M.local(L, {name!r}, {element}, {extents})", origin=LOCAL)


def _declared(t: Calls, arguments: Arguments, keywords: dict[str, Value], name: str) -> Any:
    given = dict(zip(("shape", "dtype", "alignment"), arguments, strict=False)) | keywords
    if len(arguments) > 3 or not {"shape", "dtype"} <= set(given) <= {"shape", "dtype", "alignment"}:
        t.refuse(f"{name} with other arguments than shape, dtype and alignment")
    alignment = 0
    if "alignment" in given and given["alignment"].known is not None:
        alignment = int(given["alignment"].known)
    return _shape(t, given["shape"], name), _element(t, given["dtype"], name), alignment


# loads and stores with a cache hint


def _hinted(name: str) -> None:
    target = _named(name)

    def load(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"cuda.{name}", arguments, 2)
        return t.load(arguments[0], t.index_of(arguments[0], arguments[1]))

    def store(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"cuda.{name}", arguments, 3)
        t.store(arguments[0], t.index_of(arguments[0], arguments[1]), arguments[2])
        return t.constant(None)

    if target is not None:
        HANDLERS[target] = load if name.startswith("ld") else store


for _name in ("ldca", "ldcg", "ldcs", "ldlu", "ldcv", "stcg", "stcs", "stwb", "stwt"):
    _hinted(_name)
