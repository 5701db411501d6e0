"""One process at a time writes to a run's folder."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from minidl.cli import main
from minidl.errors import ConfigError
from minidl.training import TrainConfig, begin, lock, resume
from minidl.training.lock import RunLock

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="of flock and fork, which Windows does not have")
REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
HOLD = (
    "from pathlib import Path; from minidl.training.lock import RunLock\n"
    "held = RunLock(Path('.')); print('held', flush=True); input()"
)


class Notes:
    def __init__(self) -> None:
        self.notes = []

    def note(self, text) -> None:
        self.notes.append(text)

    start = step = epoch = staticmethod(lambda *_: None)


@pytest.fixture
def config(stripes_file) -> TrainConfig:
    return TrainConfig(data=stripes_file, epochs=2, batch_size=16, max_steps=2)


@pytest.fixture
def elsewhere():
    """Takes the lock of a folder in another process, which it returns."""
    processes = []

    def hold(folder: Path) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=folder, env=ENVIRONMENT, **pipes)
        processes.append(process)
        assert process.stdout.readline().strip() == b"held"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def contents(run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != lock.NAME}


def test_a_run_that_another_process_trains_is_refused_and_left_alone(config, tmp_path, elsewhere) -> None:
    session = begin(config, tmp_path, Notes())
    session.train(Notes())
    half_written = session.run.checkpoints / ".last.safetensors.01234567.tmp"
    half_written.write_bytes(b"the other process is writing this")
    before = contents(session.run)
    process = elsewhere(session.run.path)
    result = CliRunner().invoke(main, ["train", "--resume", str(session.run.path)])
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr == (
        f"Error: {session.run.path}: another process is training this run; wait for its end or stop it, or start a new "
        "run\n"
    )
    with pytest.raises(ConfigError, match="another process"):
        session.train(Notes())
    assert contents(session.run) == before
    process.kill()  # the system releases what it held
    process.wait()
    resume(session.run.path, {"max_steps": 4}, Notes()).train(Notes())
    assert not half_written.exists()


def test_from_its_beginning_to_the_end_of_training_a_run_is_locked(config, tmp_path) -> None:
    session = begin(config, tmp_path, Notes())

    class Intruder(Notes):
        refused = 0

        def step(self, session) -> None:
            with pytest.raises(ConfigError, match="another process is training"):
                resume(session.run.path, {}, Notes())
            self.refused += 1

    intruder = Intruder()
    intruder.step(session)
    session.train(intruder)
    assert intruder.refused == 3
    assert not (session.run.path / lock.NAME).exists()
    again = resume(session.run.path, {"max_steps": 5}, Notes())
    intruder.step(again)
    again.train(intruder)
    assert intruder.refused == 7


def test_a_session_that_is_dropped_or_fails_holds_no_lock(config, tmp_path) -> None:
    session = begin(config, tmp_path, Notes())
    path = session.run.path
    del session
    gc.collect()
    with pytest.raises(ConfigError, match="--seed"):
        resume(path, {"seed": 5}, Notes())

    class KilledError(Exception):
        pass

    class Killer(Notes):
        def step(self, session) -> None:
            raise KilledError

    with pytest.raises(KilledError) as caught:
        resume(path, {}, Notes()).train(Killer())
    resume(path, {"max_steps": 1}, Notes()).train(Notes())
    assert caught.tb is not None  # it held the session all the while


@POSIX
def test_without_locks_in_the_file_system_it_says_so_and_goes_on(config, tmp_path, monkeypatch) -> None:
    def flock(*_) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    reporter = Notes()
    session = begin(config, tmp_path, reporter)
    assert (
        reporter.notes[-1] == f"{session.run.path}: its file system has no locks; let no other process train this run"
    )
    session.train(reporter)
    assert not (session.run.path / lock.NAME).exists()


@POSIX
def test_the_lock_of_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch) -> None:
    """The one who had it removes the file between another's opening and locking."""
    flock, calls = lock.fcntl.flock, []

    def slow(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / lock.NAME).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    held = RunLock(tmp_path)
    assert len(calls) == 2
    assert held.held
    with pytest.raises(ConfigError, match="another process"):
        RunLock(tmp_path)


@POSIX
def test_a_forked_childs_end_leaves_the_lock_to_its_parent(tmp_path) -> None:
    program = (
        "import os, warnings; from pathlib import Path; from minidl.training.lock import RunLock\n"
        "warnings.simplefilter('ignore')\n"
        "held = RunLock(Path('.')); child = os.fork()\n"
        "if child == 0: held.release(); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert Path('.lock').exists()\n"
        "try: RunLock(Path('.'))\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("ConfigError\n", "")
    assert not (tmp_path / ".lock").exists()  # removed at the end of the process


def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"\.lock: cannot be written: "):
        RunLock(tmp_path / "gone")
