"""Runs kernels on a GPU: compiles them once a machine, launches them on CuPy's current stream, captures CUDA graphs.

CuPy owns the memory, and the stream that is current in CuPy (`with stream:`) is the one that kernels run on, so they
run in order with everything else that CuPy does there. No launch waits for the GPU.
"""

import contextlib
import functools
import importlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from kernels.arrays import addresses_of
from kernels.chip import Chip
from kernels.choice import Listener
from kernels.compile_cache import CompileCache, default_folder
from kernels.driver import CudaCore, CupyDriver, Driver, Loaded, Start
from kernels.errors import OutOfMemoryError
from kernels.launch import Array, Cost, Factory, Float, Floats, Int32, Int64, Kernel, Launch, Promises
from kernels.prepared import Prepared, Ready

TABLES = 256  # of addresses and other numbers, that are kept


class _Forks:
    """How many processes this one was forked through: to compare it is cheaper than to ask for the process's number."""

    count = 0

    def add(self) -> None:
        self.count += 1


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forks.add)


class GpuRunner:
    """A `kernels.launch.Runner` for CuPy arrays on one GPU.

    Attributes:
        cupy: The CuPy that it works with.
        device: The GPU's number.
        capability: (9, 0) for Hopper.
        driver: How it launches.
        cache: Compiled kernels.
        on_choice: Told of each choice of a technique (kernels/choice.py); None by default.
    """

    name = "cuda"

    def __init__(
        self,
        device: int | None = None,
        *,
        wait: bool = False,
        cache: CompileCache | None = None,
        cupy: Any = None,
        drivers: Sequence[Callable[[], Driver]] | None = None,
    ) -> None:
        """For GPU number `device`, or the one that is current in CuPy.

        Args:
            device: The GPU's number.
            wait: Whether to wait for each launch to end, so that an error that the GPU reports names its kernel.
            cache: Of compiled kernels; the user's by default.
            cupy: The CuPy module, for tests.
            drivers: What to launch by, best first; for tests.

        Raises:
            ImportError: There is no CuPy.
            RuntimeError: The GPU cannot be used; says why.
        """
        cupy = importlib.import_module("cupy") if cupy is None else cupy
        self.cupy = cupy
        self.device = int(cupy.cuda.runtime.getDevice() if device is None else device)
        self.wait = wait
        self.cache = CompileCache(default_folder()) if cache is None else cache
        capability = cupy.cuda.Device(self.device).compute_capability  # "90", "120"
        self.capability = int(capability[:-1]), int(capability[-1])
        self.on_choice: Listener | None = None
        self._ndarray = cupy.ndarray
        # CuPy makes an object for `flags`, which takes a third of a microsecond; the attribute behind it is private.
        self._quick = cupy.ndarray if hasattr(cupy.ndarray, "_c_contiguous") else None
        self._forks = _forks.count
        self._prepared: dict[Kernel, Prepared] = {}
        self._current_stream, self._current_device = cupy.cuda.get_current_stream, cupy.cuda.runtime.getDevice
        self._tables: OrderedDict[Hashable, Array] = OrderedDict()
        self._barriers: dict[int, Array] = {}  # by stream
        with cupy.cuda.Device(self.device):
            self._aside = cupy.cuda.Stream(non_blocking=True)
            self.driver = self._choose(drivers or (CudaCore, lambda: CupyDriver(cupy)))

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        """Launch `kernel`. Raises as `Kernel.check` does, and ValueError for an array on another GPU.

        All in one place: that a step of hundreds of launches is not held up by the host, each call counts here.
        """
        prepared = self._prepared.get(kernel)
        if prepared is None:
            prepared = self._prepared[kernel] = Prepared(kernel)
        if len(values) != prepared.count:
            kernel.check(values, self._ndarray)
        try:
            ready = prepared.known[prepared.key(values)]
        except (KeyError, TypeError):  # new numbers, or one that has no hash
            ready = prepared.work_out(values)
        quick, device = self._quick, self.device
        arguments = ready.arguments.copy()
        for i, dtype in prepared.pointers:
            value = values[i]
            if type(value) is quick and value.dtype is dtype and value._c_contiguous:
                memory = value.data
                if memory.device_id == device:  # what is always so, in little time
                    arguments[i] = memory.ptr
                    continue
            arguments[i] = self._checked_pointer(kernel, values, i)
        if self._forks != _forks.count or self._current_device() != device:
            self._check_here()
        start = ready.start
        if start is None:
            if 0 in ready.grid:
                return
            start = self._start(prepared, ready)
        stream = self._current_stream()
        start(stream, arguments)
        if self.wait:
            try:
                stream.synchronize()
            except Exception as error:
                raise RuntimeError(f"{kernel!r} with grid {ready.grid} failed on the GPU: {error}") from error

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Uninitialised memory from CuPy's pool. Raises OutOfMemoryError, which says how much was asked for."""
        self._check_here()
        try:
            return self.cupy.empty(shape, dtype)
        except self.cupy.cuda.memory.OutOfMemoryError:
            asked = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            raise OutOfMemoryError(self._why_out_of_memory(asked)) from None

    def upload(self, host: np.ndarray) -> Array:
        """A copy in device memory, in order with launches. Raises RuntimeError while a CUDA graph is captured."""
        self._check_here()
        if self.cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                "numbers from the host would stay as they are in each replay of a CUDA graph: "
                "keep them in an array on the device and fill it before each replay"
            )
        return self._to_device(host)

    def addresses(self, arrays: Sequence[Array], dtype: Any = np.float32) -> Array:
        """Where the arrays start, (len(arrays),) uint64; the table of the same arrays is made once."""
        found = self._starts(arrays, np.dtype(dtype))
        return self.table(found, lambda: np.array(found, np.uint64))

    def table(self, key: Hashable, make: Callable[[], np.ndarray]) -> Array:
        """What `make()` gives, made once for a key; the TABLES used last are kept, and those that a graph may read."""
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = self._make_table(make())
        self._tables.move_to_end(key)
        return table

    @functools.cached_property
    def chip(self) -> Chip | None:
        """What the GPU says of itself; None of one on which blocks cannot wait for each other."""
        has = getattr(self.cupy.cuda.Device(self.device), "attributes", {})
        if not has.get("CooperativeLaunch"):
            return None
        names = "MultiProcessorCount", "MaxSharedMemoryPerBlockOptin", "MaxRegistersPerMultiprocessor"
        if any(name not in has for name in names):
            return None
        multiprocessors, shared_bytes, registers = (int(has[name]) for name in names)
        return Chip(multiprocessors, shared_bytes, registers, self.capability)

    def barrier(self) -> Array:
        """The current stream's number for barriers of the grid, or that of the graph that is being captured on it."""
        self._check_here()
        handle = self.cupy.cuda.get_current_stream().ptr
        if handle not in self._barriers:
            self._barriers[handle] = self._to_device_now(np.zeros(1, np.uint32))
        return self._barriers[handle]

    def synchronize(self) -> None:
        """Wait until the current stream has done all that it was given; errors of launches appear here."""
        self._check_here()
        self.cupy.cuda.get_current_stream().synchronize()

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> "Graph":
        """Record what `function()` launches as a CUDA graph, which `replay()` launches as a whole.

        First it is run `warm_up` times for real, which loads every kernel; the recording itself computes nothing. A
        replay does the same again with the same memory: what differs from step to step must lie in device memory that
        the caller fills in between. Memory that `function` allocates belongs to the graph for as long as that lives.

        Raises:
            RuntimeError: Something was done that cannot be captured, such as waiting for the GPU.
        """
        self._check_here()
        cuda = self.cupy.cuda
        before, stream, pool = cuda.get_current_stream(), cuda.Stream(non_blocking=True), cuda.MemoryPool()
        self.cupy.get_default_memory_pool().free_all_blocks()  # the graph has a pool of its own
        stream.wait_event(before.record())
        self._barriers.pop(stream.ptr, None)  # of a stream before that was called the same
        try:
            with cuda.using_allocator(pool.malloc), stream:
                for _ in range(warm_up):
                    function()
                stream.synchronize()
                stream.begin_capture()
                try:
                    function()
                except BaseException:
                    with contextlib.suppress(Exception):  # that the recording is of no use
                        stream.end_capture()
                    raise
                graph = stream.end_capture()
        finally:
            before.wait_event(stream.record())
        return Graph(graph, (self, pool, *self._tables.values(), self._barriers.pop(stream.ptr, None)))

    @property
    def capturing(self) -> bool:
        """Whether the current stream is being captured."""
        return bool(self._current_stream().is_capturing())

    def describe(self) -> str:
        """The GPU and how kernels get there, for people."""
        name = self.cupy.cuda.runtime.getDeviceProperties(self.device)["name"]
        name = name.decode() if isinstance(name, bytes) else name
        return f"{name} (sm_{self.capability[0]}{self.capability[1]}), launches by {self.driver.name}"

    def _checked_pointer(self, kernel: Kernel, values: Sequence[Any], i: int) -> int:
        kernel.check(values, self._ndarray)
        self._check_device(values[i], f"{kernel.name}: {list(kernel.parameters)[i]}")
        return int(values[i].data.ptr)

    def _start(self, prepared: Prepared, ready: Ready) -> Start:
        if prepared.load is None:
            prepared.load = self._load(prepared.kernel)
        ready.start = prepared.load(ready.grid)
        return ready.start

    def _starts(self, arrays: Sequence[Array], dtype: np.dtype[Any]) -> tuple[int, ...]:
        quick, device = self._quick, self.device
        if all(
            type(array) is quick and array.dtype is dtype and array._c_contiguous and array.data.device_id == device
            for array in arrays
        ):
            return tuple([array.data.ptr for array in arrays])
        found = tuple(addresses_of(arrays, dtype, self._ndarray))
        for i, array in enumerate(arrays):
            self._check_device(array, f"array {i} of a table of addresses")
        return found

    def _check_device(self, array: Array, what: str) -> None:
        if array.data.device_id != self.device and array.size:
            raise ValueError(f"{what} lies on GPU {array.data.device_id}, expected GPU {self.device}")

    def _check_here(self) -> None:
        """CUDA does not survive a fork, and launches go to the device that is current."""
        if self._forks != _forks.count:
            raise RuntimeError(
                "this process was forked from one that uses the GPU, where CUDA cannot work: start it with "
                "multiprocessing's 'spawn' method"
            )
        current = self._current_device()
        if current != self.device:
            raise RuntimeError(f"GPU {current} is current in CuPy, expected GPU {self.device}: use cupy.cuda.Device")

    def _load(self, kernel: Kernel) -> Loaded:
        return self.driver.load(kernel, self.cache.get(kernel, self.capability), self.device)

    def _to_device(self, host: np.ndarray) -> Array:
        try:
            return self.cupy.asarray(np.ascontiguousarray(host))
        except self.cupy.cuda.memory.OutOfMemoryError:
            raise OutOfMemoryError(self._why_out_of_memory(host.nbytes)) from None

    def _make_table(self, host: np.ndarray) -> Array:
        """It is waited for, so that it is there for launches on any stream."""
        self._check_here()
        if len(self._tables) >= TABLES and not self.cupy.cuda.get_current_stream().is_capturing():
            self.cupy.cuda.runtime.deviceSynchronize()  # a launch may still read the oldest
            self._tables.popitem(last=False)
        return self._to_device_now(host)

    def _to_device_now(self, host: np.ndarray) -> Array:
        """A copy that is there when this returns, and that no replay of a graph makes again."""
        stream = self.cupy.cuda.get_current_stream()
        if stream.is_capturing():
            stream = self._aside
        with stream:
            array = self._to_device(host)
        stream.synchronize()
        return array

    def _choose(self, drivers: Sequence[Callable[[], Driver]]) -> Driver:
        """The first that runs a small kernel right."""
        small = Factory(first_launch, Promises(("x",), ("y",), ("y",), (), 16, True, ((),)))()
        code = self.cache.get(small, self.capability)
        reasons = []
        for make in drivers:
            try:
                driver = make()
                self._try(driver.load(small, code, self.device), small)
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {error}")
            else:
                return driver
        raise RuntimeError(f"no kernel can be launched on GPU {self.device}: {'; '.join(reasons)}")

    def _try(self, load: Loaded, small: Kernel) -> None:
        x, y = self.cupy.asarray(np.array([1, 2, 3], np.float32)), self.cupy.zeros(4, np.float32)
        prepared = self._prepared[small] = Prepared(small)
        prepared.load = load
        self(small, x, y, 0.5, 10, 3)
        result = self.cupy.asnumpy(y).tolist()
        if result != [10.5, 11.0, 11.5, 0.0]:
            raise RuntimeError(f"a small kernel computed {result}")

    def _why_out_of_memory(self, asked: int) -> str:
        free, total = self.cupy.cuda.runtime.memGetInfo()
        held = self.cupy.get_default_memory_pool().used_bytes()
        return (
            f"the GPU has no {_size(asked)} left: of its {_size(total)}, {_size(free)} are free and arrays of this "
            f"process hold {_size(held)}; use a smaller batch (--batch-size), or end other programs on this GPU"
        )


class Graph:
    """A captured sequence of launches."""

    def __init__(self, graph: Any, memory: tuple[Any, ...]) -> None:
        self._graph = graph
        self._memory = memory  # and modules, that the launches use

    def replay(self) -> None:
        """Launch it all on CuPy's current stream."""
        self._graph.launch()


def first_launch() -> Launch:
    """A kernel that shows whether arguments of each kind arrive: scale * x + shift, for the first n elements."""
    from numba import cuda, float32

    def first_launch(x: Floats, y: Floats, scale: Float, shift: Int32, n: Int64):
        i = cuda.threadIdx.x
        if i < n:
            y[i] = scale * x[i] + float32(shift)

    return Launch(first_launch, 32, lambda: 1, lambda n: Cost(4 * n, 4 * n, 2 * n))


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"
