"""--threads beyond the cores: a warning, wherever the option is."""

import pytest
from PIL import Image

from minidl.backends import get_backend
from minidl.cli import options

WARNING = "warning: --threads 2, and this process may use 1 core; more threads than cores are slower\n"


@pytest.fixture
def one_core(monkeypatch) -> None:
    monkeypatch.setattr("minidl.backends.cpu.threads.available_cores", lambda: 1)


def test_train_warns(minidl, one_core, stripes_file, tmp_path) -> None:
    data = "--data", stripes_file, "--batch-size", 16, "--max-steps", 1
    command = "train", *data, "--device", "cpu", "--out", tmp_path
    result = minidl(*command, "--threads", 2)
    assert (result.exit_code, result.stderr) == (0, WARNING)
    assert minidl(*command, "--threads", 1).stderr == ""
    assert minidl(*command, "--threads", 2, "--quiet").output == ""


def test_eval_and_predict_warn(minidl, one_core, runs, tmp_path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    of_a_picture = "predict", tmp_path / "picture.png", "--out", runs, "--device", "cpu", "--checkpoint", "last"
    for command in (("eval", "--out", runs, "--device", "cpu", "--checkpoint", "last"), of_a_picture):
        result = minidl(*command, "--threads", 2)
        assert (result.exit_code, result.stderr) == (0, WARNING), result.output
        assert minidl(*command, "--threads", 1).stderr == ""


def test_verify_warns(minidl, one_core) -> None:
    result = minidl("verify", "--device", "cpu", "--op", "count_call", "--threads", 2)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(WARNING)


def test_other_devices_have_no_threads(one_core, capsys) -> None:
    options.warn_of_threads(get_backend("reference"))
    options.warn_of_threads(get_backend("emulator", threads=2))
    assert capsys.readouterr().err == ""
