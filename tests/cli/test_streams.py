"""A standard output that is full, closed or gone: one line or none, and never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
NO_SPACE = "Error: standard output cannot be written: No space left on device\n"


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def run(request, tmp_path):
    """Runs `minidl` as a process in tmp_path."""
    environment = {name: value for name, value in os.environ.items() if name != "MINIDL_DATA"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": request.param}

    def start(*arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "minidl", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, **options)

    return start


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--help", 1, NO_SPACE),
        ("data list", 1, NO_SPACE),
        ("train --max-steps 1", 1, NO_SPACE),
        ("eval", 2, "Error: runs: there is no run in this folder; train first: python -m minidl train\n"),
    ],
)
def test_a_full_disk_is_told_in_one_line(run, arguments, code, said) -> None:
    with FULL.open("w") as full:
        done = run(*arguments.split(), stdout=full)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows starts no process without these streams")
@pytest.mark.parametrize("arguments", ["data list", "train --max-steps 1"])
@pytest.mark.parametrize("closed", [(1,), (1, 2)])
def test_without_stdout_all_else_is_done(run, arguments, closed) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = run(*arguments.split(), preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="of a pipe that POSIX closes")
def test_a_reader_that_left_gets_no_complaint(run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("data", "list", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
