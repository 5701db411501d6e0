"""`minidl train` as a process: signals, death, a terminal."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minidl.training import TrainConfig, begin, checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor pseudo-terminals")
EPOCHS = 12  # the first ones are waited for; while the others are trained, something happens
PATIENCE = 120  # seconds; the first run on a machine compiles


@pytest.fixture
def start(tmp_path, stripes_file):
    """Starts `minidl train` in tmp_path, from this checkout; it is killed at the end if it still runs."""
    processes = []
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
    # Warnings are errors: a warning would be a line that the user has no use for.
    environment |= {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "PYTHONWARNINGS": "error"}

    def popen(*arguments: str, **pipes) -> subprocess.Popen:
        options = ["--data", stripes_file, "--batch-size", "16", "--epochs", str(EPOCHS)]
        command = [sys.executable, "-m", "minidl", "train", *options, *arguments]
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
        return processes[-1]

    yield popen
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, stripes_file) -> Path:
    """The run that never stopped."""

    class Silent:
        note = start = step = epoch = staticmethod(lambda *_: None)

    config = TrainConfig(data=stripes_file, batch_size=16, epochs=EPOCHS)
    session = begin(config, tmp_path_factory.mktemp("whole"), Silent())
    session.train(Silent())
    return session.run.path


def when_it_trains(process: subprocess.Popen, run: Path, act: Callable[[], None]) -> tuple[str, str]:
    """Wait for two epochs, then `act`; what the process printed."""
    limit = time.monotonic() + PATIENCE
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no epoch was finished"
        time.sleep(0.001)
    act()
    return process.communicate(timeout=PATIENCE)


def bits(run: Path) -> dict[str, tuple]:
    tensors = checkpoint.load(run / "checkpoints" / checkpoint.LAST).tensors
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}


def history(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@POSIX
def test_ctrl_c_saves_and_the_printed_command_goes_on(start, minidl, whole, tmp_path, monkeypatch) -> None:
    run = tmp_path / "my runs" / "stripes-small-cnn-001"
    process = start("--out", "my runs", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = when_it_trains(process, run, lambda: process.send_signal(signal.SIGINT))
    assert process.returncode == 130
    summary = json.loads((run / "summary.json").read_text())
    assert not summary["complete"]
    assert f" after {summary['steps']} steps ({summary['epochs']} of {EPOCHS} epochs) in " in stdout.splitlines()[-1]

    (line,) = stderr.splitlines()
    assert line.startswith("stopped; go on with: python -m minidl train --resume ")
    arguments = shlex.split(line)[line.split().index("train") :]
    monkeypatch.chdir(tmp_path)
    result = minidl(*arguments)
    assert result.exit_code == 0, result.output
    assert bits(run) == bits(whole)
    assert history(run) == history(whole)


@POSIX
def test_stopped_with_json_it_still_reports(start, tmp_path) -> None:
    process = start("--json", "--quiet", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "stripes-small-cnn-001"
    stdout, stderr = when_it_trains(process, run, lambda: process.send_signal(signal.SIGTERM))
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(stdout)["complete"] is False
    (line,) = stderr.splitlines()
    assert line.startswith("stopped; go on with: ")


def test_killed_after_an_epoch_it_goes_on_to_the_same_bits(start, minidl, whole, tmp_path, monkeypatch) -> None:
    process = start(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = tmp_path / "runs" / "stripes-small-cnn-001"
    when_it_trains(process, run, process.kill)
    assert len(history(run)) < EPOCHS
    monkeypatch.chdir(tmp_path)
    result = minidl("train", "--resume", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert bits(run) == bits(whole)
    assert history(run) == history(whole)
    assert not list(run.rglob("*.tmp"))


def read_terminal(parent: int) -> bytes:
    """What a program wrote to the pseudo-terminal, up to its end."""
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            part = b""
        if not part:
            os.close(parent)
            return shown
        shown += part


@POSIX
def test_a_terminal_gets_a_bar_and_whole_rows(start, whole, tmp_path) -> None:
    import pty

    parent, child = pty.openpty()
    process = start(stdin=child, stdout=child, stderr=child)
    os.close(child)
    shown = read_terminal(parent).decode()
    assert process.wait(timeout=PATIENCE) == 0
    assert "━" in shown
    assert f"epoch {EPOCHS}/{EPOCHS}, loss " in shown
    lines = shown.replace("\x1b[2K", "\n").replace("\r", "\n").splitlines()
    for row in history(whole):
        ends = f"{row['epoch']:>5}  {row['train_loss']:>10.4f}", f"{row['lr']:>13.6f}"
        assert any(line.startswith(ends[0]) and line.endswith(ends[1]) for line in lines), row["epoch"]
    # Whether somebody watches or not, the same is computed.
    assert bits(tmp_path / "runs" / "stripes-small-cnn-001") == bits(whole)


@POSIX
def test_with_json_in_a_file_the_bar_is_on_the_terminal(start, tmp_path) -> None:
    import pty

    parent, child = pty.openpty()
    with (tmp_path / "out.json").open("wb") as out:
        process = start("--json", stdin=child, stdout=out, stderr=child)
    os.close(child)
    shown = read_terminal(parent).decode()
    assert process.wait(timeout=PATIENCE) == 0
    assert json.loads((tmp_path / "out.json").read_text())["epochs"] == EPOCHS
    assert "━" in shown
    assert "data: stripes" in shown


def test_elsewhere_than_on_a_terminal_there_is_no_bar(minidl, stripes_file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = minidl("train", "--data", stripes_file, "--epochs", "2")
    assert "epoch" in result.output
    assert "━" not in result.output
    assert "\x1b" not in result.output
