import functools
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32, int64, uint32

from kernels import compile_cache
from kernels.compile import Code, ToolkitError
from kernels.compile_cache import CompileCache, UncacheableError, default_folder, fingerprint
from kernels.device import inlined
from kernels.launch import Cost, Factory, Floats, Int32s, Int64, Launch, Promises, blocks_for

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
from kernels.activation import relu_forward_scalar
from kernels.compile_cache import *
from pathlib import Path
cache = CompileCache(Path({folder!r}))
code = [cache.get(one, (9, 0)) for one in relu_forward_scalar.examples()[:2]][0]
print(code.entry, len(code.cubin), cache.compiled, cache.loaded)
"""
FACTOR = 2


@inlined
def scaled(value):
    return value * float32(FACTOR)


def build(function, block: int = 256, name: str = "work"):
    """A kernel of this function."""

    def make() -> Launch:
        return Launch(function, block, lambda n: blocks_for(n, block), lambda n: Cost(4 * n, 4 * n))

    make.__name__ = name
    return Factory(make, Promises(("x",), ("y",), (), (), 64, True, ((),)))()


def make(width, index=uint32, helper=scaled, extra=()):
    """A kernel that closes over these; extra is not used by the code, and yet closed over."""

    def work(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * 256 + cuda.threadIdx.x)
        if i < n and len(extra) < 9:
            y[i] = helper(x[i // width])

    return work


def other_constant(width, index=uint32, helper=scaled, extra=()):
    def work(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * 128 + cuda.threadIdx.x)
        if i < n and len(extra) < 9:
            y[i] = helper(x[i // width])

    return work


def other_type(width, index=uint32, helper=scaled, extra=()):
    def work(x: Int32s, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * 256 + cuda.threadIdx.x)
        if i < n and len(extra) < 9:
            y[i] = helper(x[i // width])

    return work


def print_of(function, capability=(9, 0), **options) -> str:
    return fingerprint(build(function, **options), capability)


def test_the_same_kernel_has_the_same_fingerprint() -> None:
    assert print_of(make(28)) == print_of(make(28))


@pytest.mark.parametrize(
    "other",
    [
        functools.partial(print_of, make(32)),
        functools.partial(print_of, make(True)),
        functools.partial(print_of, make(28.0)),
        functools.partial(print_of, make(28, int64)),
        functools.partial(print_of, make(28, helper=inlined(lambda value: value + float32(1)))),
        functools.partial(print_of, make(28, extra=(1, 2))),
        functools.partial(print_of, make(28, extra=np.arange(2000))),
        functools.partial(print_of, other_constant(28)),
        functools.partial(print_of, other_type(28)),
        functools.partial(print_of, make(28), (8, 0)),
        functools.partial(print_of, make(28), block=128),
        functools.partial(print_of, make(28), name="play"),
    ],
)
def test_whatever_the_code_follows_from_changes_it(other) -> None:
    assert other() != print_of(make(28))


def test_which_function_is_used_where_changes_it() -> None:
    """Those that were described before are told apart."""
    plus, twice = inlined(lambda value: value + float32(1)), inlined(lambda value: value * float32(2))

    def composed(f, g, h):
        def work(x: Floats, y: Floats, n: Int64):
            y[0] = h(g(f(x[0])))

        return work

    assert print_of(composed(plus, twice, plus)) != print_of(composed(plus, twice, twice))


def test_a_large_array_is_looked_at_whole() -> None:
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    assert print_of(make(28, extra=one)) != print_of(make(28, extra=other))


def test_a_constant_that_a_device_function_uses_changes_it(monkeypatch) -> None:
    before = print_of(make(28))
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert print_of(make(28)) != before


def test_versions_change_it(monkeypatch) -> None:
    before = print_of(make(28))
    monkeypatch.setattr(compile_cache, "versions", lambda: {"numba-cuda": "99"})
    assert print_of(make(28)) != before


def test_the_source_of_an_intrinsic_changes_it(monkeypatch) -> None:
    from kernels.intrinsics import load4

    def work(x: Floats, y: Floats, n: Int64):
        a, _, _, _ = load4(x, 0)
        y[0] = a

    before = print_of(work)
    assert print_of(work) == before
    getsource = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda module: getsource(module) + "\n# changed\n")
    assert print_of(work) != before


def test_what_cannot_be_described_is_compiled_anew_each_time(tmp_path, compiled) -> None:
    kernel = build(make(28, extra=types.SimpleNamespace(count=3)))
    with pytest.raises(UncacheableError, match="cannot tell whether namespace"):
        fingerprint(kernel, (9, 0))
    cache = CompileCache(tmp_path)
    assert [cache.get(kernel, (9, 0)).cubin for _ in range(2)] == [b"code 1", b"code 2"]
    assert not list(tmp_path.iterdir())


# Files


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """Kernels that were compiled, by a compiler that takes no time."""
    names: list[str] = []

    def compile_kernel(kernel, capability):
        names.append(kernel.name)
        return Code(f"{kernel.name}_entry", f"code {len(names)}".encode())

    monkeypatch.setattr(compile_cache, "compile_kernel", compile_kernel)
    return names


def test_a_kernel_is_compiled_once(tmp_path, compiled) -> None:
    first, second = CompileCache(tmp_path / "deep" / "folder"), CompileCache(tmp_path / "deep" / "folder")
    code = first.get(build(make(28)), (9, 0))
    assert code == Code("work_entry", b"code 1")
    assert second.get(build(make(28)), (9, 0)) == code
    assert (first.compiled, first.loaded, second.compiled, second.loaded) == (1, 0, 0, 1)
    second.get(build(make(28)), (8, 0))
    second.get(build(make(14)), (9, 0))
    assert len(compiled) == 3
    assert len(list((tmp_path / "deep" / "folder").iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: content[:-1] + b"\xff",
        lambda content: content.replace(b"minidl", b"MINIDL"),
        lambda content: content.replace(b'"entry"', b'"exit"'),
        lambda content: b"minidl kernel 1\n[1, 2]\n" + content,
        lambda content: b"\x00" * len(content),
    ],
)
def test_a_damaged_entry_is_compiled_again_and_mended(tmp_path, compiled, damage) -> None:
    kernel = build(make(28))
    CompileCache(tmp_path).get(kernel, (9, 0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert CompileCache(tmp_path).get(kernel, (9, 0)).cubin == b"code 2"
    assert CompileCache(tmp_path).get(kernel, (9, 0)).cubin == b"code 2"
    assert len(compiled) == 2


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path, compiled) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = CompileCache(tmp_path / "file" / "kernels")
    assert cache.get(build(make(28)), (9, 0)).cubin == b"code 1"
    assert CompileCache(None).get(build(make(28)), (9, 0)).cubin == b"code 2"


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, compiled, monkeypatch) -> None:
    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert CompileCache(tmp_path).get(build(make(28)), (9, 0)).cubin == b"code 1"
    assert not list(tmp_path.iterdir())


def test_an_entry_appears_whole(tmp_path, compiled, monkeypatch) -> None:
    seen = []
    replace = Path.replace

    def watched(path, target):
        seen.append((Path(target).exists(), compile_cache._read(path)))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    code = CompileCache(tmp_path).get(build(make(28)), (9, 0))
    assert seen == [(False, code)]


def test_the_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("MINIDL_CACHE_DIR", raising=False)
    assert default_folder() == tmp_path / "minidl" / "kernels"
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"


def test_another_process_loads_what_the_first_compiled(tmp_path) -> None:
    pytest.importorskip("cuda.core", reason="needs numba-cuda")
    try:
        compile_cache.compile_kernel(build(make(28)), (9, 0))
    except ToolkitError as error:
        pytest.skip(str(error))
    program = PROGRAM.format(folder=str(tmp_path))
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    )
    assert first[0] == "relu_forward_scalar"
    assert first[2:] == ["2", "0"]
    assert second[2:] == ["0", "2"]
    assert first[:2] == second[:2]
