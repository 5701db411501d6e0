"""Runs kernels without a GPU: each launch goes through the emulator, which checks every access.

What is captured is recorded as on a GPU, and replayed launch by launch. So what can be replayed here depends on the
host for nothing. What a GPU's graph does and this one does not: it hands out memory again that was dropped in the
course of it, and it does not keep arrays that were there before and are dropped after it.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import addresses_of
from kernels.chip import Chip
from kernels.choice import Listener
from kernels.emulator import Report, emulate
from kernels.launch import Kernel


class _Capture(threading.local):
    """The calls that are being recorded by this thread, or None."""

    calls: list[Callable[[], None]] | None = None


_capture = _Capture()


def _refuse_to(what: str) -> None:
    """Raise RuntimeError while a graph is captured, as CUDA does."""
    if _capture.calls is not None:
        raise RuntimeError(f"{what} while a graph is captured: there is nothing there yet, and a replay does not wait")


class EmulatedArray(np.ndarray):
    """An array in device memory: the host cannot look at it, or write to it, while a graph is captured.

    Views (parts, other shapes) can be made at any time.
    """

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(found, np.ndarray):
            _refuse_to("an element was read")
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_to("the host wrote to an array")
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        _refuse_to(f"{ufunc.__name__} was computed on the host")
        if options.get("out"):
            options["out"] = tuple(_plain(array) for array in options["out"])
        return getattr(ufunc, method)(*(_plain(value) for value in inputs), **options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _refuse_to(f"{function.__name__} was computed on the host")
        return super().__array_function__(function, types, args, kwargs)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, EmulatedArray) else value


def _refusing(name: str) -> Callable[..., Any]:
    def method(self: EmulatedArray, *args: Any, **options: Any) -> Any:
        _refuse_to("an array was read")
        return getattr(super(EmulatedArray, self), name)(*args, **options)

    method.__name__ = name
    return method


for _name in (
    *("__bool__", "__int__", "__float__", "__index__", "__iter__", "item", "tolist", "tobytes", "fill", "copy"),
    *("astype", "sum", "max", "min", "any", "all", "mean"),
):
    setattr(EmulatedArray, _name, _refusing(_name))


class EmulatorGraph:
    """A recorded sequence of launches."""

    def __init__(self, calls: Sequence[Callable[[], None]]) -> None:
        self._calls = tuple(calls)  # and with them the arrays that they use

    def replay(self) -> None:
        """Run it all again."""
        _refuse_to("a graph was replayed")
        for call in self._calls:
            call()


class Addresses(np.ndarray):
    """A table of addresses that knows the arrays they are of."""

    arrays: tuple[np.ndarray, ...] = ()

    def __array_finalize__(self, source: Any) -> None:
        self.arrays = getattr(source, "arrays", ())  # a part of the table may reach what the whole may


class Launched(NamedTuple):
    """A launch and what the emulator saw of it."""

    kernel: Kernel
    grid: tuple[int, int, int]
    report: Report


class EmulatorRunner:
    """A `kernels.launch.Runner` for NumPy arrays.

    Attributes:
        launched: With `counts`, every launch and its report, in order. Clear it as you like.
        on_choice: Told of each choice of a technique (kernels/choice.py); None by default.
        chip: Of a GPU whose choices are to be made; None, so that techniques are chosen which suit any.
    """

    name = "emulator"

    def __init__(self, checks: bool = True, counts: bool = False) -> None:
        """With `checks` a kernel that breaks a rule or a promise raises KernelFault; `counts` keeps reports."""
        self.checks = checks
        self.counts = counts
        self.launched: list[Launched] = []
        self.on_choice: Listener | None = None
        self.chip: Chip | None = None
        self._barrier = np.zeros(1, np.uint32)

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        """Run `kernel`; raises as `Kernel.check` does, and KernelFault."""
        kernel.check(values, np.ndarray)
        arguments = [
            value if parameter.is_pointer else parameter.number(value)
            for parameter, value in zip(kernel.parameters.values(), values, strict=True)
        ]
        grid = kernel.grid(values)
        if 0 not in grid:
            self.do(lambda: self._launch(kernel, grid, arguments))

    def _launch(self, kernel: Kernel, grid: tuple[int, int, int], values: Sequence[Any]) -> None:
        arguments = [value.view(np.ndarray) if isinstance(value, np.ndarray) else value for value in values]
        promises = kernel.promises
        report = emulate(
            kernel.function,
            grid,
            kernel.block,
            *arguments,
            shared_bytes=kernel.shared_bytes,
            cooperative=kernel.cooperative,
            checks=self.checks,
            counts=self.counts,
            inputs=[name for name in promises.reads if name not in promises.writes],
            outputs=[name for name in promises.writes if name not in (*promises.reads, *promises.partial)],
            reachable=[array for value in values for array in getattr(value, "arrays", ())],
            name=repr(kernel),
        )
        if self.counts:
            self.launched.append(Launched(kernel, grid, report))

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Memory that holds NaN, or -1, so that whoever reads what nobody wrote is found out.

        In a graph it does so anew in each replay, from where it was allocated on.
        """
        dtype = np.dtype(dtype)
        memory = np.empty(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, np.uint8)
        self.do(lambda: memory.fill(255))
        return memory.view(dtype).reshape(shape).view(EmulatedArray)

    def upload(self, host: np.ndarray) -> np.ndarray:
        """A copy. Raises RuntimeError while a graph is captured."""
        _refuse_to("numbers came from the host")
        return np.array(host, order="C").view(EmulatedArray)

    def addresses(self, arrays: Sequence[np.ndarray], dtype: Any = np.float32) -> np.ndarray:
        """Where the arrays start; a kernel that gets the table may use these arrays and no others."""
        table = np.array(addresses_of(arrays, dtype, np.ndarray), np.uint64).view(Addresses)
        table.arrays = tuple(array.view(np.ndarray) for array in arrays)
        return table

    def table(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:  # noqa: ARG002
        """The numbers, made each time."""
        return np.array(make(), order="C").view(EmulatedArray)

    def barrier(self) -> np.ndarray:
        """What barriers of the grid count in."""
        return self._barrier

    def synchronize(self) -> None:
        """Nothing is ever under way."""
        _refuse_to("the host waited")

    @property
    def capturing(self) -> bool:
        """See Runner."""
        return _capture.calls is not None

    def do(self, call: Callable[[], None]) -> None:
        """Do what a device does with arrays by another way than a launch; while a graph is captured, in its replays."""
        if _capture.calls is None:
            call()
        else:
            _capture.calls.append(call)

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> EmulatorGraph:
        """Record what `function()` launches, after running it `warm_up` times for real; see Runner."""
        _refuse_to("another capture began")
        for _ in range(warm_up):
            function()
        calls: list[Callable[[], None]] = []
        _capture.calls = calls
        try:
            function()
        finally:
            _capture.calls = None
        return EmulatorGraph(calls)
