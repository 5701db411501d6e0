"""Running a kernel: arguments to memory, blocks in batches, checks before and after."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator import types
from kernels.emulator.counts import CountingObserver, Counts
from kernels.emulator.faults import UnsupportedFeature, UnwrittenOutput
from kernels.emulator.lanes import Batch
from kernels.emulator.machine import Machine
from kernels.emulator.memory import Global
from kernels.emulator.pointers import View
from kernels.emulator.program import translate_kernel
from kernels.emulator.shadow import OwnerShadow, WriterShadow
from kernels.emulator.shared import check_size
from kernels.emulator.source import Same, meanings, parse, python_function
from kernels.emulator.translation import ADDRESS, Program, RefusedError

Grid = int | Sequence[int]
Array = NDArray[Any]
_WARNED: dict[Any, Any] = {}  # so that Python's warning filters can show a line once
BATCH = 1 << 15  # lanes that run together: their vectors stay in a core's cache


@dataclass(frozen=True)
class Report:
    """What an emulated launch did.

    Attributes:
        kernel: Its name.
        grid: Blocks in x, y and z.
        block: Threads of each in x, y and z.
        shared_bytes: Shared memory of a block, static and dynamic.
        counts: What it did, if that was counted.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    counts: Counts | None = None

    def __str__(self) -> str:
        text = (
            f"{self.kernel}: grid {self.grid}, block {self.block}, {self.shared_bytes:,} bytes of shared memory a block"
        )
        return text if self.counts is None else f"{text}\n{self.counts}"


def emulate(
    kernel: Callable[..., Any],
    grid: Grid,
    block: Grid,
    *args: Any,
    shared_bytes: int = 0,
    cooperative: bool = False,
    checks: bool = True,
    counts: bool = False,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    reachable: Sequence[Array] = (),
    name: str | None = None,
) -> Report:
    """Run a kernel as a launch of `grid` blocks of `block` threads would, in NumPy.

    Args:
        kernel: A `@cuda.jit` function, or a Python function written as one.
        grid: Blocks: a number or up to three, x first.
        block: Threads of a block, likewise; at most 1,024.
        args: NumPy arrays, written in place, and numbers. An array whose parameter is annotated as a pointer
            (`kernels.launch.Floats` and the like) is indexed flat, any other one as it is; a number becomes what its
            parameter is annotated as, else int64, float64 or what it is.
        shared_bytes: Dynamic shared memory of a block: `cuda.shared.array(0, ...)`.
        cooperative: All blocks run at once, so that one may wait for another.
        checks: Look for races and for reads of what was never written. Bounds, alignment and barriers are always
            checked.
        counts: Count memory traffic, bank conflicts, branches and arithmetic, by line.
        inputs: Parameters that may not be modified; neither may arrays that are not writeable.
        outputs: Parameters of which every element must be written, and none read before that.
        reachable: Arrays that the kernel reaches by addresses that it is given in others.
        name: What to call the kernel in messages; its function's name unless given.

    Raises:
        KernelFault: The kernel does something undefined, or something that the emulator does not do.
        TypeError, ValueError: The arguments are not what they should be.
    """
    function = python_function(kernel)
    if function is None:
        raise TypeError(f"{kernel!r} is no kernel: neither a Python function nor one compiled by cuda.jit")
    name = function.__name__ if name is None else name
    grid_size, block_size = _size(grid, "grid"), _size(block, "block")
    if block_size[0] * block_size[1] * block_size[2] > 1024:
        raise ValueError(f"{name}: a block of {block_size} threads; no GPU runs more than 1024")
    if shared_bytes < 0:
        raise ValueError(f"{name}: {shared_bytes} bytes of shared memory")
    parameters = inspect.signature(function).parameters
    if len(args) != len(parameters):
        raise TypeError(f"{name}: {len(args)} arguments were given, expected {', '.join(parameters)}")
    values = {
        parameter: _argument(name, parameter, value, annotation)
        for parameter, value, annotation in zip(parameters, args, _annotations(function), strict=True)
    }
    for one in (*inputs, *outputs):
        if not isinstance(values.get(one), _Array):
            known = ", ".join(parameters)
            raise ValueError(f"{name}: {one!r} is no array parameter; they are {known}")  # noqa: TRY004
    kinds = tuple((parameter, value.kind) for parameter, value in values.items())
    program = _program(function, name, kinds, counts, meanings(function))
    for promotion in program.promotions.values():
        warnings.warn_explicit(promotion, None, promotion.file, promotion.line, registry=_WARNED)
    observer = CountingObserver() if counts else None
    machine = Machine(program, grid_size, block_size, shared_bytes, checks, observer, cooperative)
    check_size(machine, shared_bytes)
    given = _place(machine, values, inputs, outputs, reachable)
    _run(machine, given)
    for memory in machine.memories:
        _check_written(machine, memory, values, outputs)
    found = observer.counts() if observer is not None else None
    return Report(name, grid_size, block_size, machine.shared_bytes, found)


def _run(machine: Machine, given: list[Any]) -> None:
    program = machine.program
    assert program.entry is not None
    per_batch = machine.blocks if machine.cooperative else max(1, BATCH // machine.threads)
    with np.errstate(all="ignore"):
        for first in range(0, machine.blocks, per_batch):
            batch = Batch(machine.grid, machine.block, first, min(per_batch, machine.blocks - first))
            program.entry(machine, machine.start(batch), *given)
            machine.finish()


@functools.lru_cache(maxsize=512)
def _program(
    function: Callable[..., Any],
    name: str,
    kinds: tuple[tuple[str, Any], ...],
    counts: bool,
    _: tuple[Same, ...],  # what names meant: a program with other meanings is another one
) -> Program:
    try:
        return translate_kernel(function, name, dict(kinds), counts)
    except RefusedError as error:
        raise UnsupportedFeature(
            f"not supported by the emulator: {error.what}", kernel=name, line=error.line, file=error.file
        ) from error


def _size(given: Grid, what: str) -> tuple[int, int, int]:
    sizes = (given,) if isinstance(given, int | np.integer) else given
    if not isinstance(sizes, tuple | list) or not all(isinstance(size, int | np.integer) for size in sizes):
        raise TypeError(f"a {what} of {given!r}: expected a number or a tuple of numbers")
    if not 1 <= len(sizes) <= 3 or any(int(size) < 1 for size in sizes):
        raise ValueError(f"a {what} of {given}: expected one to three numbers of at least 1")
    x, y, z = (*(int(size) for size in sizes), 1, 1)[:3]
    return x, y, z


@dataclass(frozen=True)
class _Number:
    kind: types.Type
    value: Any


@dataclass(frozen=True)
class _Array:
    kind: types.Type
    array: Array
    flat: bool


def _annotations(function: Callable[..., Any]) -> list[Any]:
    """Of each parameter what `kernels.launch` says of it, or None."""
    found = inspect.get_annotations(function)
    metadata = [getattr(found.get(name), "__metadata__", (None,))[0] for name in inspect.signature(function).parameters]
    return [one if hasattr(one, "is_pointer") else None for one in metadata]


def _argument(kernel: str, name: str, value: Any, annotation: Any) -> _Number | _Array:
    if isinstance(value, np.ndarray) and (value.ndim or getattr(annotation, "is_pointer", False)):
        if types.of_dtype(value.dtype) is None or not types.is_number(types.of_dtype(value.dtype)):
            raise TypeError(f"{kernel}: {name} has dtype {value.dtype}, of which kernels know nothing")
        if annotation is None:
            return _Array(types.array(value.dtype, value.ndim, value.flags.c_contiguous), value, False)
        if not annotation.is_pointer or annotation.dtype != value.dtype or not value.flags.c_contiguous:
            expected = f"{'a C-contiguous array' if annotation.is_pointer else 'a number'} of {annotation.dtype}"
            raise TypeError(
                f"{kernel}: {name} is an array of {value.dtype}, strides {value.strides}; expected {expected}"
            )
        return _Array(types.pointer(value.dtype), value.reshape(-1), True)
    if annotation is not None:
        if annotation.is_pointer:
            raise TypeError(f"{kernel}: {name} is {value!r}, expected an array of {annotation.dtype}")
        return _Number(types.of_dtype(annotation.dtype), annotation.dtype.type(value))
    kind = types.of_constant(value)
    if kind is None or not types.is_number(kind):
        raise TypeError(f"{kernel}: {name} is {value!r}, neither a NumPy array nor a number")
    return _Number(kind, types.constant(value, kind))


def _place(
    machine: Machine,
    values: Mapping[str, _Number | _Array],
    inputs: Sequence[str],
    outputs: Sequence[str],
    reachable: Sequence[Array],
) -> list[Any]:
    """Put the arguments into memory. Returns what the kernel is called with."""
    given: list[Any] = []
    program = machine.program
    for name, value in values.items():
        if isinstance(value, _Number):
            given.append(value.value)
            continue
        argument = _memory(machine, name, value)
        memory = argument if isinstance(argument, Global) else argument.memory
        memory.refuses_stores = name in inputs or not value.array.flags.writeable
        reads, writes = ({name, ""} & names for names in (program.reads, program.writes))
        memory.is_read, memory.is_written = bool(reads), bool(writes) and not memory.refuses_stores
        if machine.checks and name in outputs:
            memory.written = np.zeros(len(memory.data), np.bool_)
        machine.memories.append(memory)
        given.append(argument)
    for k, array in enumerate(reachable):
        if not array.flags.c_contiguous:
            raise ValueError(f"{program.name}: the array number {k} that it reaches by address is not C-contiguous")
        memory = Global(machine, f"reachable[{k}]", array.reshape(-1))
        memory.refuses_stores = not array.flags.writeable
        memory.is_read, memory.is_written = (bool({"", ADDRESS} & names) for names in (program.reads, program.writes))
        machine.memories.append(memory)
    if machine.checks:
        _share_shadows(machine)
    for memory in machine.memories:
        memory.watched = any(one is not None for one in (memory.written, memory.shadow, machine.observer))
    return given


def _share_shadows(machine: Machine) -> None:
    """Give each stretch of memory that is written a shadow; arrays that overlap have one in common."""
    ordered = sorted((memory for memory in machine.memories if memory.length), key=lambda memory: memory.address)
    groups: list[list[Global]] = []
    end = -1
    for memory in ordered:
        if memory.address >= end:
            groups.append([])
        groups[-1].append(memory)
        end = max(end, memory.address + memory.data.nbytes)
    for group in groups:
        if not any(memory.is_written for memory in group):
            continue
        start, itemsize = group[0].address, group[0].dtype.itemsize
        if any(memory.dtype.itemsize != itemsize or (memory.address - start) % itemsize for memory in group):
            names = " and ".join(memory.name for memory in group)
            machine.fault(UnsupportedFeature, f"{names} overlap and have elements of different sizes")
        size = max(memory.address + memory.data.nbytes - start for memory in group) // itemsize
        is_read = any(memory.is_read for memory in group)
        shadow = OwnerShadow(size, machine.race) if is_read else WriterShadow(size, machine.race)
        for memory in group:
            memory.shadow = shadow
            memory.shift = (memory.address - start) // itemsize


def _memory(machine: Machine, name: str, value: _Array) -> Any:
    array = value.array
    if array.ndim == 1 and array.flags.c_contiguous:
        return Global(machine, name, array)
    itemsize = array.dtype.itemsize
    if any(stride % itemsize for stride in array.strides):
        raise ValueError(
            f"{machine.program.name}: {name} has strides {array.strides}, no multiples of {itemsize} bytes"
        )
    steps = [stride // itemsize for stride in array.strides]
    reach = [(extent - 1) * step for extent, step in zip(array.shape, steps, strict=True)] if array.size else [0]
    low, high = sum(min(one, 0) for one in reach), sum(max(one, 0) for one in reach)
    corner = array[tuple(slice(extent - 1, None) if step < 0 else slice(None) for extent, step in
                         zip(array.shape, steps, strict=True))] if array.size else array  # fmt: skip
    span = np.lib.stride_tricks.as_strided(
        corner, (high - low + 1 if array.size else 0,), (itemsize,), writeable=array.flags.writeable
    )
    return View(Global(machine, name, span), array.shape, tuple(steps), -low)


def _check_written(
    machine: Machine, memory: Global, values: Mapping[str, _Number | _Array], outputs: Sequence[str]
) -> None:
    if memory.name not in outputs or memory.written is None:
        return
    value = values[memory.name]
    assert isinstance(value, _Array)
    argument = _memory(machine, memory.name, value)
    written = memory.written[argument.elements()] if isinstance(argument, View) else memory.written
    if not written.all():
        count, first = int((~written).sum()), int((~written).argmax())
        shape = value.array.shape
        at = first if len(shape) == 1 else tuple(int(i) for i in np.unravel_index(first, shape))
        what = f"{count} of {written.size} elements of {memory.name} were never written, the first {memory.name}[{at}]"
        tree = parse(python_function(machine.program.function)).tree  # type: ignore[arg-type]
        machine.fault(
            UnwrittenOutput, what, array=memory.name, place=(machine.program.function.__code__.co_filename, tree.lineno)
        )
