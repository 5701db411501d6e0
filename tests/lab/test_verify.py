"""Verify gathers what the checks say, over operations, techniques and processes, and loses nothing of it."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kernels.chip import HOPPER
from kernels.errors import TechniqueError
from minidl.backends.cpu import CpuBackend
from minidl.backends.emulated import EmulatorBackend
from minidl.errors import ConfigError, ProcessDiedError
from minidl.lab.operations import cases, operations
from minidl.lab.verify import CHUNK, DEFAULT, Refusal, as_json, plan, summaries, techniques, using, verify

ROOT = Path(__file__).resolve().parents[2]


class TwoTechniques(CpuBackend):
    """Has a right technique for ReLU and a wrong one."""

    chosen: str | None = None

    def techniques(self, operation: str) -> tuple[str, ...]:
        return ("right", "wrong") if operation == "relu_forward" else ()

    def use(self, operation: str, technique: str | None) -> None:
        assert operation == "relu_forward"
        self.chosen = technique

    def relu_forward(self, x, y) -> None:
        super().relu_forward(x, y)
        if self.chosen == "wrong":
            y[...] += np.float32(1)


def test_the_plan_has_every_case_of_every_operation_once_for_each_technique() -> None:
    cpu = CpuBackend(1)
    planned = [(task.operation, task.technique, case) for task in plan(cpu) for case in task.cases]
    assert planned == [
        (operation, technique, case)
        for operation in operations()
        for technique in techniques(cpu, operation)
        for case in cases(operation, cpu)
    ]
    assert techniques(cpu, "conv2d_forward") == ("direct", "winograd")
    assert techniques(cpu, "relu_forward") == ("default",)


def test_a_pattern_is_part_of_a_name_or_matches_it() -> None:
    part = [case for task in plan(CpuBackend(1), "relu_forward", "denormal") for case in task.cases]
    assert part
    assert all("denormal" in case for case in part)
    whole = [case for task in plan(CpuBackend(1), "relu_forward", "ordinary/1x?") for case in task.cases]
    assert whole == ["ordinary/1x1", "ordinary/1x3"]


@pytest.mark.parametrize(
    ("operation", "pattern", "message"),
    [
        ("relu_forwrd", None, "no operation 'relu_forwrd'; did you mean relu_forward"),
        ("xyz", None, "no operation 'xyz'; known operations: conv2d_forward"),
        ("relu_forward", "nothing-like-it", "relu_forward has no case"),
        (None, "nothing-like-it", "no operation has a case"),
    ],
)
def test_what_is_not_there_is_named(operation, pattern, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(CpuBackend(1), operation, pattern)


def test_every_technique_is_verified_and_the_wrong_one_fails() -> None:
    backend = TwoTechniques(1)
    assert techniques(backend, "add") == (DEFAULT,)
    tasks = [task for task in plan(backend, pattern="1x3") if task.operation in ("relu_forward", "add")]
    found = {(s.operation, s.technique): s for s in summaries(verify(backend, tasks, processes=1))}
    assert {key for key, summary in found.items() if not summary.passed} == {("relu_forward", "wrong")}
    assert set(found) == {("relu_forward", "right"), ("relu_forward", "wrong"), ("add", DEFAULT)}
    assert found["relu_forward", "wrong"].worst.ratio == np.inf
    assert backend.chosen is None


class Picky(CpuBackend):
    """Has a technique for ReLU that takes rows of three alone."""

    chosen: str | None = None
    takes = (3,)
    own_choices = 0

    def techniques(self, operation: str) -> tuple[str, ...]:
        return ("plain", "picky") if operation == "relu_forward" else ()

    def use(self, operation: str, technique: str | None) -> None:
        self.chosen = technique

    def relu_forward(self, x, y) -> None:
        if self.chosen == "picky" and x.shape[-1] not in self.takes:
            raise TechniqueError("relu_forward", "picky", f"rows of {x.shape[-1]}", "plain")
        self.own_choices += self.chosen is None
        super().relu_forward(x, y)


def test_a_case_that_a_technique_does_not_take_is_neither_passed_nor_failed() -> None:
    backend, refused = Picky(1), []
    tasks = plan(backend, "relu_forward", "ordinary/1x?")
    rows = verify(backend, tasks, processes=1, refused=refused.append)
    assert refused == [Refusal("relu_forward", "picky", "cpu", "ordinary/1x1", "rows of 1")]
    assert [(row.variant, row.case) for row in rows] == [
        ("plain", "ordinary/1x1"), ("plain", "ordinary/1x3"), (DEFAULT, "ordinary/1x1"), ("picky", "ordinary/1x3"),
    ]  # fmt: skip
    assert backend.own_choices == 1  # what the fastest refuses, with the choice left to the operation
    found = {summary.technique: summary for summary in summaries(rows, refused)}
    assert {name: (one.cases, one.refused, one.passed) for name, one in found.items()} == {
        "plain": (2, 0, True), "picky": (1, 1, True), DEFAULT: (1, 0, True),
    }  # fmt: skip
    *answered, last = as_json(rows, refused)
    assert all(row["passed"] is True for row in answered)
    assert last == {
        "op": "relu_forward", "variant": "picky", "device": "cpu", "case": "ordinary/1x1", "passed": None,
        "refused": "rows of 1",
    }  # fmt: skip


def test_a_technique_that_takes_no_case_has_failed_unless_only_some_were_asked_for() -> None:
    backend, refused = Picky(1), []
    backend.takes = ()
    some = verify(backend, plan(backend, "relu_forward", "ordinary/1x?"), processes=1, refused=refused.append)
    assert all(row.passed for row in some)
    assert len(refused) == 2
    rows = verify(backend, plan(backend, "relu_forward"), processes=1)
    (failed,) = [row for row in rows if not row.passed]
    number = len(cases("relu_forward", backend))
    assert failed.fault.startswith(f"technique 'picky' takes none of the {number} cases: rows of ")
    (summary,) = [one for one in summaries(rows) if not one.passed]
    assert (summary.technique, summary.cases) == ("picky", 0)


def test_a_technique_of_other_gpus_is_not_verified() -> None:
    """wgmma is an instruction of Hopper: elsewhere it takes no case, which is no failure."""
    backend = EmulatorBackend()
    assert techniques(backend, "conv2d_forward")[-1] == "wgmma"
    for capability, last in (((9, 0), "wgmma"), ((8, 0), "tensor_core"), ((12, 0), "tensor_core")):
        backend.run.chip = HOPPER._replace(capability=capability)
        assert techniques(backend, "conv2d_forward")[-1] == last


def test_processes_bring_back_what_was_refused() -> None:
    """And on the real device: vectors refuse what is not aligned, and the operation then takes the other."""
    backend = EmulatorBackend()
    refused: list[Refusal] = []
    tasks = plan(backend, "relu_forward", "/offset") + plan(backend, "relu_forward", "ordinary/1x?")
    rows = verify(backend, tasks, processes=2, refused=refused.append)
    assert {(one.technique, one.why) for one in refused} == {("vector", "x and y start at no multiple of 16 bytes")}
    assert {row.variant for row in rows} == {"scalar", "vector", DEFAULT}
    assert all(row.passed for row in rows)


def test_the_choice_that_is_left_to_an_operation_is_exact_float32() -> None:
    backend = EmulatorBackend(precision="tf32")
    with using(backend, "conv2d_forward", DEFAULT):
        assert backend.precision == "fp32"
    with using(backend, "conv2d_forward", "direct"):
        assert backend.precision == "tf32"  # what has a name has its precision
    assert backend.precision == "tf32"


def test_a_technique_is_given_up_again_after_an_error() -> None:
    backend = TwoTechniques(1)
    with pytest.raises(ZeroDivisionError), using(backend, "relu_forward", "wrong"):
        raise ZeroDivisionError
    assert backend.chosen is None


def test_processes_find_what_one_finds_in_the_same_order() -> None:
    backend, done = CpuBackend(1), []
    tasks = plan(backend, "max_pool2d_backward")
    assert len(tasks) > 1
    alone, together = verify(backend, tasks, seed=3, processes=1), verify(backend, tasks, seed=3, done=done.append)
    assert [str(row) for row in together] == [str(row) for row in alone]
    assert sorted(done) == sorted(tasks)
    assert max(len(task.cases) for task in tasks) == CHUNK


def test_rows_for_a_file_have_the_fields_and_only_what_json_knows() -> None:
    backend = TwoTechniques(1)
    rows = as_json(verify(backend, plan(backend, "relu_forward", "inf"), processes=1))
    for row in json.loads(json.dumps(rows, allow_nan=False)):
        assert {"op", "variant", "device", "case", "error", "bound", "ratio", "passed"} <= set(row)
    assert {row["variant"] for row in rows} == {"right", "wrong"}


def test_a_killed_process_is_told_in_one_line_and_none_is_left() -> None:
    tasks = plan(CpuBackend(1), "conv2d_forward")

    def kill(task) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ProcessDiedError, match="a process that verified was killed"):
        verify(CpuBackend(1), tasks, processes=2, done=kill)
    assert no_children_within(seconds=10)


def test_ctrl_c_ends_the_processes_at_once() -> None:
    def interrupt(task) -> None:
        raise KeyboardInterrupt

    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        verify(CpuBackend(1), plan(CpuBackend(1)), processes=2, done=interrupt)
    assert time.perf_counter() - began < 30  # all of it takes longer
    assert no_children_within(seconds=10)


def no_children_within(seconds: float) -> bool:
    deadline = time.perf_counter() + seconds
    while multiprocessing.active_children() and time.perf_counter() < deadline:
        time.sleep(0.1)
    return not multiprocessing.active_children()


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("ps"), reason="asks Linux's ps")
def test_processes_end_with_the_one_that_started_them() -> None:
    program = [sys.executable, "-m", "minidl", "verify", "--device", "cpu"]
    parent = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.perf_counter() + 60
    while not (children := children_of(parent.pid)) and time.perf_counter() < deadline:
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    while any(is_running(child) for child in children) and time.perf_counter() < deadline:
        time.sleep(0.2)
    assert children
    assert not [child for child in children if is_running(child)]


def children_of(parent: int) -> list[int]:
    """Processes that compute; the resource tracker is not one."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in done.stdout.splitlines() if "spawn_main" in line]


def is_running(process: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return done.stdout.strip() not in ("", "Z")
