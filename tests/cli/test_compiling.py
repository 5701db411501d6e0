"""What `train` and `doctor` say of compiling, and that the one compiles for the other."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest

from minidl.backends import compilation
from minidl.backends.cpu import CpuBackend, cache
from minidl.cli import checks
from minidl.cli.checks import PASS, WARN
from minidl.cli.console import ConsoleReporter
from minidl.training import TrainConfig, begin, trainer

REPOSITORY = Path(__file__).resolve().parents[2]
COMPILED = r"compiled for this processor in \d+\.\d s"


@pytest.fixture
def told(nothing_is_said_of_compiling, monkeypatch):
    """A fresh record of what is compiled, for all who look at it; the first batch of images has to be compiled."""
    record = nothing_is_said_of_compiling
    monkeypatch.setattr(trainer, "COMPILATION", record)
    gather = CpuBackend.gather_images

    def gather_images(backend, *arguments) -> None:
        if not record.functions:
            record.begin()
            time.sleep(1)
            record.end()
        gather(backend, *arguments)

    monkeypatch.setattr(CpuBackend, "gather_images", gather_images)
    return record


@pytest.fixture
def train(minidl, stripes_file, tmp_path):
    """The lines of `minidl train`, from the table's head on and before it."""

    def run(*arguments: str) -> tuple[list[str], list[str]]:
        options = "--data", stripes_file, "--epochs", 1, "--batch-size", 16, "--device", "cpu", "--out", tmp_path
        result = minidl("train", *options, *arguments)
        assert result.exit_code == 0, result.output
        lines = (result.stdout or result.stderr).splitlines()
        head = next((i for i, line in enumerate(lines) if line.startswith("epoch")), 0)
        return lines[:head], lines[head:]

    return run


@pytest.fixture
def nowhere(monkeypatch) -> None:
    """No folder can be written to."""

    def refuse(*_) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(cache.FunctionCache, "__init__", refuse)


# train


def test_a_run_says_that_it_compiles_and_how_long_that_took(train, told) -> None:
    _, (_, begins, ends, row, _) = train()
    assert begins == "compiling for this processor, once"
    assert re.fullmatch(rf"{COMPILED}; kept for the next run", ends)
    assert row.split()[0] == "1"
    _, lines = train()  # nothing is left to compile
    assert len(lines) == 3


def test_seconds_of_compiling_are_none_of_a_step_s(train, told) -> None:
    _, (*_, row, last) = train()
    seconds = float(re.search(r" in (\d+\.\d) s", last)[1])
    assert seconds >= 1  # they are part of the whole
    images_per_second = float(row.split()[5].replace(",", ""))
    assert 90 / images_per_second < seconds - 0.9


def test_quiet_says_nothing_of_it(minidl, stripes_file, told, tmp_path) -> None:
    options = "--data", stripes_file, "--batch-size", 16, "--max-steps", 1, "--device", "cpu", "--out", tmp_path
    assert minidl("train", "--quiet", *options).output == ""
    assert told.functions == 1


def test_a_terminal_s_progress_line_says_it(told, stripes_file, tmp_path, monkeypatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with ConsoleReporter() as reporter:
        session = begin(TrainConfig(data=stripes_file, batch_size=16, device="cpu"), tmp_path, reporter)
        reporter.start(session)
        assert reporter._bar is not None
        (task,) = reporter._bar.tasks
        told.begin()
        assert task.description == "compiling for this processor, once"
        told.end()
        reporter.step(session)
        assert task.description.startswith("epoch 1/")
    session._lock.release()
    assert re.search(f"{COMPILED}; kept for the next run", terminal.getvalue())


def test_without_a_cache_it_says_so_and_goes_on(train, told, nowhere) -> None:
    before, (_, begins, ends, *_) = train()
    assert [line for line in before if line.startswith("compiled code")] == [
        "compiled code: no folder can be written to: each start compiles anew, some seconds; set NUMBA_CACHE_DIR to a "
        "folder that can be written to"
    ]
    assert begins == "compiling for this processor"
    assert re.fullmatch(COMPILED, ends)


def test_a_cache_folder_that_cannot_be_written_to_is_named(train, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    before, _ = train()
    (line,) = (line for line in before if line.startswith("compiled code"))
    assert f", as NUMBA_CACHE_DIR ({tmp_path / 'file'}) cannot be written to; set NUMBA_CACHE_DIR to a folder" in line


def test_what_could_not_be_kept_is_said(train, told) -> None:
    told.problem = "/cache: No space left on device"
    _, (_, _, ends, *_) = train()
    assert ends.endswith("; not all of it is kept for the next run: /cache: No space left on device")


# doctor


@pytest.fixture
def compiles(monkeypatch):
    """Makes the check of the CPU backend compile so many functions."""
    record = compilation.Compilation()
    monkeypatch.setattr(compilation, "COMPILATION", record)

    def install(functions: int) -> compilation.Compilation:
        def losses(device: str) -> tuple[float, float]:
            for _ in range(functions if device == "cpu" else 0):
                record.begin()
                record.end()
            return 2.5, 1.5

        monkeypatch.setattr(checks, "_losses_around_a_step", losses)
        return record

    return install


def test_doctor_says_how_much_it_compiled_and_where_that_is(compiles) -> None:
    compiles(2)
    finding = checks.cpu_backend()
    assert finding.status == PASS
    assert re.search(r"; compiled 2 functions in 0\.0 s, kept in ", finding.found)
    assert finding.found.endswith(str(cache.kept().folder))
    compiles(0)
    assert checks.cpu_backend().found.endswith("; nothing had to be compiled")


def test_doctor_says_what_is_not_kept(compiles, nowhere) -> None:
    compiles(1)
    finding = checks.cpu_backend()
    assert (finding.status, checks.numba_cache().status) == (PASS, WARN)
    assert re.search(r"; compiled 1 function in 0\.0 s, not kept$", finding.found)


def test_doctor_warns_of_a_full_disk(compiles) -> None:
    compiles(1).problem = "/cache: No space left on device"
    finding = checks.cpu_backend()
    assert finding.status == WARN
    assert finding.found.endswith("not all kept: /cache: No space left on device")
    assert finding.remedy


DOCTOR = "from minidl.cli import checks; print(checks.cpu_backend().found)"
TRAIN = "from minidl.cli import main; main(['train', '--max-steps', '3', '--device', 'cpu'])"


def test_what_doctor_compiles_is_all_that_train_needs(tmp_path) -> None:
    # The one test here that compiles what a first training does: some seconds.
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def lines(code: str) -> str:
        command = [sys.executable, "-c", code]
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": variables, "timeout": 300}
        return subprocess.run(command, check=True, **options).stdout

    found = lines(DOCTOR)
    assert int(re.search(r"compiled (\d+) functions", found)[1]) > 5, found
    assert f"kept in {tmp_path / 'cache'}" in found
    trained = lines(TRAIN)
    assert "after 3 steps" in trained
    assert "compil" not in trained
