"""What a kernel is, and how it is run.

A kernel is specialised by closing over what makes its code simpler: window, channels, image size, tile sizes, options.
What only bounds a loop or guards a tail (the rows of a batch, the size of a flat array) it takes at run time, so that
a short last batch compiles nothing new. A *factory* takes the former and returns a `Launch`: the Python function that
Numba compiles, and how many threads run it. `@kernel` makes of the factory one that returns a `Kernel`, the same object
for the same arguments, and records what the kernel promises:

    @kernel(traffic="x -> y", instructions=("LDG.E.128", "STG.E.128"), examples=[(uint32,)])
    def relu_forward_vector(index: Any) -> Launch:
        def relu_forward(x: Floats, y: Floats, n: Int64):
            ...

        return Launch(relu_forward, block=256, grid=lambda n: blocks_for(n, 1024), cost=lambda n: Cost(4 * n, 4 * n))

Parameters are annotated: pointers (`Floats`, `Int64s`, ...) to C-contiguous memory, indexed flat, and numbers (`Float`,
`Int64`, ...). Grid and cost are functions of those numbers, by name.

A *runner* runs kernels: `run(kernel, x, y)`, on a GPU or in the emulator.
"""

import functools
import importlib
import inspect
import math
import operator
import pkgutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np

import kernels
from kernels.arrays import check_array
from kernels.chip import Chip

Array = Any  # as in kernels/arrays.py
Grid = int | tuple[int, ...]


class Type(NamedTuple):
    """Of a kernel's parameter."""

    dtype: np.dtype[Any]
    is_pointer: bool

    def number(self, value: Any) -> np.generic:
        """`value` as this type. Raises TypeError or OverflowError for an integer type that cannot hold it."""
        return self.dtype.type(value if self.dtype.kind == "f" else operator.index(value))


Floats = Annotated[Any, Type(np.dtype(np.float32), True)]
Bytes = Annotated[Any, Type(np.dtype(np.uint8), True)]
Int32s = Annotated[Any, Type(np.dtype(np.int32), True)]
Int64s = Annotated[Any, Type(np.dtype(np.int64), True)]
UInt32s = Annotated[Any, Type(np.dtype(np.uint32), True)]
Addresses = Annotated[Any, Type(np.dtype(np.uint64), True)]  # of arrays in device memory
Float = Annotated[Any, Type(np.dtype(np.float32), False)]
Int32 = Annotated[Any, Type(np.dtype(np.int32), False)]
Int64 = Annotated[Any, Type(np.dtype(np.int64), False)]
UInt32 = Annotated[Any, Type(np.dtype(np.uint32), False)]


class Cost(NamedTuple):
    """What a launch must move between global memory and the kernel, and compute, by the operation's definition."""

    reads: int  # bytes; each input element once
    writes: int  # bytes; each output element once
    flops: int = 0  # floating-point operations


@dataclass(frozen=True)
class Launch:
    """A function and the threads that run it. `grid` and `cost` take the kernel's numbers by name."""

    function: Callable[..., None]
    block: Grid
    grid: Callable[..., Grid]
    cost: Callable[..., Cost]
    shared_bytes: int = 0  # dynamic; static shared memory is declared in the function
    cooperative: bool = False  # all blocks must be resident at once: the function synchronises the grid


@dataclass(frozen=True)
class Promises:
    """What holds for every specialisation of a kernel, and what proves it.

    `reads`, `writes` name array parameters; one that is updated in place is in both. The emulator refuses a write to a
    parameter that is only read, and an element that is never written of one that is only written, unless the latter is
    in `partial`.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    partial: tuple[str, ...]
    instructions: tuple[str, ...]  # that the machine code must contain, by prefix
    registers: int  # the most that a thread may use
    deterministic: bool  # the same inputs give the same bits
    examples: tuple[tuple[Any, ...], ...]  # arguments of specialisations that stand for all
    architectures: tuple[str, ...] = ()  # that have its instructions; none are named where every one does


class Kernel:
    """A specialised kernel: what its factory returned for certain arguments."""

    def __init__(self, factory: "Factory", arguments: tuple[Any, ...], launch: Launch) -> None:
        self.name = factory.name
        self.arguments = arguments
        self.promises = factory.promises
        self.function = launch.function
        self.block = three(launch.block)
        self.shared_bytes = launch.shared_bytes
        self.cooperative = launch.cooperative
        self.parameters = _parameters(launch.function)
        self._launch = launch
        self._numbers = {name: i for i, (name, kind) in enumerate(self.parameters.items()) if not kind.is_pointer}
        self._grid_takes, self._cost_takes = (
            [(name, self._numbers[name]) for name in inspect.signature(rule).parameters]
            for rule in (launch.grid, launch.cost)
        )
        self._check_promises()

    def grid(self, values: Sequence[Any]) -> tuple[int, int, int]:
        """Blocks in x, y and z for these arguments; with a 0 among them there is nothing to do, and no launch.

        Raises:
            ValueError: No GPU runs so many.
        """
        grid = three(self._launch.grid(**{name: int(values[i]) for name, i in self._grid_takes}))
        if max(grid[1:]) > 65535 or grid[0] >= 2**31:
            raise ValueError(f"{self!r}: a grid of {grid} blocks is more than a GPU runs, (2147483647, 65535, 65535)")
        return grid

    def cost(self, values: Sequence[Any]) -> Cost:
        """What a launch with these arguments must move and compute."""
        return self._launch.cost(**{name: int(values[i]) for name, i in self._cost_takes})

    def check(self, values: Sequence[Any], array_type: Any) -> None:
        """Raise unless `values` are what the parameters ask for: arrays of `array_type`, C-contiguous, of the dtype.

        Raises:
            TypeError: Wrong number of arguments, no array where one is expected, or one of another dtype or device.
            ValueError: An array that is not C-contiguous.
        """
        if len(values) != len(self.parameters):
            expected = ", ".join(self.parameters)
            raise TypeError(f"{self.name}: {len(values)} arguments were given, expected {expected}")
        for (name, parameter), value in zip(self.parameters.items(), values, strict=True):
            if parameter.is_pointer:
                check_array(value, parameter.dtype, array_type, f"{self.name}: {name}")

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(repr(argument) for argument in self.arguments)})"

    def _check_promises(self) -> None:
        named = {*self.promises.reads, *self.promises.writes, *self.promises.partial}
        pointers = {name for name, parameter in self.parameters.items() if parameter.is_pointer}
        if named != pointers:
            raise TypeError(f"{self.name}: traffic names {sorted(named)}, but the pointers are {sorted(pointers)}")
        if not set(self.promises.partial) <= set(self.promises.writes):
            raise TypeError(f"{self.name}: partial {self.promises.partial} is not among {self.promises.writes}")
        if not 0 < math.prod(self.block) <= 1024:
            raise ValueError(f"{self!r}: no GPU runs blocks of {self.block} threads")


class Factory:
    """Makes kernels; the same one for the same arguments."""

    def __init__(self, make: Callable[..., Launch], promises: Promises) -> None:
        functools.update_wrapper(self, make)
        self.name = make.__name__
        self.module = make.__module__
        self.promises = promises
        self._make = make
        self._kernels: dict[tuple[Any, ...], Kernel] = {}

    def __call__(self, *arguments: Any) -> Kernel:
        """The kernel specialised for these arguments, which must be hashable."""
        if arguments not in self._kernels:
            self._kernels[arguments] = Kernel(self, arguments, self._make(*arguments))
        return self._kernels[arguments]

    def examples(self) -> list[Kernel]:
        """Specialisations that stand for all."""
        return [self(*arguments) for arguments in self.promises.examples]


_factories: dict[str, Factory] = {}


def kernel(
    *,
    traffic: str,
    examples: Sequence[tuple[Any, ...]],
    partial: str = "",
    instructions: Sequence[str] = (),
    registers: int = 64,
    deterministic: bool = True,
    architectures: Sequence[str] = (),
) -> Callable[[Callable[..., Launch]], Factory]:
    """Make of a function that returns a `Launch` a factory of kernels.

    Args:
        traffic: The array parameters that are read, "->", those that are written: "x, dy -> dx". One that is updated in
            place stands on both sides.
        examples: Arguments (hashable) for which the kernel is compiled where it is checked without a GPU.
        partial: Of the parameters that are written, those of which a launch need not write every element.
        instructions: What the machine code must contain, by prefix, such as "LDG.E.128".
        registers: The most that a thread may use.
        deterministic: Whether the same inputs give the same bits.
        architectures: "sm_90" and the like where only these have its instructions.
    """
    reads, writes = (tuple(_names(side)) for side in traffic.split("->"))
    promises = Promises(
        reads, writes, tuple(_names(partial)), tuple(instructions), registers, deterministic, tuple(examples),
        tuple(architectures),
    )  # fmt: skip

    def decorate(make: Callable[..., Launch]) -> Factory:
        factory = Factory(make, promises)
        if factory.name in _factories and _factories[factory.name].module != factory.module:
            raise ValueError(f"two kernels are called {factory.name}")
        _factories[factory.name] = factory
        return factory

    return decorate


_MACHINERY = ("kernels.emulator", "kernels.run_", "kernels.driver", "kernels.prepared")  # no kernels there


def factories() -> Mapping[str, Factory]:
    """All kernels of this package by name."""
    for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if not module.name.startswith(_MACHINERY):
            importlib.import_module(module.name)
    return {name: factory for name, factory in sorted(_factories.items()) if factory.module.startswith("kernels.")}


class Graph(Protocol):
    """What was captured. It holds the memory that was allocated meanwhile; what was there before, its owner keeps."""

    def replay(self) -> None:
        """Do it all again, with what lies in the same memory now."""


class Runner(Protocol):
    """Runs kernels, and has the memory that they need for a moment. Everything happens in the order of the calls."""

    name: str

    @property
    def chip(self) -> Chip | None:
        """What its GPU has; None where nothing is known of it, or there is none."""

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        """Run `kernel` on arrays and numbers, in the order of its parameters. Raises as `Kernel.check` does."""

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Uninitialised memory."""

    def upload(self, host: np.ndarray) -> Array:
        """A copy of a small host array in device memory, such as numbers that a kernel reads from there.

        Refused while a CUDA graph is captured: each replay would read the numbers of that moment. What changes from
        step to step is an array that the caller fills before the replay.
        """

    def addresses(self, arrays: Sequence[Array], dtype: Any = np.float32) -> Array:
        """Where each of `arrays` starts, (len(arrays),) uint64 in device memory: for an `Addresses` parameter.

        A kernel that gets this table may read and write these arrays (`pointer_to_float32(table[i])`), and no others.
        The caller keeps them until it has launched. The same arrays give the same table, so it is cheap in every step
        and allowed while a CUDA graph is captured. Raises as `Kernel.check` does, for an array as for an argument.
        """

    def table(self, key: Hashable, make: Callable[[], np.ndarray]) -> Array:
        """The numbers that `make()` gives, in device memory, for kernels to read; a key stands for the same numbers.

        Some tables are kept for the next call, and all that a CUDA graph may read. Allowed while one is captured.
        """

    @property
    def capturing(self) -> bool:
        """Whether launches are being recorded at this moment, and nothing computed."""

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> Graph:
        """Record what `function()` launches, after running it `warm_up` times for real.

        What differs from one replay to the next must lie in device memory. Raises RuntimeError where something is done
        that cannot be recorded: numbers from the host, a look at an array, waiting.
        """

    def barrier(self) -> Array:
        """(1,) uint32 in device memory, 0 at first: what `kernels.grid_barrier` counts in, and leaves ready again.

        Launches that may run at the same time get numbers of their own: each stream has one, each CUDA graph another.
        """


def techniques(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say what techniques a host function has; it takes `technique=None`, to choose by itself, or one of `names`."""

    def decorate(host: Callable[..., Any]) -> Callable[..., Any]:
        host.techniques = names  # type: ignore[attr-defined]
        return host

    return decorate


def blocks_for(n: int, per_block: int) -> int:
    """Blocks that cover n elements."""
    return -(-n // per_block)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def three(size: Grid) -> tuple[int, int, int]:
    """A grid's or block's size in x, y and z."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return int(x), int(y), int(z)


def _parameters(function: Callable[..., None]) -> dict[str, Type]:
    parameters = {}
    for name, annotation in inspect.get_annotations(function).items():
        if name != "return":
            parameters[name] = annotation.__metadata__[0]
    if list(parameters) != list(inspect.signature(function).parameters):
        raise TypeError(f"kernel {function.__qualname__}: every parameter needs an annotation from kernels.launch")
    return parameters
