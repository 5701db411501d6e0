"""The memory of the CUDA backend, on a stand-in for CuPy: which arrays it accepts, copies and refuses."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.errors import OutOfMemoryError
from minidl.backends.cuda import CudaBackend


class DeviceArray(np.ndarray):
    """What of a cupy.ndarray the backend uses."""

    gpu = 0

    def __array_finalize__(self, source: Any) -> None:
        self.gpu = getattr(source, "gpu", 0)

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(device_id=self.gpu, ptr=self.ctypes.data)

    def set(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        assert host.flags.c_contiguous
        self[...] = host


class Runner:
    """A runner that has memory and nothing else."""

    device = 0
    cupy = SimpleNamespace(ndarray=DeviceArray, asnumpy=lambda array: np.asarray(array).view(np.ndarray))

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        if np.prod(shape, dtype=np.int64) > 2**20:
            raise OutOfMemoryError("the GPU has no 8 MiB left")
        array = np.full(shape, 77, dtype).view(DeviceArray)
        array.gpu = self.device
        return array

    def describe(self) -> str:
        return "NVIDIA H200"


@pytest.fixture
def backend() -> CudaBackend:
    return CudaBackend(Runner())  # type: ignore[arg-type]


def test_arrays_go_there_and_back(backend) -> None:
    host = np.arange(6, dtype=np.int64).reshape(2, 3).T
    array = backend.array(host)
    assert (type(array), array.dtype, array.flags.c_contiguous) == (DeviceArray, np.float32, True)
    assert np.array_equal(array, host)
    back = backend.numpy(array)
    assert (type(back), back.dtype) == (np.ndarray, np.float32)
    assert not np.shares_memory(back, array)
    assert backend.array(np.array([1, 2]), np.uint8).dtype == np.uint8
    assert backend.array(np.float64(3.5)).shape == ()
    assert not backend.zeros((4, 2), np.int32).any()
    assert backend.zeros((4, 2)).dtype == np.float32
    target = backend.empty((3, 2))
    backend.copy(array, target)
    assert np.array_equal(target, host)
    assert backend.describe() == "cuda, NVIDIA H200, in TF32"
    assert CudaBackend(backend.run, "fp32").describe() == "cuda, NVIDIA H200, in FP32"


def test_what_lies_elsewhere_is_refused(backend) -> None:
    array = backend.zeros((3, 2))
    assert backend.accept(array, "x") is array
    turned = backend.accept(array.T, "x")
    assert turned.flags.c_contiguous
    assert turned.shape == (2, 3)
    for given, message in (
        (np.zeros(3, np.float32), "x is a numpy.ndarray, expected a cupy.ndarray; copy it with backend.array"),
        (1.0, "x is a builtins.float, expected a cupy.ndarray"),
        (array.astype(np.float64), "x has dtype float64, expected float32; convert it with .astype('float32')"),
    ):
        with pytest.raises(TypeError, match="^" + re.escape(message)):
            backend.accept(given, "x")
    array.gpu = 1
    with pytest.raises(TypeError, match=r"^x lies on GPU 1, expected GPU 0$"):
        backend.accept(array, "x")


def test_too_much_memory_is_an_error_that_says_so(backend) -> None:
    for make in (backend.empty, backend.zeros):
        with pytest.raises(OutOfMemoryError, match="8 MiB"):
            make((2**21,))
    with pytest.raises(OutOfMemoryError, match="8 MiB"):
        backend.array(np.zeros(2**21, np.float32))
