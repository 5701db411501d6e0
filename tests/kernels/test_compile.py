import importlib.metadata

import pytest
from numba import cuda, float32, uint32

from kernels import compile as compiler
from kernels.compile import ToolkitError, architecture, compile_kernel, compile_ptx, link, target, versions
from kernels.launch import Bytes, Cost, Factory, Float, Floats, Int64, Launch, Promises, UInt32, blocks_for


def add(size: int) -> Launch:
    def work(x: Floats, flags: Bytes, y: Floats, scale: Float, mask: UInt32, n: Int64):
        i = uint32(cuda.blockIdx.x * size + cuda.threadIdx.x)
        if i < n:
            y[i] = scale * x[i] + float32(flags[i] & mask)

    return Launch(work, (size // 2, 2), lambda n: blocks_for(n, size), lambda n: Cost(5 * n, 4 * n))


def add_scaled(size: int) -> Launch:
    return add(size)


promises = Promises(("x", "flags"), ("y",), (), (), 64, True, ())


@pytest.fixture(scope="module")
def toolkit() -> None:
    pytest.importorskip("cuda.core", reason="needs numba-cuda")
    try:
        compile_kernel(Factory(add, promises)(256), (9, 0))
    except ToolkitError as error:
        pytest.skip(str(error))


def test_ptx_takes_pointers_and_numbers_as_they_are(toolkit) -> None:
    ptx = compile_ptx(Factory(add_scaled, promises)(256), (8, 0))
    parameters = [line.split() for line in ptx.splitlines() if line.strip().startswith(".param")]
    assert [kind for _, kind, _ in parameters] == [".u64", ".u64", ".u64", ".f32", ".u32", ".u64"]
    assert ".visible .entry add_scaled(" in ptx
    assert ".target sm_80\n" in ptx


def test_a_name_that_ptx_reserves_is_changed(toolkit) -> None:
    kernel = Factory(add, promises)(256)
    code = compile_kernel(kernel, (8, 0))
    assert (kernel.name, code.entry) == ("add", "add_kernel")
    assert b"add_kernel" in code.cubin


def test_machine_code_is_of_the_architecture_with_its_own_instructions(toolkit) -> None:
    assert (target((8, 0)), target((9, 0))) == ((8, 0), (9, 0, "a"))
    assert [architecture(target(one)) for one in ((8, 9), (9, 0), (12, 0))] == ["sm_89", "sm_90a", "sm_120a"]
    assert ".target sm_90a\n" in compile_ptx(Factory(add_scaled, promises)(256), (9, 0))


def test_the_same_kernel_gives_the_same_code(toolkit) -> None:
    codes = {compile_kernel(Factory(add_scaled, promises)(256), (9, 0)).entry for _ in range(2)}
    assert codes == {"add_scaled"}  # Numba's own name has a counter in it


def test_several_kernels_are_linked_and_described(toolkit) -> None:
    texts = [compile_ptx(Factory(make, promises)(64), (9, 0)) for make in (add, add_scaled)]
    cubin, log = link(texts, (9, 0))
    assert b"add_kernel" in cubin
    assert b"add_scaled" in cubin
    assert "Function properties for 'add_scaled'" in log


def test_a_missing_compiler_is_one_line_that_says_what_to_install(monkeypatch) -> None:
    class DynamicLibNotFoundError(RuntimeError):
        pass

    def missing(*_given, **_named):
        raise DynamicLibNotFoundError("Failure finding libnvvm.so\n in some places")

    monkeypatch.setattr(cuda, "compile_ptx", missing)
    with pytest.raises(
        ToolkitError, match=r"^kernels cannot be compiled here \(Failure.* pip install 'numba-cuda\[cu13\]'$"
    ):
        compile_ptx(Factory(add, promises)(256), (9, 0))


def test_an_error_of_the_kernel_is_not_taken_for_a_missing_compiler(monkeypatch) -> None:
    def wrong(*_given, **_named):
        raise RuntimeError("this kernel is wrong")

    monkeypatch.setattr(cuda, "compile_ptx", wrong)
    with pytest.raises(RuntimeError, match="this kernel is wrong"):
        compile_ptx(Factory(add, promises)(256), (9, 0))


def test_versions_name_what_is_installed(monkeypatch) -> None:
    found = versions()
    assert found["numba"] == importlib.metadata.version("numba")

    def only_cuda_12(name: str) -> str:
        if name == "nvidia-nvjitlink-cu12":
            return "12.9"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compiler.metadata, "version", only_cuda_12)
    monkeypatch.setattr(compiler, "_library", lambda name: f"the file of {name}")
    expected = {"nvidia-nvvm": "the file of nvvm", "nvidia-nvjitlink": "12.9"}
    assert versions() == {"python": found["python"], **expected}


def test_a_library_that_no_package_installed_is_known_by_its_file() -> None:
    file = compiler._library("nvvm")
    assert file == "not found" or all(part.isdigit() for part in file.split()[-2:])  # its size and date
    assert compiler._library("no-such-library") == "not found"
