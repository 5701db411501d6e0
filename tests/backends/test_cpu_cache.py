import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from minidl.backends.compilation import COMPILATION
from minidl.backends.cpu import cache
from minidl.backends.cpu import compile as compiling

HELPER = """
from minidl.backends.cpu.compile import inlined

STEP = {step}

@inlined
def advance(x):
    return x + STEP
"""
KERNEL = """
from helper_of_cache_test import advance
from minidl.backends.cpu.compile import compiled

@compiled
def kernel(x):
    return 10 * advance(x)
"""


class Workshop:
    """A kernel in one file that inlines a function of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(1)
        (folder / "kernel.py").write_text(KERNEL)

    def write(self, step: int) -> None:
        (self.folder / "helper.py").write_text(HELPER.format(step=step))

    def kernel(self):
        """As a process that starts now has it: nothing compiled."""
        sys.modules["helper_of_cache_test"] = self._load("helper")
        try:
            return self._load("kernel").kernel
        finally:
            del sys.modules["helper_of_cache_test"]

    def _load(self, name: str):
        spec = importlib.util.spec_from_file_location(f"{name}_of_cache_test", self.folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Compiled by hand: Python would take an edit within the same second and of the same length for none.
        exec(compile((self.folder / f"{name}.py").read_text(), spec.origin or "", "exec"), module.__dict__)
        return module

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.folder.rglob(f"*{suffix}"))


@pytest.fixture
def workshop(tmp_path, monkeypatch) -> Workshop:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return Workshop(tmp_path)


def hits(kernel) -> int:
    return sum(kernel.stats.cache_hits.values())


def test_machine_code_is_kept_for_each_signature(workshop) -> None:
    assert workshop.kernel()(2) == 30
    assert workshop.kernel()(0.5) == 15.0
    again = workshop.kernel()
    assert (again(2), again(0.5), hits(again)) == (30, 15.0, 2)
    assert (len(workshop.files(".nbi")), len(workshop.files(".nbc"))) == (1, 2)


def test_an_edit_of_what_is_inlined_from_another_file_counts(workshop) -> None:
    assert workshop.kernel()(2) == 30
    workshop.write(step=5)
    edited = workshop.kernel()
    assert (edited(2), hits(edited)) == (70, 0)
    again = workshop.kernel()
    assert (again(2), hits(again)) == (70, 1)
    assert len(workshop.files(".nbc")) == 1  # the stale one was replaced


def test_an_edit_after_the_import_does_not(workshop) -> None:
    imported = workshop.kernel()
    workshop.write(step=5)
    assert imported(2) == 30
    assert workshop.kernel()(2) == 70


def test_machine_code_of_another_signature_is_not_taken(workshop) -> None:
    workshop.kernel()(2)
    workshop.kernel()(0.5)
    first, second = workshop.files(".nbc")
    first.rename(workshop.folder / "kept")
    second.rename(first)
    (workshop.folder / "kept").rename(second)
    mixed = workshop.kernel()
    assert (mixed(2), mixed(0.5), hits(mixed)) == (30, 15.0, 0)


def test_what_is_compiled_is_counted_and_what_is_kept_is_not(workshop) -> None:
    functions, seconds = COMPILATION.functions, COMPILATION.seconds
    assert workshop.kernel()(2) == 30
    assert COMPILATION.functions == functions + 1
    assert COMPILATION.seconds > seconds
    seconds = COMPILATION.seconds
    assert workshop.kernel()(2) == 30
    assert (COMPILATION.functions, COMPILATION.seconds) == (functions + 1, seconds)

    @numba.njit
    def of_somebody_else(x):
        return x + 1

    assert of_somebody_else(1) == 2
    assert COMPILATION.functions == functions + 1


def test_a_full_disk_costs_nothing_but_the_cache(workshop, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(COMPILATION, "problem", None)
    monkeypatch.setattr(cache._Files, "_write", full)
    assert workshop.kernel()(2) == 30
    assert workshop.files(".nbc") == []
    assert str(COMPILATION.problem).startswith(str(workshop.folder / "cache"))
    assert str(COMPILATION.problem).endswith(": No space left on device")


def test_without_any_folder_it_works_without_a_cache(workshop, monkeypatch) -> None:
    def nowhere(*_) -> None:
        raise RuntimeError("no locator available")

    assert cache.kept() == cache.Kept(cache.Cache(cache.kept).cache_path)
    monkeypatch.setattr(cache.FunctionCache, "__init__", nowhere)
    functions = COMPILATION.functions
    assert (workshop.kernel()(2), workshop.kernel()(2)) == (30, 30)
    assert COMPILATION.functions == functions + 2
    assert workshop.files(".nbi") == []
    found = cache.kept()
    assert found.folder is None
    assert "each start compiles anew" in str(found.problem)


def test_a_cache_folder_that_is_none_is_passed_over(workshop, monkeypatch) -> None:
    (workshop.folder / "file").write_text("no folder")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(workshop.folder / "file"))
    assert workshop.kernel()(2) == 30
    assert len(workshop.files(".nbc")) == 1  # beside the source
    found = cache.kept()
    assert found.folder is not None
    assert found.problem == f"{found.folder}, as NUMBA_CACHE_DIR ({workshop.folder / 'file'}) cannot be written to"


CALLED = """
from minidl.backends.cpu.compile import called, compiled

@called
def half(x):
    return x / 2

@compiled
def kernel(x):
    return half(x) + 1
"""


def test_what_kernels_alone_call_is_kept_and_is_not_for_python(workshop) -> None:
    (workshop.folder / "kernel.py").write_text(CALLED)
    functions = COMPILATION.functions
    assert (workshop.kernel()(3), COMPILATION.functions) == (2.5, functions + 2)
    again = workshop.kernel()
    assert (again(3), hits(again), COMPILATION.functions) == (2.5, 1, functions + 2)
    assert len(workshop.files(".nbc")) == 2
    half = again.py_func.__globals__["half"]
    with pytest.raises(TypeError, match="half is compiled for kernels alone"):
        half(3)
    again(np.float32(3))  # another signature, and the part of it that was kept is not this one's
    assert COMPILATION.functions == functions + 4


def test_a_kernel_may_make_arrays(workshop) -> None:
    @compiling.compiled
    def kernel(size):
        values = np.empty(size)
        for i in range(size):
            values[i] = i
        return values[1:].sum()

    assert kernel(4) == 6


def test_what_cannot_be_told_to_have_changed_is_not_kept(workshop, monkeypatch) -> None:
    def unknown(*_) -> str:
        raise cache.UncacheableError

    monkeypatch.setattr(COMPILATION, "problem", None)
    monkeypatch.setattr(cache, "fingerprint", unknown)
    assert workshop.kernel()(2) == 30
    assert workshop.files(".nbc") == []
    assert COMPILATION.problem == "kernel: it cannot be told when it changes"


DAMAGE = """
import sys
from pathlib import Path

import numpy as np
from test_cpu_cache import Workshop, hits

workshop = Workshop(Path(sys.argv[1]))
noise = np.random.default_rng(0)
for suffix in (".nbi", ".nbc"):
    for name, damage in {
        "empty": lambda sound: b"",
        "half": lambda sound: sound[: len(sound) // 2],
        "short": lambda sound: sound[:-1],
        "long": lambda sound: sound + b"x",
        "noise": lambda sound: noise.bytes(len(sound)),
        "a flipped bit": lambda sound: sound[:-40] + bytes([sound[-40] ^ 4]) + sound[-39:],
    }.items():
        workshop.kernel()(2)
        (path,) = workshop.files(suffix)
        path.write_bytes(damage(path.read_bytes()))
        damaged, again = workshop.kernel(), workshop.kernel()
        assert (damaged(2), hits(damaged), again(2), hits(again)) == (30, 0, 30, 1), (suffix, name)
print("recovered")
"""


def test_damaged_files_are_made_anew(tmp_path) -> None:
    # In a process of its own: what Numba does with damaged machine code may end it.
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}
    command = [sys.executable, "-c", DAMAGE, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("recovered\n", "", 0)
