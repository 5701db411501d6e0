"""The recording script does what it says, as far as a machine without a GPU can show."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minidl.backends import get_backend
from minidl.lab.bench.clocks import CpuClock, Rates
from minidl.lab.bench.shapes import shape

ROOT = Path(__file__).resolve().parents[2]


def record(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "record_gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ))


def test_parts_that_need_no_gpu_pass_on_the_emulator(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    done = record("--device", "emulator", "--case", "ordinary/5x3", "--into", file, "verify", "same-bits", "emulator")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["part"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    assert list(rows) == ["verify", "same-bits", "emulator"]
    assert all(row["passed"] and row["environment"]["versions"]["numba"] and row["date"] for row in rows.values())
    assert rows["verify"]["rows"] > 10
    assert {entry["failed"] for entry in rows["verify"]["operations"]} == {0}
    assert rows["same-bits"]["runs"] == 20
    assert rows["same-bits"]["cases"] > 0
    assert rows["emulator"]["equal"] == rows["emulator"]["answers"] > 0


def test_a_part_that_cannot_be_had_is_recorded_as_failed(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    done = record("--device", "cpu", "--into", file, "graph")
    assert done.returncode == 1
    assert done.stderr.strip() == "failed: graph"
    (row,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert not row["passed"]
    assert row["failures"]


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    try:
        import cupy  # noqa: F401
    except ImportError:
        done = record("verify")
        assert done.returncode == 1
        assert "device cuda cannot be used" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        pytest.skip("CuPy is here, and perhaps a GPU")


def test_what_is_timed_goes_to_its_own_file(tmp_path, monkeypatch) -> None:
    pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[oracle]"')
    specification = importlib.util.spec_from_file_location("record_gpu", ROOT / "scripts" / "record_gpu.py")
    record_gpu = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(record_gpu)
    one = record_gpu.bench.Task("relu_forward", shape("relu", n=1, h=2, w=2, c=4))
    monkeypatch.setattr(record_gpu.bench, "plan", lambda device, **names: [one])
    monkeypatch.setattr(record_gpu.bench, "chosen_variants", lambda names: ("eager",))
    monkeypatch.setattr(CpuClock, "rates", lambda self, precision: Rates(1e9, 1e9, "a guess"))
    found = record_gpu.record_bench(get_backend("cpu"), None)
    assert found["timed"] == 1  # once, though it is in each list
    assert found["late"] == []
    assert {row["kind"] for row in found["bench"]} == {"operation", "accuracy"}
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(record_gpu, "RESULTS", tmp_path / "gpu.jsonl")
    monkeypatch.setattr(record_gpu.bench, "record", lambda rows: timed.extend(rows))
    timed: list[dict[str, object]] = []
    record_gpu.take([{"part": "bench", **found}])
    (row,) = map(json.loads, (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines())
    assert "bench" not in row
    assert row["timed"] == 1
    assert len(timed) == len(found["bench"])
