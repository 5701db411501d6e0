"""The commands on the emulator: what a GPU would do, without one."""

import json

import pytest

from kernels.errors import OutOfMemoryError
from minidl.backends import get_backend


@pytest.fixture(scope="module")
def data(write_stripes, tmp_path_factory) -> str:
    return write_stripes(tmp_path_factory.mktemp("data") / "few.npz", train=6, test=3)


@pytest.fixture(scope="module")
def run(minidl, data, tmp_path_factory):
    """A run of three steps, and its summary."""
    out = tmp_path_factory.mktemp("runs")
    arguments = "--data", data, "--epochs", 1, "--batch-size", 2, "--augment", "--out", out, "--json"
    result = minidl("train", "--device", "emulator", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), out


def test_it_trains(run) -> None:
    summary, _ = run
    assert summary["device"] == "emulator"
    assert summary["steps"] == 3
    assert 0 <= summary["test_accuracy"] <= 1


def test_it_evaluates_to_what_the_cpu_does(run, minidl) -> None:
    _, out = run
    found = {}
    for device in ("emulator", "cpu"):
        result = minidl("eval", "--device", device, "--out", out, "--json")
        assert result.exit_code == 0, result.output
        found[device] = json.loads(result.stdout)
    assert found["emulator"]["device"] == "emulator"
    assert found["emulator"]["accuracy"] == found["cpu"]["accuracy"]
    assert abs(found["emulator"]["loss"] - found["cpu"]["loss"]) < 1e-5 * found["cpu"]["loss"]
    said = minidl("eval", "--device", "emulator", "--out", out).stdout
    assert said.startswith("device: emulator, the GPU's kernels without a GPU (asked for)\n")


def test_it_predicts_what_the_cpu_does(run, minidl, tmp_path) -> None:
    from PIL import Image

    _, out = run
    picture = tmp_path / "stripes.png"
    Image.linear_gradient("L").resize((16, 16)).save(picture)
    top = {}
    for device in ("emulator", "cpu"):
        result = minidl("predict", picture, "--device", device, "--out", out, "--json", "--invert")
        assert result.exit_code == 0, result.output
        top[device] = json.loads(result.stdout)["top"]
    for emulated, expected in zip(top["emulator"], top["cpu"], strict=True):
        assert emulated["class"] == expected["class"]
        assert abs(emulated["probability"] - expected["probability"]) < 1e-5


def test_a_device_without_memory_ends_with_one_line(run, minidl, monkeypatch) -> None:
    def empty(shape, dtype=None):
        raise OutOfMemoryError("the GPU has no 3.00 GiB left; use a smaller batch (--batch-size)")

    _, out = run
    monkeypatch.setattr(get_backend("emulator"), "empty", empty)
    result = minidl("eval", "--device", "emulator", "--out", out)
    assert result.exit_code == 1
    assert result.stderr == "Error: the GPU has no 3.00 GiB left; use a smaller batch (--batch-size)\n"
