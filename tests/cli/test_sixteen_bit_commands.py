"""Training, resuming, evaluating and predicting with images' activations in 16 bits, on the emulator."""

import json
import tomllib

import numpy as np
import pytest

from minidl.training.checkpoint import load_latest
from minidl.training.monitor import read_records
from minidl.training.runs import RunFolder

PRECISIONS = ("bf16", "fp16")
each = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module")
def data(write_stripes, tmp_path_factory) -> str:
    return write_stripes(tmp_path_factory.mktemp("data") / "few.npz", train=4, test=2)


@pytest.fixture(scope="module")
def trained(minidl, data, tmp_path_factory):
    """By precision: the summary and folder of a run of two steps, the second after it was stopped and resumed.

    It takes some seconds: in the emulator each kernel of a network is made for each precision.
    """
    found = {}
    for precision in PRECISIONS:
        out = tmp_path_factory.mktemp(precision)
        result = minidl(
            *("train", "--device", "emulator", "--precision", precision, "--data", data, "--epochs", 1),
            *("--batch-size", 2, "--augment", "--monitor", 1, "--max-steps", 1, "--out", out, "--quiet"),
        )
        assert result.exit_code == 0, result.output
        (run,) = out.iterdir()
        result = minidl("train", "--resume", run, "--max-steps", 2, "--json")
        assert result.exit_code == 0, result.output
        found[precision] = json.loads(result.stdout), run
    return found


def evaluated(minidl, run, *options: str) -> dict:
    result = minidl("eval", run, "--device", "emulator", "--checkpoint", "last", "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@each
def test_a_run_is_stopped_and_goes_on_in_its_precision(trained, precision: str) -> None:
    summary, run = trained[precision]
    assert (summary["device"], summary["precision"], summary["steps"]) == ("emulator", precision, 2)
    assert tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["precision"] == precision
    tensors = load_latest(RunFolder.open(run).checkpoints)[0].tensors
    assert {tensors[name].dtype for name in tensors if "conv" in name} == {np.dtype(np.float32)}
    assert ("loss_scale.state" in tensors) is (precision == "fp16")


@each
def test_what_is_measured_are_numbers(trained, precision: str) -> None:
    """Bits of bfloat16 would be thousands."""
    _, run = trained[precision]
    records = read_records(run / "monitor.jsonl")
    assert [record["step"] for record in records] == [0, 1]
    for record in records:
        for activation in record["activations"].values():
            assert np.abs(activation["percentiles"]).max() < 100
            assert 0 < activation["std"] < 20


@each
def test_it_evaluates_to_nearly_what_the_cpu_does(trained, minidl, precision: str) -> None:
    _, run = trained[precision]
    narrow, exact = evaluated(minidl, run, "--precision", precision), evaluated(minidl, run)
    assert (narrow["precision"], exact["precision"]) == (precision, "fp32")
    assert narrow["loss"] != exact["loss"]
    # Seven layers behind one another, each off by up to 2^-8 or 2^-11 of its numbers, in its factors and its output.
    unit = 2.0**-8 if precision == "bf16" else 2.0**-11
    assert abs(narrow["loss"] - exact["loss"]) < 7 * 3 * unit * max(exact["loss"], 1)
    folded = evaluated(minidl, run, "--precision", precision, "--fold")
    assert abs(folded["loss"] - narrow["loss"]) < 7 * 3 * unit * max(exact["loss"], 1)


@each
def test_it_predicts_nearly_what_the_cpu_does(trained, minidl, precision: str, tmp_path) -> None:
    from PIL import Image

    _, run = trained[precision]
    picture = tmp_path / "stripes.png"
    Image.linear_gradient("L").resize((16, 16)).save(picture)
    found = []
    for device, asked in (("emulator", precision), ("cpu", "fp32")):
        result = minidl("predict", picture, "--run", run, "--device", device, "--precision", asked, "--json")
        assert result.exit_code == 0, result.output
        found.append({one["class"]: one["probability"] for one in json.loads(result.stdout)["top"]})
    unit = 2.0**-8 if precision == "bf16" else 2.0**-11
    assert found[0].keys() == found[1].keys()
    assert max(abs(found[0][number] - found[1][number]) for number in found[0]) < 7 * 3 * unit
    assert found[0] != found[1]


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_a_precision_that_cannot_be_is_one_line(trained, minidl, tmp_path, command: str) -> None:
    _, run = trained["bf16"]
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"")
    given = {"train": ("--out", tmp_path / "none"), "eval": (run,), "predict": (picture, "--run", run)}[command]
    for precision in PRECISIONS:
        result = minidl(command, *given, "--device", "cpu", "--precision", precision)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert (
            f"--precision {precision}: device cpu computes in winograd, fp32 only; "
            "device cuda and device emulator have it" in (result.stderr)
        )
    assert not (tmp_path / "none").exists()
    result = minidl(command, *given, "--precision", "bf61")
    assert result.exit_code == 2
    assert "'bf61' is not one of 'fp32', 'tf32', 'bf16', 'fp16'" in result.stderr


def test_a_normalization_that_is_not_made_for_it_is_one_line(minidl, data, tmp_path) -> None:
    given = "--device", "emulator", "--precision", "bf16", "--data", data, "--norm", "group", "--out", tmp_path / "none"
    result = minidl("train", *given)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "--precision bf16: --norm group is not made for activations in 16 bits; use --norm batch" in result.stderr
    assert not (tmp_path / "none").exists()
