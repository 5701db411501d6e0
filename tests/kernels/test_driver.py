"""How kernels reach a driver, held against stand-ins for cuda.core and CuPy."""

import importlib
import types
from pathlib import Path

import numpy as np
import pytest
from fake_cupy import CUDADriverError, FakeCupy

from kernels import driver
from kernels.compile import Code
from kernels.driver import CudaCore, CupyDriver
from kernels.launch import Cost, Factory, Floats, Int64, Kernel, Launch, Promises


def kernel(block: int, shared_bytes: int, cooperative: bool = False) -> Kernel:
    def work(x: Floats, y: Floats, n: Int64):
        pass

    def make() -> Launch:
        return Launch(work, block, lambda n: n, lambda n: Cost(4 * n, 4 * n), shared_bytes, cooperative)

    make.__name__ = "work"
    return Factory(make, Promises(("x",), ("y",), (), (), 64, True, ((),)))()


@pytest.fixture
def cupy() -> FakeCupy:
    return FakeCupy()


class RawModule:
    """CuPy's, over a file that must be there when the kernel is asked for."""

    limit = 232448

    def __init__(self, path, enable_cooperative_groups) -> None:
        self.path = path
        self.cooperative = enable_cooperative_groups
        self.launches: list[tuple] = []

    def get_function(self, name):
        module = self

        class Function:
            shared = None
            code = None

            def __call__(self, *given, **named):
                assert self.kernel == b"cubin"
                module.launches.append((*given, named))

            @property
            def kernel(self):
                self.code = self.code or Path(module.path).read_bytes()
                return self.code

            @property
            def max_dynamic_shared_size_bytes(self):
                return self.shared

            @max_dynamic_shared_size_bytes.setter
            def max_dynamic_shared_size_bytes(self, size):
                if size > module.limit:
                    raise CUDADriverError("CUDA_ERROR_INVALID_VALUE")
                self.shared = size

        self.function = Function()
        return self.function


def test_cupy_launches(cupy) -> None:
    modules = []
    cupy.RawModule = lambda **options: modules.append(RawModule(**options)) or modules[-1]
    load = CupyDriver(cupy).load(kernel(64, 100_000), Code("work", b"cubin"), 0)
    load((7, 1, 1))(cupy.streams[0], [1, 2, np.int64(3)])
    assert modules[0].function.shared == 100_000
    assert modules[0].launches == [
        ((7, 1, 1), (64, 1, 1), (1, 2, np.int64(3)), {"shared_mem": 100_000, "stream": cupy.streams[0]})
    ]
    assert not Path(modules[0].path).exists()
    CupyDriver(cupy).load(kernel(32, 0), Code("work", b"cubin"), 0)((1, 1, 1))(cupy.streams[0], [])
    assert modules[1].launches == [((1, 1, 1), (32, 1, 1), (), {"shared_mem": 0, "stream": cupy.streams[0]})]
    with pytest.raises(RuntimeError, match=r"work\(\) needs 300,000 bytes of shared memory a block"):
        CupyDriver(cupy).load(kernel(64, 300_000), Code("work", b"cubin"), 0)


class FakeCore:
    """cuda.core and cuda.bindings.driver, as far as they are used."""

    limit = 232448

    def __init__(self) -> None:
        self.launches: list[tuple] = []
        self.configurations: list[dict] = []
        self.streams: list[int] = []
        self.attributes: list[tuple] = []
        self.launch = lambda *given: self.launches.append(given)
        self.ObjectCode = types.SimpleNamespace(from_cubin=self.from_cubin)
        self.Stream = types.SimpleNamespace(
            from_handle=lambda handle: self.streams.append(handle) or f"stream {handle}"
        )
        attribute = types.SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
        self.CUfunction_attribute = attribute

    def LaunchConfig(self, **options):  # noqa: N802  # its name there
        self.configurations.append(options)
        return len(self.configurations)

    def from_cubin(self, cubin):
        return types.SimpleNamespace(get_kernel=lambda name: types.SimpleNamespace(name=name, cubin=cubin, handle=77))

    def cuKernelSetAttribute(self, *given):  # noqa: N802  # its name there
        self.attributes.append(given)
        return (Status(given[1] > self.limit),)


class Status(int):
    name = "CUDA_ERROR_INVALID_VALUE"


@pytest.fixture
def core(monkeypatch) -> FakeCore:
    core = FakeCore()
    modules = {"cuda.core": core, "cuda.bindings.driver": core}
    monkeypatch.setattr(driver, "importlib", types.SimpleNamespace(import_module=modules.__getitem__))
    monkeypatch.setattr(driver, "metadata", types.SimpleNamespace(version=lambda name: {"cuda-core": "1.2"}[name]))
    return core


def test_cuda_core_launches(core, cupy) -> None:
    cuda_core = CudaCore()
    assert cuda_core.name == "cuda.core 1.2"
    load = cuda_core.load(kernel(64, 100_000), Code("entry", b"cubin"), 3)
    assert core.attributes == [(8, 100_000, 77, 3)]
    first, second = cupy.streams[0], cupy.cuda.Stream()
    seven, nine = load((7, 1, 1)), load((9, 2, 1))
    for start, stream in ((seven, first), (seven, second), (nine, first), (seven, first)):
        start(stream, [1, 2, np.int64(3)])
    launched = [(stream, configuration, *arguments) for stream, configuration, _, *arguments in core.launches]
    one, other = f"stream {first.ptr}", f"stream {second.ptr}"
    assert launched == [(one, 1, 1, 2, 3), (other, 1, 1, 2, 3), (one, 2, 1, 2, 3), (one, 1, 1, 2, 3)]
    assert {(function.name, function.cubin) for _, _, function, *_ in core.launches} == {("entry", b"cubin")}
    same = {"block": (64, 1, 1), "shmem_size": 100_000, "is_cooperative": False}
    assert core.configurations == [{"grid": (7, 1, 1), **same}, {"grid": (9, 2, 1), **same}]
    assert core.streams == [first.ptr, second.ptr]


def test_cuda_core_launches_cooperatively_and_leaves_shared_memory_alone(core, cupy) -> None:
    CudaCore().load(kernel(64, 0, cooperative=True), Code("entry", b"cubin"), 0)((1, 1, 1))(cupy.streams[0], [])
    assert core.configurations[0]["is_cooperative"]
    assert core.attributes == []


def test_cuda_core_says_how_much_shared_memory_is_too_much(core) -> None:
    with pytest.raises(
        RuntimeError, match=r"^work\(\) needs 300,000 bytes .* than this GPU has \(CUDA_ERROR_INVALID_VALUE\)$"
    ):
        CudaCore().load(kernel(64, 300_000), Code("entry", b"cubin"), 0)


def test_another_cuda_core_is_noticed_before_it_launches(core) -> None:
    del core.launch
    with pytest.raises(AttributeError):
        CudaCore()


def test_the_names_are_those_of_the_installed_cuda_core() -> None:
    core = pytest.importorskip("cuda.core", reason="needs numba-cuda")
    assert CudaCore().name.startswith("cuda.core ")
    assert hasattr(core.Kernel, "handle")
    bindings = importlib.import_module("cuda.bindings.driver")
    assert hasattr(bindings, "cuKernelSetAttribute")
    assert int(bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) == 8
