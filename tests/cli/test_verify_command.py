"""`minidl verify`: a table, a file, and an exit code that says whether all is well."""

import json

import pytest

from kernels import activation
from kernels.emulator import OutOfBounds
from minidl import nn
from minidl.backends.cpu import CpuBackend


def test_a_table_with_a_line_for_each_operation(minidl) -> None:
    result = minidl("verify", "--device", "cpu", "--op", "add", "--case", "5x1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("device: cpu")
    assert lines[1].split("  ")[0] == "operation"
    assert lines[2].startswith("add")
    assert lines[-1] == "1 case, 0 failures"


def test_several_operations(minidl) -> None:
    result = minidl("verify", "--device", "cpu", "--op", "add", "--op", "relu_forward", "--case", "5x1")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()[2:4]] == ["add", "relu_forward"]


def test_a_kernel_that_breaks_a_rule_ends_in_a_line_wherever_it_runs(minidl, monkeypatch, tmp_path) -> None:
    def out_of_bounds(run, x, y, *, technique=None) -> None:
        raise OutOfBounds("index 5 is outside x", kernel="relu_forward_scalar", line=42, array="x")

    monkeypatch.setattr(activation, "relu_forward", out_of_bounds)
    monkeypatch.setattr(nn, "fuse", lambda model: [])
    trained = minidl(
        "train", "--device", "emulator", "--norm", "none", "--max-steps", 1, "--batch-size", 16, "--out", tmp_path
    )
    assert trained.exit_code == 1
    assert "Error: the emulator stopped a kernel: relu_forward_scalar, line 42" in trained.stderr
    assert "Traceback" not in trained.output
    beside = minidl("verify", "--device", "emulator", "--twin", 1)
    assert beside.exit_code == 1
    assert "step 1, relu1, relu_forward: x - relu_forward_scalar, line 42" in beside.stdout


def test_a_failure_is_named_and_the_exit_code_is_1(minidl, monkeypatch) -> None:
    right = CpuBackend.add
    monkeypatch.setattr(CpuBackend, "add", lambda self, a, b, out: right(self, a, a, out))
    result = minidl("verify", "--device", "cpu", "--op", "add", "--case", "16x16")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "add on cpu, case ordinary/16x16: out[" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 case, 1 failure"


def test_rows_as_json(minidl, tmp_path) -> None:
    arguments = "verify", "--device", "cpu", "--op", "relu_forward", "--case", "1x3", "--json"
    to_stdout = minidl(*arguments, "-")
    rows = json.loads(to_stdout.stdout)
    assert [(row["op"], row["variant"], row["device"], row["case"], row["passed"]) for row in rows] == [
        ("relu_forward", "default", "cpu", "ordinary/1x3", True)
    ]
    assert set(rows[0]) >= {"error", "bound", "ratio"}
    file = tmp_path / "rows.json"
    assert minidl(*arguments, file).exit_code == 0
    assert json.loads(file.read_text(encoding="utf-8")) == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--op", "relu"), "there is no operation 'relu'"),
        (("--case", "no-such-case"), "no operation has a case of that name"),
        (("--op", "add", "--case", "1x3", "--json", "/no/such/folder/x.json"), "cannot be written"),
        (("--twin", "3", "--op", "add"), "does not go with --op"),
        (("--seed", "-1"), "x>=0"),
    ],
)
def test_wrong_arguments_end_in_one_line(minidl, arguments, message) -> None:
    result = minidl("verify", "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_the_twin_says_each_step(minidl) -> None:
    result = minidl("verify", "--device", "cpu", "--twin", 2)
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["device", "step 1/2", "step 2/2"]
