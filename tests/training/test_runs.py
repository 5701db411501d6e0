"""Run folders: numbering, finding, metrics that survive a stop, and places that cannot be written."""

import csv
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

import minidl
from minidl.errors import ConfigError, DataError
from minidl.training.config import TrainConfig, write_config
from minidl.training.environment import commit, environment
from minidl.training.runs import RunFolder, latest


def make(parent: Path, name: str = "digits") -> RunFolder:
    """A run as training begins it."""
    run = RunFolder.create(parent, name)
    write_config(run.config, TrainConfig())
    return run


# Numbering


def test_numbers_go_up_and_leave_gaps_alone(tmp_path: Path) -> None:
    runs = tmp_path / "made" / "runs"
    assert make(runs).path == runs / "digits-001"
    assert make(runs).path == runs / "digits-002"
    assert make(runs, "digits-cnn").path == runs / "digits-cnn-001"
    assert (runs / "digits-002" / "checkpoints").is_dir()
    (runs / "digits-041").touch()  # a file takes a number too
    (runs / "digits-43").mkdir()  # two digits: not one of ours
    (runs / "digits-x-900").mkdir()
    assert make(runs).path == runs / "digits-042"


def test_more_than_999_runs(tmp_path: Path) -> None:
    (tmp_path / "digits-999").mkdir()
    assert make(tmp_path).path.name == "digits-1000"
    assert make(tmp_path).path.name == "digits-1001"


def test_a_name_with_pattern_characters_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "a+b-007").mkdir()
    (tmp_path / "aab-009").mkdir()
    assert RunFolder.create(tmp_path, "a+b").path.name == "a+b-008"


def test_runs_made_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    workers = 8
    barrier = Barrier(workers)

    def work(_: int) -> list[str]:
        barrier.wait()
        return [RunFolder.create(tmp_path, "digits").path.name for _ in range(10)]

    with ThreadPoolExecutor(workers) as pool:
        names = [name for made in pool.map(work, range(workers)) for name in made]
    assert sorted(names) == [f"digits-{number:03d}" for number in range(1, 10 * workers + 1)]


def test_a_number_taken_after_the_look_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    make(tmp_path)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # as another process would leave us: seeing nothing
    assert RunFolder.create(tmp_path, "digits").path.name == "digits-003"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a b", "a\n", "nul\0", "a:b"])
def test_names_that_cannot_be_part_of_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a run's name must be"):
        RunFolder.create(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "reason"),
    [("file", "it is a file"), ("file/runs", ""), ("nul\0", "null"), ("x" * 300, "")],
    ids=["file", "under-a-file", "nul", "too-long"],
)
def test_a_parent_that_cannot_be_written(tmp_path: Path, where: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        RunFolder.create(tmp_path / where, "digits")
    message = str(error.value)
    assert "cannot make a run folder there: " in message
    assert reason in message
    assert message.endswith("name another folder with --out DIR")
    assert message.isprintable()
    assert str(tmp_path) in message


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, which refuses new folders even to root")
def test_a_parent_that_the_system_refuses() -> None:
    with pytest.raises(ConfigError, match=r"^/proc/minidl: cannot make a run folder there: .*--out DIR$"):
        RunFolder.create("/proc/minidl", "digits")
    with pytest.raises(ConfigError, match=r"^/proc: cannot make a run folder there: .*--out DIR$"):
        RunFolder.create("/proc", "digits")


# Finding


def test_open_takes_the_folder_or_a_path_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "runs")
    (run.checkpoints / "last.safetensors").touch()
    for path in (run.path, run.checkpoints, run.config, run.checkpoints / "last.safetensors"):
        assert RunFolder.open(path).path == run.path
        assert RunFolder.open(str(path)).path == run.path
    monkeypatch.chdir(run.checkpoints)
    assert RunFolder.open("last.safetensors").path.samefile(run.path)
    assert RunFolder.open(".").path.samefile(run.path)


def test_open_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    run = make(tmp_path / "runs")
    with pytest.raises(ConfigError, match="gone: no such run"):
        RunFolder.open(tmp_path / "gone")
    with pytest.raises(ConfigError, match="no such run"):
        RunFolder.open(run.checkpoints / "gone.safetensors")
    with pytest.raises(ConfigError, match=r"is not a run folder .*; the newest run in it is .*digits-001$"):
        RunFolder.open(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"is not a run folder \(it has no config.toml and checkpoints\)$"):
        RunFolder.open(tmp_path)
    for path in ("nul\0", "x" * 300):
        with pytest.raises(ConfigError, match="no such run"):
            RunFolder.open(tmp_path / path)
    run.config.unlink()
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunFolder.open(run.path)


def test_latest_goes_by_the_time_of_the_configuration(tmp_path: Path) -> None:
    runs = [make(tmp_path, name) for name in ("b", "a", "a", "c")]
    for run, second in zip(runs, (100, 300, 300, 200), strict=True):
        os.utime(run.config, (second, second))
    (tmp_path / "notes").mkdir()
    (tmp_path / "config.toml").touch()
    RunFolder.create(tmp_path, "z")  # begun, not yet a run
    assert latest(tmp_path).path.name == "a-002"
    os.utime(runs[3].config, (301, 301))
    assert latest(tmp_path).path.name == "c-001"


def test_ties_go_by_number_not_by_spelling(tmp_path: Path) -> None:
    (tmp_path / "a-998").mkdir()
    runs = [make(tmp_path, name) for name in ("a", "a", "z")]
    for run in runs:
        os.utime(run.config, (100, 100))
    assert [run.path.name for run in runs] == ["a-999", "a-1000", "z-001"]
    assert latest(tmp_path).path.name == "a-1000"


def test_latest_of_nothing(tmp_path: Path) -> None:
    for parent in (tmp_path, tmp_path / "gone", tmp_path / "nul\0"):
        with pytest.raises(ConfigError, match="there is no run in this folder"):
            latest(parent)


# Metrics

ROWS = [{"epoch": e, "train_loss": 1 / (e + 2), "test_loss": 0.1 + 0.2, "lr": 10.0**-e} for e in range(1, 6)]


def table(run: RunFolder) -> list[dict[str, str]]:
    with run.metrics_csv.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_stand_in_both_files(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.read_metrics() == []
    for row in ROWS:
        run.append_metrics(row)
    assert run.read_metrics() == ROWS
    assert [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()] == ROWS
    assert [{k: float(v) for k, v in row.items()} for row in table(run)] == ROWS
    assert run.metrics_csv.read_bytes().startswith(b"epoch,train_loss,test_loss,lr\n1,0.333")


def test_numpy_numbers_and_what_is_not_finite(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.append_metrics({"epoch": np.int64(1), "a": np.float32(0.1), "b": math.inf, "c": None})
    run.append_metrics({"epoch": 2, "a": np.float64(0.1), "b": math.nan, "c": 1})
    first, second = run.read_metrics()
    assert first == {"epoch": 1, "a": float(np.float32(0.1)), "b": math.inf, "c": None}
    assert math.isnan(second["b"])
    assert [(row["b"], row["c"]) for row in table(run)] == [("inf", ""), ("nan", "1")]


def test_a_row_of_other_columns_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.append_metrics({"epoch": 1, "loss": 2.0})
    before = run.metrics.read_bytes(), run.metrics_csv.read_bytes()
    with pytest.raises(ValueError, match="columns"):
        RunFolder.open(run.path).append_metrics({"epoch": 2, "accuracy": 2.0})
    with pytest.raises(TypeError, match="epoch"):
        run.append_metrics({"loss": 1.0})
    assert (run.metrics.read_bytes(), run.metrics_csv.read_bytes()) == before


def test_a_resumed_run_leaves_the_files_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken = make(tmp_path), make(tmp_path)
    for row in ROWS:
        unbroken.append_metrics(row)
    for row in ROWS[:4]:
        broken.append_metrics(row)
    with broken.metrics.open("ab") as file:
        file.write(b'{"epoch": 5, "train')  # killed as it wrote
    resumed = RunFolder.open(broken.path)
    resumed.truncate_metrics(2)
    assert resumed.read_metrics() == ROWS[:2]
    for row in ROWS[2:]:
        resumed.append_metrics(row)
    assert broken.metrics.read_bytes() == unbroken.metrics.read_bytes()
    assert broken.metrics_csv.read_bytes() == unbroken.metrics_csv.read_bytes()


def test_the_table_is_made_anew_where_it_fell_behind(tmp_path: Path) -> None:
    run = make(tmp_path)
    for row in ROWS:
        run.append_metrics(row)
    whole = run.metrics_csv.read_bytes()
    run.metrics_csv.write_bytes(whole[:-9])  # killed between the two files
    run.truncate_metrics(99)
    assert run.metrics_csv.read_bytes() == whole


def test_truncating_to_nothing(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.truncate_metrics(0)
    run.append_metrics(ROWS[0])
    run.truncate_metrics(0)
    assert run.read_metrics() == []
    run.append_metrics({"epoch": 1, "other": 1})  # the columns are free again
    assert run.read_metrics() == [{"epoch": 1, "other": 1}]


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"epoch": "1"}', "\xff", ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    run = make(tmp_path)
    run.append_metrics(ROWS[0])
    with run.metrics.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"metrics.jsonl: line 2 is not a row of metrics"):
        run.read_metrics()


def test_a_metrics_file_that_cannot_be_written(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.metrics.mkdir()
    with pytest.raises(ConfigError, match=r"metrics.jsonl: cannot be written: "):
        run.append_metrics(ROWS[0])
    with pytest.raises(DataError, match=r"metrics.jsonl: cannot be read: "):
        run.read_metrics()


# Summary and environment


def test_the_summary_goes_round(tmp_path: Path) -> None:
    run = make(tmp_path)
    summary = {"test_accuracy": np.float64(0.1) + 0.2, "steps": np.int64(3), "device": "cpu", "loss": math.inf}
    run.write_summary({"old": 1})
    run.write_summary(summary)
    assert json.loads(run.summary.read_text(encoding="utf-8")) == summary
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "config.toml", "summary.json"]
    run.summary.unlink()
    run.summary.mkdir()
    with pytest.raises(ConfigError, match=r"summary.json: cannot be written: "):
        run.write_summary(summary)


def test_the_environment_says_what_ran(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_environment()
    found = json.loads(run.environment.read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(environment()))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["minidl"] == minidl.__version__
    assert {"numba", "safetensors"} <= found["versions"].keys()
    assert 1 <= found["cores_allowed"] <= found["cores"]
    assert {"platform", "cpu", "blas", "commit"} <= found.keys()


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert commit(tmp_path) is None
    try:
        git("init", "--quiet")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    assert commit(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1", encoding="utf-8")
    git("add", "file")
    git("commit", "--quiet", "--no-verify", "--message", "one")
    git("tag", "--no-sign", "v1")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("2", encoding="utf-8")
    assert commit(tmp_path) == f"{head}-dirty"
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None  # inside somebody's repository, not a checkout of its own
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as hooks set it
    assert commit(tmp_path) == f"{head}-dirty"
