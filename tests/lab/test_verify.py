"""Verify gathers what the checks say, over operations, techniques and processes, and loses nothing of it."""

import json

import numpy as np
import pytest

from minidl.backends.cpu import CpuBackend
from minidl.errors import ConfigError
from minidl.lab.operations import cases, operations
from minidl.lab.verify import CHUNK, DEFAULT, as_json, plan, summaries, techniques, using, verify


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


def test_the_plan_has_every_case_of_every_operation_once() -> None:
    planned = [(task.operation, case) for task in plan(CpuBackend(1)) for case in task.cases]
    assert planned == [(operation, case) for operation in operations() for case in cases(operation)]


def test_a_pattern_is_part_of_a_name_or_matches_it() -> None:
    part = [case for task in plan(CpuBackend(1), "relu_forward", "denormal") for case in task.cases]
    assert part
    assert all("denormal" in case for case in part)
    whole = [case for task in plan(CpuBackend(1), "relu_forward", "ordinary/1x?") for case in task.cases]
    assert whole == ["ordinary/1x1", "ordinary/1x3"]


@pytest.mark.parametrize(
    ("operation", "pattern", "message"),
    [
        ("relu", None, "no operation 'relu'; known operations: conv2d_forward"),
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
