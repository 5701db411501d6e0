"""Functions in LLVM's language are built once on a machine; a small module of them plays theirs here."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from minidl.backends.compilation import COMPILATION
from minidl.backends.cpu import cache, machine_code

CONSTANTS = "ANSWER = {answer}\n"
FUNCTIONS = """
from llvmlite import ir
from constants_of_code_test import ANSWER
from minidl.backends.cpu.machine_code import I64, built, number

generated = []

@built(["answer", "twice"])
def addresses():
    generated.append(ANSWER)
    module = ir.Module("test")
    for name, factor in (("answer", 1), ("twice", 2)):
        function = ir.Function(module, ir.FunctionType(I64, []), name)
        ir.IRBuilder(function.append_basic_block()).ret(number(factor * ANSWER))
    return module
"""


class Workshop:
    """A module of two functions, which takes a number from another file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "functions.py").write_text(FUNCTIONS)
        self.write(21)

    def write(self, answer: int) -> None:
        (self.folder / "constants.py").write_text(CONSTANTS.format(answer=answer))

    def start(self):
        """The module as a process that starts now has it: nothing built."""
        for name in ("constants", "functions"):
            spec = importlib.util.spec_from_file_location(f"{name}_of_code_test", self.folder / f"{name}.py")
            assert spec is not None
            sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
            # Compiled by hand: Python would take an edit within the same second and of the same length for none.
            exec(compile((self.folder / f"{name}.py").read_text(), spec.origin or "", "exec"), module.__dict__)
        return module

    def file(self) -> Path:
        (path,) = (self.folder / "cache").rglob("*.machine_code")
        return path


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(COMPILATION, "problem", None)
    yield Workshop(tmp_path)
    for name in ("constants", "functions"):
        sys.modules.pop(f"{name}_of_code_test", None)


def results(module) -> list[int]:
    return [ctypes.CFUNCTYPE(ctypes.c_int64)(address)() for address in module.addresses()]


def test_a_second_start_puts_nothing_together(workshop) -> None:
    functions = COMPILATION.functions
    first = workshop.start()
    assert (results(first), results(first), first.generated) == ([21, 42], [21, 42], [21])
    assert COMPILATION.functions == functions + 1
    second = workshop.start()
    assert (results(second), second.generated) == ([21, 42], [])
    assert COMPILATION.functions == functions + 1
    assert COMPILATION.problem is None
    assert results(first) == [21, 42]  # neither is in the way of the other


def test_an_edit_counts_also_of_what_a_number_is_taken_from(workshop) -> None:
    results(workshop.start())
    workshop.write(22)
    edited = workshop.start()
    assert (results(edited), edited.generated) == ([22, 44], [22])
    again = workshop.start()
    assert (results(again), again.generated) == ([22, 44], [])
    workshop.file()  # one: the stale one was replaced


def test_an_edit_after_the_import_does_not(workshop) -> None:
    imported = workshop.start()
    workshop.write(22)
    assert results(imported) == [21, 42]
    edited = workshop.start()
    assert (results(edited), edited.generated) == ([22, 44], [22])


@pytest.mark.parametrize(
    "damage",
    [
        lambda sound: b"",
        lambda sound: sound[:16],
        lambda sound: sound[: len(sound) // 2],
        lambda sound: sound[:-1],
        lambda sound: sound + b"x",
        lambda sound: np.random.default_rng(0).bytes(len(sound)),
        lambda sound: sound[:-40] + bytes([sound[-40] ^ 4]) + sound[-39:],
    ],
    ids=["empty", "not even a checksum", "half", "short", "long", "noise", "a flipped bit"],
)
def test_a_damaged_file_is_made_anew(workshop, damage) -> None:
    results(workshop.start())
    sound = workshop.file().read_bytes()
    workshop.file().write_bytes(damage(sound))
    damaged = workshop.start()
    assert (results(damaged), damaged.generated) == ([21, 42], [21])
    assert workshop.file().read_bytes() == sound
    again = workshop.start()
    assert (results(again), again.generated) == ([21, 42], [])


@pytest.mark.parametrize(("name", "features"), [("generic", None), (None, "")])
def test_code_for_another_processor_is_not_taken(workshop, monkeypatch, name: str | None, features: str | None) -> None:
    results(workshop.start())
    with monkeypatch.context() as other:
        other.setattr(numba.config, "CPU_NAME", name)
        other.setattr(numba.config, "CPU_FEATURES", features)
        foreign = workshop.start()
        assert (results(foreign), foreign.generated) == ([21, 42], [21])
    back = workshop.start()
    assert (results(back), back.generated) == ([21, 42], [21])


@pytest.mark.parametrize("what", ["llvmlite.__version__", "llvm.llvm_version_info"])
def test_code_of_another_compiler_is_not_taken(workshop, monkeypatch, what: str) -> None:
    results(workshop.start())
    monkeypatch.setattr(f"minidl.backends.cpu.machine_code.{what}", "another")
    other = workshop.start()
    assert (results(other), other.generated) == ([21, 42], [21])


def test_a_full_disk_costs_nothing_but_what_was_to_be_kept(workshop, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", full)
        first, second = workshop.start(), workshop.start()
        assert (results(first), results(second), second.generated) == ([21, 42], [21, 42], [21])
    assert str(COMPILATION.problem).startswith(str(workshop.folder / "cache"))
    assert str(COMPILATION.problem).endswith(": No space left on device")
    assert [path for path in (workshop.folder / "cache").rglob("*") if path.is_file()] == []


def test_without_any_folder_each_start_builds(workshop, monkeypatch) -> None:
    def nowhere(*_) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(cache.FunctionCache, "__init__", nowhere)
    first, second = workshop.start(), workshop.start()
    assert (results(first), results(second), second.generated) == ([21, 42], [21, 42], [21])
    assert COMPILATION.problem is None


def test_a_folder_that_turns_out_not_to_be_one_is_no_error(workshop, monkeypatch) -> None:
    (workshop.folder / "file").write_text("no folder")
    module = workshop.start()
    monkeypatch.setattr(cache, "kept", lambda: cache.Kept(str(workshop.folder / "file" / "below")))
    assert results(module) == [21, 42]
    assert str(COMPILATION.problem).startswith(str(workshop.folder / "file"))


def test_what_has_no_source_is_not_kept(workshop, monkeypatch) -> None:
    def unknown(*_) -> str:
        raise machine_code.UncacheableError

    monkeypatch.setattr(machine_code, "fingerprint_of_module", unknown)
    assert results(workshop.start()) == [21, 42]
    assert list((workshop.folder / "cache").rglob("*.machine_code")) == []
    assert COMPILATION.problem == "functions_of_code_test: it cannot be told when it changes"


START = """
import numpy as np
from minidl.backends.compilation import COMPILATION
from minidl.backends.cpu.blocks import block_table
from minidl.backends.cpu.passes import COPY, pass_table, run_pass
from minidl.backends.cpu.pooling_vectors import line_table
assert block_table()[1:, 1].all() and pass_table().all() and line_table().all()
x, y = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
run_pass(0, 1000, COPY, 100, x.ctypes.data, x.ctypes.data, x.ctypes.data, x.ctypes.data, y.ctypes.data)
assert (x == y).all()
print(COMPILATION.functions)
"""


def test_a_second_process_builds_nothing_of_the_backend(tmp_path) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    for built in ("3\n", "0\n"):
        result = subprocess.run(
            [sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=False
        )
        assert (result.stdout, result.stderr) == (built, "")
