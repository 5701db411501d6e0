"""Runs kernels on a GPU: compiles them once a machine, launches them on CuPy's current stream, captures CUDA graphs.

CuPy owns the memory, and the stream that is current in CuPy (`with stream:`) is the one that kernels run on, so they
run in order with everything else that CuPy does there. No launch waits for the GPU.
"""

import contextlib
import importlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.compile_cache import CompileCache, default_folder
from kernels.driver import CudaCore, CupyDriver, Driver, Start
from kernels.errors import OutOfMemoryError
from kernels.launch import Array, Cost, Factory, Float, Floats, Int32, Int64, Kernel, Launch, Promises, addresses_of

TABLES = 256  # of addresses that are kept


class GpuRunner:
    """A `kernels.launch.Runner` for CuPy arrays on one GPU.

    Attributes:
        cupy: The CuPy that it works with.
        device: The GPU's number.
        capability: (9, 0) for Hopper.
        driver: How it launches.
        cache: Compiled kernels.
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
        self._ndarray = cupy.ndarray
        self._process = os.getpid()
        self._loaded: dict[Kernel, Start] = {}
        self._tables: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        with cupy.cuda.Device(self.device):
            self._aside = cupy.cuda.Stream(non_blocking=True)
            self.driver = self._choose(drivers or (CudaCore, lambda: CupyDriver(cupy)))

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        """Launch `kernel`. Raises as `Kernel.check` does, and ValueError for an array on another GPU."""
        arguments = self._arguments(kernel, values)
        grid = kernel.grid(values)
        if 0 in grid:
            return
        self._check_here()
        start = self._loaded.get(kernel) or self._load(kernel)
        stream = self.cupy.cuda.get_current_stream()
        start(grid, stream, arguments)
        if self.wait:
            try:
                stream.synchronize()
            except Exception as error:
                raise RuntimeError(f"{kernel!r} with grid {grid} failed on the GPU: {error}") from error

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
        found = tuple(addresses_of(arrays, dtype, self._ndarray))
        for i, array in enumerate(arrays):
            self._check_device(array, f"array {i} of a table of addresses")
        table = self._tables.get(found)
        if table is None:
            table = self._tables[found] = self._make_table(np.array(found, np.uint64))
        self._tables.move_to_end(found)
        return table

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
        return Graph(graph, (self, pool, *self._tables.values()))

    def describe(self) -> str:
        """The GPU and how kernels get there, for people."""
        name = self.cupy.cuda.runtime.getDeviceProperties(self.device)["name"]
        name = name.decode() if isinstance(name, bytes) else name
        return f"{name} (sm_{self.capability[0]}{self.capability[1]}), launches by {self.driver.name}"

    def _arguments(self, kernel: Kernel, values: Sequence[Any]) -> list[Any]:
        """As the driver takes them: pointers as integers, numbers as NumPy scalars."""
        if len(values) != len(kernel.parameters):
            kernel.check(values, self._ndarray)
        arguments: list[Any] = []
        for (name, parameter), value in zip(kernel.parameters.items(), values, strict=True):
            if not parameter.is_pointer:
                arguments.append(parameter.number(value))
                continue
            if not (  # what is always so, in little time
                isinstance(value, self._ndarray)
                and value.dtype == parameter.dtype
                and value.flags.c_contiguous
                and value.data.device_id == self.device
            ):
                kernel.check(values, self._ndarray)
                self._check_device(value, f"{kernel.name}: {name}")
            arguments.append(value.data.ptr)
        return arguments

    def _check_device(self, array: Array, what: str) -> None:
        if array.data.device_id != self.device and array.size:
            raise ValueError(f"{what} lies on GPU {array.data.device_id}, expected GPU {self.device}")

    def _check_here(self) -> None:
        """CUDA does not survive a fork, and launches go to the device that is current."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "this process was forked from one that uses the GPU, where CUDA cannot work: start it with "
                "multiprocessing's 'spawn' method"
            )
        current = self.cupy.cuda.runtime.getDevice()
        if current != self.device:
            raise RuntimeError(f"GPU {current} is current in CuPy, expected GPU {self.device}: use cupy.cuda.Device")

    def _load(self, kernel: Kernel) -> Start:
        start = self._loaded[kernel] = self.driver.load(kernel, self.cache.get(kernel, self.capability), self.device)
        return start

    def _to_device(self, host: np.ndarray) -> Array:
        try:
            return self.cupy.asarray(np.ascontiguousarray(host))
        except self.cupy.cuda.memory.OutOfMemoryError:
            raise OutOfMemoryError(self._why_out_of_memory(host.nbytes)) from None

    def _make_table(self, host: np.ndarray) -> Array:
        """It is waited for, so that it is there for launches on any stream."""
        self._check_here()
        stream = self.cupy.cuda.get_current_stream()
        if stream.is_capturing():  # the copy must happen now, not in each replay
            stream = self._aside
        elif len(self._tables) >= TABLES:
            self.cupy.cuda.runtime.deviceSynchronize()  # a launch may still read the oldest
            self._tables.popitem(last=False)
        with stream:
            table = self._to_device(host)
        stream.synchronize()
        return table

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

    def _try(self, start: Start, small: Kernel) -> None:
        x, y = self.cupy.asarray(np.array([1, 2, 3], np.float32)), self.cupy.zeros(4, np.float32)
        start((1, 1, 1), self.cupy.cuda.get_current_stream(), self._arguments(small, (x, y, 0.5, 10, 3)))
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
