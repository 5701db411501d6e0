"""The verifier is verified: bugs put into the source of the real kernels, which `verify` must find on the emulator."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_bugs import BUGS, Bug
from mutants import SOURCES, altered, emulator_with
from numpy.testing import assert_array_equal

import kernels.activation
import kernels.launch
from kernels.emulator import KernelFault
from minidl.lab.operations import Row
from minidl.lab.verify import plan, verify

NAMES = {bug.name: bug for bug in BUGS}
FAULTS = {kind.__name__ for kind in KernelFault.__subclasses__()}


def source_of(bug: Bug) -> dict[str, str]:
    return {bug.file: altered(bug.file, bug.old, bug.new, bug.times)}


def rows_of(backend: Any, bug: Bug) -> list[Row]:
    tasks = [task for task in plan(backend, bug.operation, bug.cases) if task.technique == bug.technique]
    assert tasks
    return verify(backend, tasks, processes=1)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    with emulator_with(source_of(bug), tmp_path) as backend:
        failed = [row for row in rows_of(backend, bug) if not row.passed]
        faults = {type(fault).__name__ for fault in backend.run.faults}
    assert failed, f"{bug.name} survives ({bug.story})"
    if bug.caught in FAULTS:
        assert faults == {bug.caught}
    else:
        assert not faults
        assert bug.caught in {row.output for row in failed}
        assert all(row.ratio > 1 for row in failed)


def test_without_a_bug_all_of_it_passes(tmp_path: Path) -> None:
    checks = {(bug.operation, bug.technique, bug.cases): bug for bug in BUGS}
    with emulator_with({}, tmp_path) as backend:
        failed = [str(row) for bug in checks.values() for row in rows_of(backend, bug) if not row.passed]
        assert not backend.run.faults
    assert not failed


@pytest.mark.parametrize(
    ("name", "kernel", "line"),
    [
        ("barrier-in-a-branch", "sum_columns_of_chunks(32, uint32, float32)", "cuda.syncthreads()"),
        ("barrier-dropped-in-a-tree", "batchnorm_sum_shifted_scalar(17, uint32, float32)", "if row < stride and row"),
        ("race-between-blocks", "sum_columns_of_chunks(16, uint32, float32)", "sums[index(column)] = partial[thread]"),
        ("unmasked-load", "add_scalar(uint32, float32)", "store(out, i, load(a, i) + load(b, i))"),
        ("unmasked-load-of-a-vector", "relu_forward_vector(uint32, float32)", "load_wide(x, first, values)"),
        ("tail-skipped", "relu_backward_vector(uint32, float32)", "def relu_backward(dy: stored"),
        ("float64-literal", "global_avg_pool2d_forward_serial(uint32, 5, 3, float32)", "y[i] = total / pixels"),
    ],
)
def test_a_fault_names_kernel_and_line(name: str, kernel: str, line: str, tmp_path: Path) -> None:
    bug = NAMES[name]
    with emulator_with(source_of(bug), tmp_path) as backend:
        row = next(row for row in rows_of(backend, bug) if not row.passed)
        fault = backend.run.faults[0]
    assert fault.kernel == kernel
    assert Path(fault.file).match(bug.file)
    lines = (tmp_path / bug.file).read_text(encoding="utf-8").splitlines()
    assert lines[fault.line - 1].strip().startswith(line)
    assert row.fault.startswith(f"{kernel}, line {fault.line}")
    assert lines[fault.line - 1].strip() in row.fault
    if bug.caught in ("OutOfBounds", "DataRace", "DivergentBarrier"):
        assert fault.block is not None
        assert f"block {fault.block}, thread {fault.thread}" in row.fault


def test_an_access_out_of_bounds_names_array_and_thread(tmp_path: Path) -> None:
    bug = NAMES["unmasked-load"]
    with emulator_with(source_of(bug), tmp_path) as backend:
        rows_of(backend, bug)
        fault = backend.run.faults[0]
    assert (fault.array, fault.block, fault.thread) == ("a", (0, 0, 0), (5, 0, 0))
    assert "index 5 is outside a of 5 elements" in str(fault)


EDGE = 2**16
NARROW = "uint32 if size <= 2**31 else int64", "uint32"
WIDER_THAN_IT_IS = "uint32 if size <= 2**31 else int64", "uint32 if size <= 2**33 else int64"


@pytest.mark.parametrize("change", [None, NARROW, WIDER_THAN_IT_IS])
def test_an_index_of_32_bits_is_caught_beyond_them(change: tuple[str, str] | None, tmp_path: Path) -> None:
    """R1: pytorch PR181600, #24309. 2^32 + 2^16 elements, in a sparse file, of which four are looked at."""
    try:
        x = np.asarray(np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, EDGE + 1, EDGE, 1)))
    except OSError as error:
        pytest.skip(f"no sparse file of 16 GiB here: {error}")
    right = np.array([[[[1], [2]], [[3], [4]]]], np.float32)
    x[0, ::EDGE, :: EDGE - 1] = right[0]
    w, y = np.ones((1, 1, 1, 1), np.float32), np.empty_like(right)
    sources = {} if change is None else {"kernels/device.py": altered("kernels/device.py", *change)}
    with emulator_with(sources, tmp_path) as backend:
        backend.conv2d_forward(x, w, None, y, (EDGE, EDGE - 1), (0, 0))
    if change is None:
        assert_array_equal(y, right)
    else:
        assert_array_equal(y, right[:, [0, 0]])  # 2^32 has become 0


def test_each_bug_has_a_story_and_a_name_of_its_own() -> None:
    assert len(NAMES) == len(BUGS)
    for bug in BUGS:
        assert "#" in bug.story or "PR" in bug.story or bug.story.startswith("R"), bug.name
        assert bug.old != bug.new


def test_a_bug_that_no_longer_fits_the_source_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the bug is void: kernels/activation\.py has 0 times, expected 1, the text"):
        altered("kernels/activation.py", "no such text", "")
    with pytest.raises(ValueError, match="has 4 times, expected 1"):
        altered("kernels/activation.py", "    return Launch(", "")


def test_the_altered_kernels_are_gone_afterwards(tmp_path: Path) -> None:
    before, factories = dict(sys.modules), dict(kernels.launch.factories())
    bug = NAMES["relu-swallows-nan"]
    with emulator_with(source_of(bug), tmp_path):
        altered_file = sys.modules["kernels.device"].__file__
        assert altered_file == str(tmp_path / bug.file)
        assert sys.modules["kernels.activation"].positive.py_func.__code__.co_filename == altered_file
    assert all(sys.modules[name] is module for name, module in before.items())
    assert dict(kernels.launch.factories()) == factories
    assert sys.modules["kernels.activation"] is kernels.activation
    assert Path(kernels.activation.positive.py_func.__code__.co_filename) == SOURCES / "kernels/device.py"
