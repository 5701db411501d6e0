"""Kernels with a bug in their source: one file of kernels/ is altered, and everything that uses it is loaded anew.

The reference and the checks stay as they are, so what is held against what is right is the altered kernels alone.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from kernel_bugs import Bug

import kernels.launch
from kernels.emulator import KernelFault
from kernels.run_emulated import EmulatorRunner
from minidl.backends import emulated
from minidl.lab.verify import plan, verify

SOURCES = Path(kernels.launch.__file__).parents[1]
# What runs kernels, and what the checks know by identity, is not loaded anew.
MACHINERY = tuple(
    f"kernels.{name}"
    for name in (
        *("bulk_copy", "compile", "driver", "emulator", "errors", "fingerprint", "guarded_load"),
        *("intrinsics", "launch", "packed", "run_", "tensor_core"),
    )
)
FAULTS = "MissingFence", "DataRace", "UninitialisedRead", "OutOfBounds"  # by which a bug may be caught
BACKENDS = "minidl.backends.device", "minidl.backends.emulated"


def altered(file: str, old: str, new: str, times: int = 1) -> str:
    """The source of a file below the root with `old` replaced. Raises ValueError unless it is there so many times."""
    source = (SOURCES / file).read_text(encoding="utf-8")
    if source.count(old) != times:
        raise ValueError(
            f"the bug is void: {file} has {source.count(old)} times, expected {times}, the text\n{old}\n"
            "Find what has taken its place, and break that"
        )
    return source.replace(old, new)


class NotingRunner(EmulatorRunner):
    """Keeps the faults that it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[KernelFault] = []

    def __call__(self, kernel: Any, *values: Any) -> None:
        try:
            super().__call__(kernel, *values)
        except KernelFault as fault:
            self.faults.append(fault)
            raise


@contextlib.contextmanager
def emulator_with(sources: Mapping[str, str], folder: Path) -> Iterator[Any]:
    """A fresh emulator backend, whose `run.faults` are what it found. Its kernels are the checkout's but for `sources`.

    Args:
        sources: Text by file, such as "kernels/activation.py".
        folder: Where that text is put, since the emulator reads it from a file.
    """
    files = {}
    for file, text in sources.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        files[file.removesuffix(".py").replace("/", ".")] = path
    before = _loaded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.launch, "_factories", {})
        patch.setattr(sys, "meta_path", [_Finder(files), *sys.meta_path])
        for name in before:
            patch.delitem(sys.modules, name)
            parent, _, leaf = name.rpartition(".")
            if parent not in before:  # else it goes with its package
                patch.delattr(sys.modules[parent], leaf)
        try:
            fresh = __import__("minidl.backends.emulated", fromlist=["EmulatorBackend"])
            assert fresh is not emulated
            assert set(files) <= set(_loaded()), "the altered file is used by no operation"
            yield fresh.EmulatorBackend(NotingRunner())
        finally:
            for name in _loaded():
                del sys.modules[name]


def assert_caught(bug: Bug, source: dict[str, str], folder: Path) -> None:
    """`verify` of the bug's technique names what the bug says: a fault of a kernel, and no other; or a wrong output."""
    wrong, faults = _verified(source, folder, bug.operation, bug.technique, bug.cases)
    if bug.caught in FAULTS:
        assert faults == {bug.caught}
    else:
        assert not faults
        assert bug.caught in wrong


def assert_right(folder: Path, operation: str, technique: str, cases: str) -> None:
    """Without a bug the same machinery finds nothing."""
    assert _verified({}, folder, operation, technique, cases) == (set(), set())


def _verified(
    source: dict[str, str], folder: Path, operation: str, technique: str, cases: str
) -> tuple[set[str], set[str]]:
    """Outputs that are wrong, and faults."""
    with emulator_with(source, folder) as backend:
        tasks = [task for task in plan(backend, operation, cases) if task.technique == technique]
        assert tasks
        rows = verify(backend, tasks, processes=1)
        faults = {type(fault).__name__ for fault in backend.run.faults}
    return {row.output for row in rows if not row.passed and row.ratio > 1}, faults


def _loaded() -> list[str]:
    return [
        name
        for name in sys.modules
        if name in BACKENDS
        or (name.startswith("kernels.") and not name.startswith(MACHINERY) and name != "kernels.wgmma")
    ]


class _Finder:
    """Finds the altered modules in their own files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.files[name]) if name in self.files else None
