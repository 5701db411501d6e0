"""As much of CuPy as a GpuRunner uses, over NumPy: its "device" memory is the host's. Records what happens."""

import contextlib
import types
from typing import NamedTuple

import numpy as np


class Memory(NamedTuple):
    ptr: int
    device_id: int


class DeviceArray(np.ndarray):
    device_id = 0

    def __array_finalize__(self, source):
        self.device_id = getattr(source, "device_id", 0)

    @property
    def data(self):
        return Memory(self.ctypes.data, self.device_id)

    @property
    def _c_contiguous(self):
        return self.flags.c_contiguous


class OutOfMemoryError(MemoryError):
    pass


class CUDADriverError(RuntimeError):
    pass


class FakeCupy:
    __version__ = "0"
    ndarray = DeviceArray

    def __init__(self, device=0, capability="90", room=1 << 20):
        self.log = []
        self.current_device = device
        self.room = room
        outer = self
        self.null = None

        class Stream:
            made = 0

            def __init__(self, non_blocking=False):
                Stream.made += 1
                self.ptr = Stream.made
                self.capturing = False
                self.device = outer.current_device

            def __enter__(self):
                outer.streams.append(self)

            def __exit__(self, *_):
                assert outer.streams.pop() is self

            def is_capturing(self):
                return self.capturing

            def begin_capture(self):
                outer.log.append(("begin", self.ptr))
                self.capturing = True

            def end_capture(self):
                outer.log.append(("end", self.ptr))
                self.capturing = False
                return types.SimpleNamespace(launch=lambda: outer.log.append(("replay", outer.streams[-1].ptr)))

            def synchronize(self):
                if self.capturing:
                    raise RuntimeError("cudaErrorStreamCaptureUnsupported")
                outer.log.append(("synchronize", self.ptr))

            def record(self):
                outer.log.append(("record", self.ptr))
                return f"event of {self.ptr}"

            def wait_event(self, event):
                outer.log.append(("wait", self.ptr, event))

        class Device:
            def __init__(self, number):
                self.number = number
                self.compute_capability = capability

            def __enter__(self):
                self.before, outer.current_device = outer.current_device, self.number

            def __exit__(self, *_):
                outer.current_device = self.before

        class MemoryPool:
            def malloc(self, size):
                raise AssertionError("only its address is used")

            def free_all_blocks(self):
                outer.log.append(("free",))

            def used_bytes(self):
                return 3 << 30

        @contextlib.contextmanager
        def using_allocator(allocator):
            before, self.allocator = self.allocator, allocator
            try:
                yield
            finally:
                self.allocator = before

        self.allocator = "default"
        self.default_pool = MemoryPool()
        self.streams = [Stream()]
        self.cuda = types.SimpleNamespace(
            Device=Device,
            MemoryPool=MemoryPool,
            Stream=Stream,
            get_current_stream=lambda: self.streams[-1],
            using_allocator=using_allocator,
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
            runtime=types.SimpleNamespace(
                getDevice=lambda: self.current_device,
                getDeviceProperties=lambda _device: {"name": b"NVIDIA Pretence"},
                deviceSynchronize=lambda: self.log.append(("synchronize all",)),
                memGetInfo=lambda: (1 << 30, 80 << 30),
            ),
        )

    def get_default_memory_pool(self):
        return self.default_pool

    def empty(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self.room:
            raise OutOfMemoryError(f"Out of memory allocating {size} bytes")
        return self._here(np.empty(shape, dtype))

    def zeros(self, shape, dtype):
        return self._here(np.zeros(shape, dtype))

    def asarray(self, array):
        self.log.append(("copy", self.streams[-1].ptr))
        return self._here(np.array(array))

    def _here(self, array):
        result = array.view(DeviceArray)
        result.device_id = self.current_device
        return result

    def asnumpy(self, array):
        return np.array(array)
