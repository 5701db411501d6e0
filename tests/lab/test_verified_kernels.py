"""What `verify` reaches: every kernel, and of each technique that it names the technique's own."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import altered, emulator_with

from kernels.errors import TechniqueError
from kernels.launch import Kernel, factories
from kernels.run_emulated import EmulatorRunner
from minidl.backends.emulated import EmulatorBackend
from minidl.lab.operations import answers, cases, operations
from minidl.lab.verify import techniques, using

LONG = "whole/", "two-outliers/1048577x1"  # cases that differ from others in their length alone
LANES = {"thread": 1, "warp": 32}  # of one kernel


class Noting(EmulatorRunner):
    """Runs nothing, and notes what it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        kernel.check(values, np.ndarray)
        self.kernels.append(kernel)


def launched(backend: Any, operation: str) -> dict[str, list[Kernel]]:
    """By technique, the kernels that the cases of an operation launch."""
    backend.run, backend.checks_targets = Noting(), False  # there are no answers to look at
    found = {}
    for technique in techniques(backend, operation):
        backend.run.kernels = []
        with using(backend, operation, technique):
            for name in cases(operation):
                if not name.startswith(LONG):
                    with contextlib.suppress(TechniqueError):  # a case for others
                        answers(backend, operation, name)
        found[technique] = backend.run.kernels
    return found


def own(kernels: list[Kernel], technique: str, all_of_them: tuple[str, ...]) -> bool:
    """Whether these are a technique's kernels, and no other's."""
    names = {kernel.name for kernel in kernels}
    if technique in LANES:
        return all(LANES[technique] in kernel.arguments for kernel in kernels if kernel.name.endswith("_rows"))
    persistent = any("_persistent_" in name for name in names)
    if technique == "persistent":
        return persistent  # beside others: a backward pass that wants no sums has nothing to keep
    if persistent or technique == "two_pass":
        return not persistent and bool(names)
    if technique == "separate":  # made of other operations
        return bool(names) and not any("_normalized_" in name for name in names)
    taken = {other for other in all_of_them if any(name.endswith(f"_{other}") for name in names)}
    return taken == {technique}


@pytest.fixture(scope="module")
def everything() -> dict[str, dict[str, list[Kernel]]]:
    return {operation: launched(EmulatorBackend(), operation) for operation in operations()}


def test_every_kernel_is_launched(everything: dict[str, dict[str, list[Kernel]]]) -> None:
    names = {kernel.name for found in everything.values() for kernels in found.values() for kernel in kernels}
    assert not set(factories()) - names


def test_every_technique_launches_its_own_kernels(everything: dict[str, dict[str, list[Kernel]]]) -> None:
    wrong = [
        (operation, technique)
        for operation, by_technique in everything.items()
        for technique, kernels in by_technique.items()
        if len(by_technique) > 1 and not own(kernels, technique, tuple(by_technique))
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("file", "old", "new", "operation"),
    [
        ("kernels/activation.py", "relu_backward_vector if vector else", "relu_backward_scalar if vector else",
         "relu_backward"),
        ("kernels/matmul/tiled.py", 'if technique == "plain":', "if True:", "linear_forward"),
        ("kernels/loss.py", "1 if technique == ", "32 if technique == ", "cross_entropy"),
        ("kernels/channels.py", "copy_columns_vector if vector", "copy_columns_vector if False", "concat"),
    ],
)  # fmt: skip
def test_a_technique_that_is_not_taken_is_found(file: str, old: str, new: str, operation: str, tmp_path: Path) -> None:
    with emulator_with({file: altered(file, old, new)}, tmp_path) as backend:
        found = launched(backend, operation)
    assert not all(own(kernels, technique, tuple(found)) for technique, kernels in found.items())
