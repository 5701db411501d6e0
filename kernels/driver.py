"""How machine code gets onto a GPU and is launched there: by cuda.core, or by CuPy where that does not work.

Both take pointers as plain integers and numbers as NumPy scalars. cuda.core costs the host well under a microsecond a
launch, CuPy some microseconds; Numba's own launch would cost 60 to 110 for three to six CuPy arrays, which it inspects
anew each time.
"""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from kernels.compile import Code
from kernels.launch import Kernel

Start = Callable[[Any, Sequence[Any]], None]  # launches a kernel with a certain grid: CuPy stream, arguments
Loaded = Callable[[tuple[int, int, int]], Start]  # a kernel on a device: makes, for a grid, what launches it


class Driver(Protocol):
    """Loads machine code."""

    name: str

    def load(self, kernel: Kernel, code: Code, device: int) -> Loaded:
        """Put the code onto the current device, which is number `device`."""


class CudaCore:
    """By NVIDIA's cuda.core, which numba-cuda depends on."""

    def __init__(self) -> None:
        """Raises ImportError or AttributeError where this version of cuda.core has other names."""
        core = importlib.import_module("cuda.core")
        self.name = f"cuda.core {metadata.version('cuda-core')}"
        self._driver = importlib.import_module("cuda.bindings.driver")
        self._launch, self._configuration = core.launch, core.LaunchConfig
        self._from_cubin, self._stream = core.ObjectCode.from_cubin, core.Stream.from_handle
        self._streams: dict[int, Any] = {}  # cuda.core's, by handle

    def load(self, kernel: Kernel, code: Code, device: int) -> Loaded:
        """See Driver."""
        function = self._from_cubin(code.cubin).get_kernel(code.entry)
        if kernel.shared_bytes:
            self._allow_shared_memory(kernel, function, device)
        launch, configuration_of = self._launch, self._configuration
        stream_of, streams = self._stream, self._streams

        def with_grid(grid: tuple[int, int, int]) -> Start:
            configuration = configuration_of(
                grid=grid,
                block=kernel.block,
                shmem_size=kernel.shared_bytes,
                is_cooperative=kernel.cooperative,
            )

            def start(stream: Any, arguments: Sequence[Any]) -> None:
                handle = streams.get(stream.ptr)
                if handle is None:
                    handle = streams[stream.ptr] = stream_of(stream.ptr)
                launch(handle, configuration, function, *arguments)

            return start

        return with_grid

    def _allow_shared_memory(self, kernel: Kernel, function: Any, device: int) -> None:
        """Without this the driver grants 48 KB a block."""
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = self._driver.cuKernelSetAttribute(attribute, kernel.shared_bytes, function.handle, device)
        if int(status):
            raise RuntimeError(_too_much_shared_memory(kernel, status.name))


class CupyDriver:
    """By CuPy alone."""

    def __init__(self, cupy: Any) -> None:
        self.name = f"CuPy {cupy.__version__}"
        self._cupy = cupy

    def load(self, kernel: Kernel, code: Code, device: int) -> Loaded:  # noqa: ARG002  # CuPy takes the current one
        """See Driver."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{code.entry}.cubin")
            path.write_bytes(code.cubin)
            module = self._cupy.RawModule(path=str(path), enable_cooperative_groups=kernel.cooperative)
            function = module.get_function(code.entry)
            _ = function.kernel  # now, while the file is there
        if kernel.shared_bytes:
            try:
                function.max_dynamic_shared_size_bytes = kernel.shared_bytes
            except self._cupy.cuda.driver.CUDADriverError as error:
                raise RuntimeError(_too_much_shared_memory(kernel, str(error))) from None

        def with_grid(grid: tuple[int, int, int]) -> Start:
            def start(stream: Any, arguments: Sequence[Any]) -> None:
                function(grid, kernel.block, tuple(arguments), shared_mem=kernel.shared_bytes, stream=stream)

            return start

        return with_grid


def _too_much_shared_memory(kernel: Kernel, reason: str) -> str:
    return f"{kernel!r} needs {kernel.shared_bytes:,} bytes of shared memory a block, more than this GPU has ({reason})"
