"""`minidl bench`: tables, rows, a record; and one line for what cannot be."""

import importlib
import json
import sys

import pytest

from minidl.lab import bench
from minidl.lab.bench import records
from minidl.lab.bench.clocks import CpuClock, Rates

ONE = '{"op": "relu_forward", "n": 2, "h": 4, "w": 4, "c": 8}\n'
RATES = Rates(1e10, 1e11, "a guess")


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """The machine's rates are not measured."""
    monkeypatch.setattr(CpuClock, "rates", lambda self, precision: RATES)


@pytest.fixture
def shapes(tmp_path) -> str:
    path = tmp_path / "shapes.jsonl"
    path.write_text(ONE, "utf-8")
    return str(path)


def test_a_table_rows_and_a_record(minidl, shapes, tmp_path, monkeypatch) -> None:
    file = tmp_path / "bench.jsonl"
    monkeypatch.setattr(bench, "require_recordable", lambda: None)
    monkeypatch.setattr(bench, "record", lambda rows: records.record(rows, file))
    arguments = "bench", "--device", "cpu", "--shapes", shapes, "--repeat", 2, "--threads", 1
    result = minidl(*arguments, "--record", "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("device: cpu, 1 thread")
    assert "10.0 GB/s" in lines[1]
    assert lines[2].split()[:4] == ["operation", "shape", "technique", "ms"]
    assert lines[3].split()[:3] == ["relu_forward", "2x4x4x8", "default"]
    (row,) = records.read(file)
    assert row == json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))[0]
    assert row["environment"]["versions"]["numpy"]
    assert row["threads"] == 1
    assert row["bytes"] == 2 * 4 * 256


def test_rows_alone_on_stdout(minidl, shapes) -> None:
    result = minidl("bench", "--device", "cpu", "--shapes", shapes, "--repeat", 1, "--json", "-", "--explain")
    assert [row["operation"] for row in json.loads(result.stdout)] == ["relu_forward"]
    assert "there is one technique" in result.stderr


def test_beside_pytorch(minidl, shapes) -> None:
    pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[oracle]"')
    peers = "--peer", "torch-eager", "--peer", "torch-channels-last"
    result = minidl("bench", "--device", "cpu", "--shapes", shapes, "--repeat", 2, *peers)
    assert result.exit_code == 0, result.output
    head = result.stdout.splitlines()[2]
    assert head.split()[-2:] == ["eager", "channels-last"]


def test_a_training_step(minidl) -> None:
    result = minidl("bench", "--device", "cpu", "--model", "mlp-3", "--batch", 4, "--repeat", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[3].split()[:3] == ["mlp-3", "4", "launches"]


def test_a_problem_is_named_and_the_exit_code_is_1(minidl, shapes, monkeypatch) -> None:
    row = {"kind": "operation", "operation": "relu_forward", "shape": "1", "technique": "default", "problem": "differs"}
    monkeypatch.setattr(bench.Bench, "operation", lambda self, *task: row)
    result = minidl("bench", "--device", "cpu", "--shapes", shapes)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "PROBLEM relu_forward 1: differs"


def test_more_threads_than_cores_warn(minidl, shapes) -> None:
    result = minidl("bench", "--device", "cpu", "--shapes", shapes, "--repeat", 1, "--threads", 200)
    assert result.exit_code == 0, result.output
    assert "warning: --threads 200, and this process may use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--op", "batchnrom"), "did you mean 'batchnorm'?"),
        (("--model", "small-cn"), "did you mean 'small-cnn'?"),
        (("--device", "emulator"), "--device emulator tells no time"),
        (("--shapes", "/no/such/file"), "cannot be read"),
        (("--peer", "tensorflow"), "there is no such peer"),
        (("--device", "cpu", "--technique", "fastest"), "--technique fastest: no operation here has it"),
        (
            ("--device", "cpu", "--op", "relu", "--precision", "tf32"),
            "--precision tf32: device cpu computes in winograd, fp32 only",
        ),
        (("--json", "/no/such/folder/x.json"), "cannot be written"),
        (("--repeat", "0"), "x>=1"),
    ],
)
def test_wrong_arguments_end_in_one_line(minidl, arguments, message) -> None:
    result = minidl("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_without_pytorch_one_line_says_what_to_do(minidl, shapes, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError):
        importlib.import_module("torch")
    result = minidl("bench", "--device", "cpu", "--shapes", shapes, "--peer", "torch")
    assert result.exit_code == 2
    assert "--peer torch: " in result.stderr
    assert 'pip install -e ".[oracle]"' in result.stderr
    assert result.stderr.count("\n") == 1
